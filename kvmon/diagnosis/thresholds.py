"""Every number that a verdict depends on, with the reason for it.

Frozen on seeds 0-9 of the scenarios and reported on seeds 10-29 (`docs/verdicts/README.md`). Shares are of the pool's
capacity, times in seconds of the engine's clock.
"""

from __future__ import annotations

__all__ = [
    "COMPLETE",
    "DEADLOCK_S",
    "DRIFT_SHARE",
    "FITTING_REQUESTS",
    "FORGOTTEN_SHARE",
    "FREE_FOR_OTHERS",
    "GAUGE_OFF",
    "HEAD_WAITS_S",
    "LEAK_WINDOWS",
    "LOOKUP_TOKENS",
    "MINUTE_WINDOWS",
    "NAMED_SHARE",
    "PERSISTENT_WINDOWS",
    "SHORTEST_LIFE_S",
    "STORM_PREEMPTIONS",
    "STORM_SHARE",
    "STRANDED_WINDOWS",
    "WAITED_SHARE",
]

#: Windows in the sliding minute that a verdict looks back on: an operator asks about now, not about one step.
MINUTE_WINDOWS = 12

#: A cause has to hold this share of the pool to be named: below it, freeing it changes little, and a pool that is full
#: to the last page always has a few reserved or unfilled slots.
NAMED_SHARE = 0.10

#: Waiting for memory costs something when somebody waited in a fifth of the last minute. A burst that waits for two or
#: three seconds, once, is a twentieth, and nobody has to get up.
WAITED_SHARE = 0.20
#: A recording of a few seconds is judged as if it had run for this long.
SHORTEST_LIFE_S = 25.0

#: The head of the queue keeps others out when it needs a quarter of the pool, while as much is free or evictable.
FREE_FOR_OTHERS = 0.25
#: At least this many requests that need a quarter of what the head needs would fit while it waits.
FITTING_REQUESTS = 2
#: And it waited for this long in the last minute.
HEAD_WAITS_S = 2.0

#: Requests wait and not one token is computed for this long: two windows, well above the longest step.
DEADLOCK_S = 10.0

#: Most of what is prefilled was computed before and lost by preemption. An overloaded engine recomputes a quarter to a
#: half; in a storm it is nearly everything.
STORM_SHARE = 0.6
#: And so many preemptions in a minute that it is no accident.
STORM_PREEMPTIONS = 10

#: Prompt tokens that were asked for before, and had been forgotten, of all that were looked up. A cache that is large
#: enough for its working set forgets a few per cent.
FORGOTTEN_SHARE = 0.12
#: Fewer looked-up tokens in a minute than this say nothing.
LOOKUP_TOKENS = 10_000

#: Units that a transfer holds all the time, for so many windows in a row: transfers take seconds, not half a minute.
STRANDED_WINDOWS = 6

#: Units that belong to no live request during three whole windows are not on their way to an owner.
LEAK_WINDOWS = 3

#: The engine's own numbers may be read between two updates; what they say in two windows in a row, they mean.
PERSISTENT_WINDOWS = 2
#: A usage gauge that is off by a fifth of the pool misleads; a few per cent are rounding or another unit.
GAUGE_OFF = 0.20
#: Units claimed as available that differ from the events by this share of the pool.
DRIFT_SHARE = 0.01

#: Below this share of windows with the whole past known, a finding says what it could not see.
COMPLETE = 0.999
