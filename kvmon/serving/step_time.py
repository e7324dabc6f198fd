"""How long a step takes: a linear model, for a clock instead of a GPU, and the file that keeps its constants.

    duration = base + prefill_tokens * a + decode_sequences * b + context_tokens * c

`base` is what reading the weights once costs, `a` what a prompt token computes, `b` what a decoding sequence adds
besides memory, `c` what reading the keys and values of one token of context costs. The default is of the order of an
8-billion parameter model in bf16 on one H100: 16 GB of weights and 131,072 B of KV a token at about 3 TB/s, 30 us a
prompt token. It is a clock for allocation studies, not a promise about a machine: fit your own constants (`kvmon fit`)
before you quote a latency.

The file is JSON for people and machines:

    {"format": "kvmon step-time", "version": 1,
     "constants_ns": {"base": 6000000.0, "prefill_token": 30000.0, "decode_sequence": 20000.0, "context_token": 40.0},
     "origin": {"model": "...", "device": "...", "source": "..."}, "fit": {...}}

`origin` says where the constants came from and `fit` how good they are; both are for the reader and change nothing.

Invariant: what was written is read back equal, and a file that does not hold four usable constants is refused whole.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from kvmon.errors import ConfigError, InputError, NewerFormatError
from kvmon.files import write_whole

__all__ = ["Origin", "StepTime", "read_step_time", "write_step_time"]

_FORMAT = "kvmon step-time"
_VERSION = 1
_MOST_NS = 1e15
_CONSTANTS = ("base", "prefill_token", "decode_sequence", "context_token")


@dataclass(frozen=True)
class StepTime:
    """Constants in nanoseconds; see the module for the formula. Raises ConfigError for what no clock can run on."""

    base_ns: float = 6_000_000.0
    prefill_token_ns: float = 30_000.0
    decode_sequence_ns: float = 20_000.0
    context_token_ns: float = 40.0

    def __post_init__(self) -> None:
        values = (self.base_ns, self.prefill_token_ns, self.decode_sequence_ns, self.context_token_ns)
        if not all(0.0 <= value < _MOST_NS for value in values):
            raise ConfigError("a step-time constant is no time: give nanoseconds from 0 to 1e15")
        if self.base_ns < 1.0:
            raise ConfigError("a step that takes no time never ends: give a base of at least 1 ns")

    def duration_ns(self, prefill_tokens: int, decode_sequences: int, context_tokens: int) -> int:
        """Duration of one step, the same as the compiled simulator computes."""
        return int(
            self.base_ns
            + prefill_tokens * self.prefill_token_ns
            + decode_sequences * self.decode_sequence_ns
            + context_tokens * self.context_token_ns
        )


@dataclass(frozen=True)
class Origin:
    """Where constants came from: the model and the device that were timed, the recording, and the quality of the fit.

    Free text, empty where nobody said; `fit` holds numbers that JSON can hold.
    """

    model: str = ""
    device: str = ""
    source: str = ""
    fit: Mapping[str, Any] = field(default_factory=dict)


def read_step_time(path: Path) -> StepTime:
    """The constants in the file at `path`.

    Raises InputError where it cannot be read, is no such file, or lacks a usable constant; NewerFormatError where its
    version is newer than ours.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is no step-time file: it is not JSON; write one with 'kvmon fit'") from error
    if not isinstance(found, dict) or found.get("format") != _FORMAT:
        raise InputError(f"{path} is no step-time file: it does not say '{_FORMAT}'; write one with 'kvmon fit'")
    version = found.get("version")
    if isinstance(version, int) and not isinstance(version, bool) and version > _VERSION:
        raise NewerFormatError(f"{path} is a step-time file of version {version}, this kvmon reads {_VERSION}: upgrade")
    if version != _VERSION or isinstance(version, bool):
        raise InputError(f"{path} has version {version!r}: version {_VERSION} is needed; write it with 'kvmon fit'")
    constants = found.get("constants_ns")
    if not isinstance(constants, dict):
        raise InputError(f"{path} has no constants_ns: give {', '.join(_CONSTANTS)} in nanoseconds")
    unknown = sorted(set(constants) - set(_CONSTANTS))
    if unknown:
        raise InputError(f"{path}: constants_ns has the unknown {unknown[0]}: give {', '.join(_CONSTANTS)}")
    values = [_constant(path, name, constants.get(name)) for name in _CONSTANTS]
    try:
        return StepTime(*values)
    except ConfigError as error:
        raise InputError(f"{path}: {error}") from error


def write_step_time(path: Path, step_time: StepTime, origin: Origin | None = None, *, force: bool = False) -> None:
    """Write the constants to `path`, whole or not at all; a file that is there is replaced only with `force`.

    Raises InputError where one is there or none can be, SystemRefused where the machine does not let us write.
    """
    said = asdict(origin or Origin())
    fit = said.pop("fit")
    values = (
        step_time.base_ns,
        step_time.prefill_token_ns,
        step_time.decode_sequence_ns,
        step_time.context_token_ns,
    )
    document: dict[str, Any] = {
        "format": _FORMAT,
        "version": _VERSION,
        "constants_ns": dict(zip(_CONSTANTS, values, strict=True)),
        "origin": said,
        "fit": fit,
    }
    text = json.dumps(document, indent=2, allow_nan=False) + "\n"
    write_whole(path, [text], "the constants", force=force)


def _constant(path: Path, name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < _MOST_NS:
        said = "is missing" if value is None else f"is {value!r}"
        raise InputError(f"{path}: the constant {name} {said}: nanoseconds from 0 to 1e15 are needed")
    return float(value)
