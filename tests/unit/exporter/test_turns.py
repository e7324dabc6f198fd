"""The lock between following and scraping is fair."""

from __future__ import annotations

import threading
import time

from kvmon.exporter.turns import Turns


def test_who_waits_comes_next() -> None:
    """A thread that takes its turn again and again lets a waiting one in after the turn in progress."""
    turns, stop, taken = Turns(), threading.Event(), 0

    def again_and_again() -> None:
        nonlocal taken
        while not stop.is_set():
            with turns:
                time.sleep(0.002)
                taken += 1

    busy = threading.Thread(target=again_and_again)
    busy.start()
    overtaken = []
    try:
        while taken == 0:
            time.sleep(0.001)
        for _ in range(30):
            before = taken
            with turns:
                overtaken.append(taken - before)
            time.sleep(0.001)
    finally:
        stop.set()
        busy.join()
    assert max(overtaken) <= 2, "the turn in progress, and one that had begun to wait before"


def test_an_error_inside_hands_it_on() -> None:
    """A turn that fails does not keep the others out."""
    turns = Turns()
    try:
        with turns:
            raise ValueError
    except ValueError:
        pass
    with turns:
        pass
