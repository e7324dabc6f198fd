"""The inside of a pool's panel: the memory map and, below it, what explains it, as much as there is room for.

Sections stand in a fixed order; where the height is short, what explains least is left out first. Only draws: every
number comes from the view.
"""

from __future__ import annotations

from rich.text import Text

from kvmon.report.gauges import STYLES, Glyphs, flow, gauge, map_lines, states_bar
from kvmon.report.view import PoolView, StreamView
from kvmon.units import format_bytes, format_count, format_duration, format_ratio

__all__ = ["PoolPanel"]

_TALL_MAP = 8
_JUST_NOW = 1e-3
_ROOMY = 60  # from this width on bars have words behind them


class PoolPanel:
    """The lines of one pool's panel."""

    LEAST_HEIGHT = 9

    def __init__(self, stream: StreamView, pool: PoolView, width: int, glyphs: Glyphs) -> None:
        self.stream = stream
        self.pool = pool
        self.width = width
        self.glyphs = glyphs

    def map_rows(self, height: int | None) -> int:
        """How many lines the map can have where the panel has `height` lines inside its frame."""
        wanted = _TALL_MAP if height is None else self._room_for_map(self._sections(height), height)
        return max(1, min(wanted, -(-self.pool.capacity // self.width)))

    def lines(self, height: int | None, map_rows: int) -> list[Text]:
        """The map in `map_rows` lines, then sections in their order; at most `height` lines."""
        drawn = map_lines(self.pool.map, self.width, map_rows, self.glyphs)
        scale = self.pool.map.units_per_cell(self.width * map_rows)
        for name, section in self._sections(height).items():
            drawn += self.states(scale) if name == "states" else section
        return drawn if height is None else drawn[:height]

    def _sections(self, height: int | None) -> dict[str, list[Text]]:
        """The lines below the map by what they tell; shortened until the map has room."""
        sections = {
            "states": self.states(1),
            "room": self.room(),
            "slots": self.slots(),
            "work": self.work(),
            "device": self.device(),
            "failures": self.failures(),
            "holders": self.holders(),
            "notes": self.notes(),
        }
        if height is not None:
            for least, name in ((5, "holders"), (4, "device"), (3, "slots"), (3, "work"), (2, "failures"), (2, "room")):
                if self._room_for_map(sections, height) < least:
                    sections[name] = self._shortened(name)
        return sections

    def _room_for_map(self, sections: dict[str, list[Text]], height: int) -> int:
        return height - sum(len(section) for section in sections.values())

    def _shortened(self, name: str) -> list[Text]:
        if name == "room":
            return self.room_in_words()
        if name == "failures":
            return self.failures()[:1]
        return []

    def states(self, units_per_cell: int) -> list[Text]:
        """The bar of states, its legend and the scale of the map; what is reserved in active units is told by
        `slots`."""
        pool, glyphs = self.pool, self.glyphs
        items = []
        for state, units in pool.units.items():
            if units or state in ("active", "free"):
                share = format_ratio(units / pool.capacity) if pool.capacity else ""
                item = Text.assemble((glyphs.full(state), STYLES[state]), f" {state} ", (share, "bold"))
                if state == "active" and pool.slots is not None and pool.slots["reserved"]:
                    item.append(" (").append(glyphs.full("reserved"), STYLES["reserved"]).append(" reserved)")
                items.append(item)
        size = f", {format_bytes(pool.unit_bytes)} each" if pool.unit_bytes and self.width >= _ROOMY else ""
        scale = f"cell = {_counted(units_per_cell, 'unit')} of {_counted(pool.unit_tokens, 'token')}{size}"
        items.append(Text(scale, STYLES["free"]))
        bar = states_bar(pool.units, self._bar_width(), glyphs)
        total = self._bytes(pool.capacity)
        return [self._row("states", bar, pool.capacity, total), *flow(items, self.width)]

    def room(self) -> list[Text]:
        """Free, largest free block and the need at the head of the queue, on the scale of the bar of states."""
        pool, need = self.pool, self._need()
        rows = [("free", pool.free, STYLES["active"], self._bytes(pool.free))]
        if pool.contiguity == "none":
            if pool.units["cached"]:
                rows.append(("evictable", pool.units["cached"], STYLES["cached"], self._bytes(pool.units["cached"])))
        elif pool.largest_free is not None:
            rows.append(("largest", pool.largest_free, STYLES["cached"], "largest free block"))
        if need is not None:
            rows.append(("needed", need, self._need_style(need), self._need_words(need)))
        return [
            *(
                self._row(label, gauge(value, pool.capacity, self._bar_width(), style, self.glyphs), value, words)
                for label, value, style, words in rows
            ),
            *flow(self._fragmentation(), self.width),
        ]

    def _bar_width(self) -> int:
        return max(8, self.width - 19 - (22 if self.width >= _ROOMY else 0))

    def _row(self, label: str, bar: Text, value: int, words: str) -> Text:
        line = Text.assemble(
            (f"{label:<10}", STYLES["free"]), bar, (f" {format_count(value):>8}", "bold"), no_wrap=True
        )
        if self.width >= _ROOMY:
            line.append(f"  {words}", STYLES["free"])
        line.truncate(self.width, overflow="ellipsis")
        return line

    def room_in_words(self) -> list[Text]:
        """The same as `room` without bars, for small windows."""
        pool = self.pool
        items = [_item("free", format_count(pool.free))]
        if pool.largest_free is not None and pool.contiguity != "none":
            items.append(_item("largest", format_count(pool.largest_free)))
        need = self._need()
        if need is not None:
            items.append(_item("needed", format_count(need), self._need_style(need)))
        return flow([*items, *self._fragmentation()], self.width)

    def _need(self) -> int | None:
        if self.pool.refused is not None:
            return self.pool.refused
        return self.stream.head_need if self.pool.number == 1 else None

    def _grantable(self) -> int:
        pool = self.pool
        after = pool.largest_after_eviction
        return after if after is not None else pool.free

    def _need_style(self, need: int) -> str:
        return "bold red" if need > self._grantable() else "bold yellow"

    def _need_words(self, need: int) -> str:
        where = "at the head" if self.pool.refused is None else "refused"
        return f"{where}: {'no room' if need > self._grantable() else 'fits'}"

    def _bytes(self, units: int) -> str:
        if not self.pool.unit_bytes:
            return "units"
        return format_bytes(units * self.pool.unit_bytes)

    def _fragmentation(self) -> list[Text]:
        pool = self.pool
        if pool.contiguity == "none":
            return [_item("fragmentation", "none: any unit fits")]
        items = []
        if pool.external_fragmentation is not None:
            items.append(_item("fragmentation 1-L/F", format_ratio(pool.external_fragmentation)))
        if pool.lost is not None and pool.lost_size is not None:
            items.append(_item(f"lost({format_count(pool.lost_size)})", format_ratio(pool.lost)))
        return items

    def slots(self) -> list[Text]:
        """What the slots of active units are used for."""
        slots = self.pool.slots
        total = 0 if slots is None else sum(slots.values())
        if slots is None or total == 0:
            return []
        items = [Text("slots of active units", STYLES["free"])]
        items += [_item(kind, format_ratio(count / total)) for kind, count in slots.items()]
        return flow(items, self.width)

    def work(self) -> list[Text]:
        """Requests and steps of the engine."""
        stream, items = self.stream, []
        if stream.running is not None and stream.waiting is not None:
            items.append(_item("running", format_count(stream.running)))
            items.append(_item("waiting", format_count(stream.waiting), "bold yellow" if stream.waiting else "bold"))
        if stream.counters is not None:
            items.append(_item("preempted", format_count(stream.counters["preempted"])))
        if stream.prefix_hit_ratio is not None:
            items.append(_item("prefix hits", format_ratio(stream.prefix_hit_ratio)))
        if stream.steps_per_second is not None:
            items.append(_item("steps/s", f"{stream.steps_per_second:.1f}"))
        if stream.tokens_per_second is not None:
            items.append(_item("tokens/s", format_count(round(stream.tokens_per_second))))
        if stream.step_seconds is not None:
            items.append(_item("last step", format_duration(stream.step_seconds)))
        return flow(items, self.width)

    def device(self) -> list[Text]:
        """What the used memory of the engine's GPUs is for, below the first pool."""
        lines: list[Text] = []
        for device in self.stream.devices if self.pool.number == 1 else ():
            items = []
            if device.used is not None and device.total is not None:
                items.append(_item("GPU", f"{format_bytes(device.used)} of {format_bytes(device.total)}"))
            for part, size in device.parts.items():
                items.append(_item(part.replace("_", " "), format_bytes(size), "bold red" if size < 0 else "bold"))
            if device.largest_free is not None:
                items.append(_item("largest free", format_bytes(device.largest_free)))
            lines += flow(items, self.width)
        return lines

    def failures(self) -> list[Text]:
        """Refused allocations by reason, then the last one in words."""
        pool, lines = self.pool, []
        if pool.failures is not None:
            total = sum(pool.failures.values())
            item = _item("failures", format_count(total), "bold red" if total else "bold")
            for reason, count in sorted(pool.failures.items(), key=lambda pair: -pair[1]):
                item.append(f"  {reason} {format_count(count)}")
            lines += flow([item], self.width)
        if pool.last_failure is not None:
            when = f"last, {self._when(pool.last_failure.age_seconds)}: "
            lines += flow([Text.assemble((when, STYLES["free"]), pool.last_failure.sentence)], self.width)
        return lines

    def _when(self, age_seconds: float) -> str:
        if self.stream.moment is not None:
            return "just then" if age_seconds < _JUST_NOW else f"{format_duration(age_seconds)} before"
        over = self.stream.condition in ("dead", "ended")
        if age_seconds < _JUST_NOW:
            return "at the end" if over else "just now"
        return f"{format_duration(age_seconds)} {'before the end' if over else 'ago'}"

    def holders(self) -> list[Text]:
        """Who holds the most."""
        pool = self.pool
        if not pool.holders:
            return []
        rows = [("request", "class", "units", "share", "age", "state")]
        for holder in pool.holders:
            share, age = format_ratio(holder.units / pool.capacity), format_duration(holder.age_seconds)
            units = format_count(holder.units)
            rows.append((str(holder.request), str(holder.class_id), units, share, age, holder.state))
        lines = []
        for index, (request, class_id, units, share, age, state) in enumerate(rows):
            words = f"{request:>8} {class_id:>6} {units:>9} {share:>7} {age:>11}  {state}"
            lines.append(Text(words, "" if index else STYLES["free"], no_wrap=True))
            lines[-1].truncate(self.width, overflow="ellipsis")
        return lines

    def notes(self) -> list[Text]:
        """How complete the evidence is, where it is not, and units that nobody owns."""
        notes = list(self.stream.notes)
        if self.pool.unowned:
            notes.append(f"{format_count(self.pool.unowned)} active units have no live owner")
        return [line for note in notes for line in flow([Text(f"! {note}", "bold yellow")], self.width)]


def _counted(count: int, thing: str) -> str:
    return f"{format_count(count)} {thing}{'s' * (count != 1)}"


def _item(label: str, value: str, style: str = "bold") -> Text:
    return Text.assemble((f"{label} ", STYLES["free"]), (value, style))
