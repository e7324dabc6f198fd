"""Put a server's parts together: the model's name, tokenizer and template, and how its engine is built.

Invariant: nothing is built here before it is asked for, so that an engine begins its life in the thread that uses it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from kvmon.engine import Engine
from kvmon.engine.server.chat import load_chat_template
from kvmon.engine.server.service import Service
from kvmon.engine.tokenizer import ByteTokenizer, check_vocabulary, load_tokenizer
from kvmon.errors import ConfigError, InputError

__all__ = ["RANDOM_MODEL", "engine_builder", "load_service"]

_MOST_THREADS = 1024
RANDOM_MODEL = "kvmon-tiny"
"""Name of the model that has no directory."""


def load_service(model: Path | None) -> Service:
    """A model directory by its name, or the random model. Raises InputError for one that cannot be used."""
    if model is not None and not model.is_dir():
        raise InputError(f"{model} is no directory: give the one with the model's config.json")
    tokenizer = load_tokenizer(model)
    name = RANDOM_MODEL if model is None else model.resolve().name
    return Service(name, tokenizer, load_chat_template(model, tokenizer))


def engine_builder(
    build: Callable[..., Engine], service: Service, options: Mapping[str, Any], threads: int | None
) -> Callable[[], Engine]:
    """A function that builds the engine of a service, with `build(**options, eos_tokens=..., vocabulary=...)`.

    `threads`: how many the model computes with, None: as many as torch likes. Raises ConfigError for none or too many.
    """
    if threads is not None and not 1 <= threads <= _MOST_THREADS:
        raise ConfigError(f"{threads} threads are not possible: give 1 to {_MOST_THREADS}")
    tokenizer, random_model = service.tokenizer, options["model"] is None
    # A model that reads bytes for want of a tokenizer still ends its texts as its own configuration says.
    eos = tokenizer.eos if random_model or not isinstance(tokenizer, ByteTokenizer) else None

    def built() -> Engine:
        if threads is not None:
            torch.set_num_threads(threads)
        engine = build(**options, eos_tokens=eos, vocabulary=tokenizer.vocabulary if random_model else None)
        try:
            check_vocabulary(tokenizer, engine.vocabulary)
        except InputError:
            engine.close()
            raise
        return engine

    return built
