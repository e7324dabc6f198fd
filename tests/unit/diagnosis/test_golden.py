"""Golden cases: what public threads reported, with their numbers, has the verdict that ended the search."""

from __future__ import annotations

import pytest

from kvmon.diagnosis import Diagnosis, cause_of
from kvmon.events import Contiguity, FailureOutcome, FailureReason
from kvmon.state.watch import WINDOW_NS
from tests.unit.diagnosis.rows import diagnosed, refused, window, windows

REQUIRED = int(Contiguity.REQUIRED)
WAITS = int(FailureOutcome.WAITS)
MIB = 10  # units in a tenth of a megabyte


def only(diagnosis: Diagnosis) -> str:
    """The one verdict that was found, or healthy; there are no others."""
    assert len(diagnosis.findings()) <= 1
    return diagnosis.verdict()


@pytest.mark.parametrize(
    ("row", "cause"),
    [
        # the lesson: 64 slots, half of them free in blocks of 8, a request of 16
        (refused(16, 32, largest=8, capacity=64, contiguity=REQUIRED), "fragmentation"),
        # LMCache's first-fit host pool: 358.4 MB free, largest run 30.7 MB, request 32.1 MB
        (refused(321, 3584, largest=307, capacity=50_000, contiguity=REQUIRED), "fragmentation"),
        # sglang PR#34441: 21.2 MB gap, 53.6 MB slot, usage 0.33
        (refused(536, 6700, largest=212, capacity=10_000, contiguity=REQUIRED), "fragmentation"),
        # the same numbers in pages: any free units will do
        (refused(536, 6700, largest=212, capacity=10_000), "reclaim_failed"),
        # vllm#39734: 76,640 tokens, request of 100,000
        (refused(6250, 4790, capacity=4790), "never_fits"),
        (refused(10, 3, reason=int(FailureReason.NEVER_FITS)), "never_fits"),
        # sglang PR#37610: one page of 256, 384 slots needed, the first pool empty
        (refused(2, 1, capacity=1, reason=int(FailureReason.POOL_STARVED)), "pool_starved"),
        # transformers prefill_first: refused with 18 evictable blocks at hand
        (refused(18, 0, 18), "reclaim_failed"),
        (refused(10, 2, 3, reason=int(FailureReason.EVICTABLE_NOT_RECLAIMED)), "reclaim_failed"),
        # Orca (max): 57 % of the memory reserved and never used
        (refused(129, 20, reserved=570 * 16), "reservation"),
        # vllm PR#57336: 46.9 % of the slots are tails
        (refused(40, 0, tail=469 * 16), "tail_waste"),
        (refused(100, 0, pinned=460), "pinned"),
        (refused(100, 0, deferred=900), "stranded"),
        (refused(100, 0, unowned=150), "leak"),
        (refused(100, 20, reason=int(FailureReason.PARTITION_FULL)), "partition"),
        (refused(100, 300, reason=int(FailureReason.WATERMARK)), "capacity"),
        (refused(100, 20, reason=int(FailureReason.ACCOUNTING_ERROR)), "telemetry_untrusted"),
        (refused(800, 700), "head_of_line"),
        (refused(100, 20), "capacity"),
    ],
)
def test_the_rule_at_a_failure(row: object, cause: str) -> None:
    """Need, free, evictable, the largest block and the reason decide."""
    assert cause_of(row) == cause  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("more", "cause"),
    [
        ({"pinned": 99}, "capacity"),  # below a tenth of the pool
        ({"pinned": 500}, "pinned"),
        ({"pinned": 150, "deferred": 300}, "stranded"),  # the larger one is named
        ({"pinned": 150, "known": 0}, "capacity"),  # nobody knows who held it
        ({"unowned": -1}, "capacity"),  # owners are not named
    ],
)
def test_a_cause_has_to_explain_and_to_be_worth_naming(more: dict[str, int], cause: str) -> None:
    """It would have let this request in, and it holds a tenth of the pool."""
    assert cause_of(refused(100, 10, **more)) == cause


def test_a_cause_that_would_not_have_helped_is_not_named() -> None:
    """120 pinned units are a tenth of the pool, and the request is 200 short."""
    assert cause_of(refused(210, 10, pinned=120)) == "capacity"


@pytest.mark.parametrize(
    ("capacity", "residual", "verdict"),
    [
        (270_331, 644 + 269_628 - 270_331, "leak"),  # sglang#11970: -59
        (454, 315 + 138 - 454, "leak"),  # sglang PR#16067: -1 in the second pool
        (3_185_200, 2_864_304 + 325_120 - 3_185_200, "double_free"),  # sglang#6888: +4,224
        (96, 0, "healthy"),  # imp#1120: live 0, cached 96, reclaimable 96
    ],
)
def test_the_engines_own_numbers(capacity: int, residual: int, verdict: str) -> None:
    """Their sum less the capacity: negative is a leak, positive a double free, 0 a warm cache."""
    rows = windows(3, capacity=capacity, claims=5, least_residual=residual, most_residual=residual)
    diagnosis = diagnosed(rows)
    assert only(diagnosis) == verdict
    if residual:
        assert f"{abs(residual):,}" in diagnosis.findings()[0].summary


def test_a_residual_that_passes_by_is_none() -> None:
    """Numbers that were read between two updates differ once."""
    off = {"claims": 5, "least_residual": -3, "most_residual": 0}
    assert only(diagnosed(windows(4, **off))) == "healthy"


def test_parked_halves_are_a_deadlock() -> None:
    """vllm PR#57104: 256 + 255 blocks of 511 parked, free 0, running 0, nothing is computed."""
    stuck = {"capacity": 511, "active": 511, "free": 0, "waiting": 2, "progress": 0, "stuck_ns": WINDOW_NS}
    assert only(diagnosed(windows(1, **stuck))) == "healthy"  # one window may be a long step
    diagnosis = diagnosed(windows(3, **stuck))
    assert only(diagnosis) == "deadlock"
    assert "2 requests waiting and not a token" in diagnosis.findings()[0].summary


def test_a_storm_throws_away_what_it_computes() -> None:
    """vllm PR#21793: prompts admitted in part and preempted in a loop; one that recomputes a third is only busy."""
    storm = {"preempted": 40, "lost": 9_000, "prefill": 10_000, "finished": 1}
    assert only(diagnosed(windows(3, **storm))) == "preemption_storm"
    assert only(diagnosed(windows(3, **{**storm, "lost": 3_500}))) == "healthy"
    assert only(diagnosed(windows(3, **{**storm, "preempted": 1}))) == "healthy"


def test_a_cache_that_forgets_what_is_asked_again() -> None:
    """home-ops#10189: hits of 90 % and more fall to nothing, with hardly a preemption."""
    thrash = {"lookup": 50_000, "hit": 1_000, "forgotten": 45_000, "evicted": 3_000, "preempted": 1}
    assert only(diagnosed(windows(3, **thrash))) == "cache_thrash"
    warm = {"lookup": 50_000, "hit": 46_000, "forgotten": 900, "evicted": 3_000}
    assert only(diagnosed(windows(12, **warm))) == "healthy"
    assert only(diagnosed(windows(3, **{**thrash, "evicted": 0}))) == "healthy"


def test_a_full_pool_with_a_warm_cache_is_healthy() -> None:
    """sglang#6778, vllm#12077: usage near 100 %, nothing active, nobody waits."""
    assert only(diagnosed(windows(20, free=0, cached=1000, evicted=500, least_unowned=0))) == "healthy"


def test_a_gauge_that_says_2_per_cent_at_72() -> None:
    """sglang PR#22726; a gauge that is off by a few per cent misleads nobody."""
    assert only(diagnosed(windows(3, claims=5, least_gauge=700_000, active=720))) == "telemetry_untrusted"
    assert only(diagnosed(windows(3, claims=5, least_gauge=50_000))) == "healthy"


def test_events_that_are_missing() -> None:
    """A gap is said, and that the past is not whole."""
    rows = windows(4)
    rows[2] = window(2, gaps=1, known=0)
    finding = diagnosed(rows).findings()[0]
    assert finding.verdict == "telemetry_untrusted" and finding.completeness.gaps == 1
    assert finding.completeness.known_ratio == 0.75 and finding.completeness.missing


def test_an_error_elsewhere_is_not_kv() -> None:
    """vllm#37159: CUDA out of memory with 7.8 % of the KV memory used."""
    rows = windows(3, active=78, free=922)
    rows[1] = window(1, active=78, free=922, errors=1)
    diagnosis = diagnosed(rows)
    assert only(diagnosis) == "not_kv" and "8% of the KV pool" in diagnosis.findings()[0].summary


REAL_MIB = 1 << 20
INCIDENT = {
    "errors": 1,
    "asked": 384 * REAL_MIB,
    "error_free": round(329.87 * REAL_MIB),
    "device_total": 81_000 * REAL_MIB,
    "device_free": 400 * REAL_MIB,
    "torch_reserved": 79_000 * REAL_MIB,
    "torch_allocated": 79_000 * REAL_MIB - round(402.27 * REAL_MIB),
    "torch_largest": 20 * REAL_MIB,
    "sample_ns": 250_000_000,
}
FRAGMENTED, FULL, LITTLE, ROOM = (
    ("fragmentation of torch's own memory", "expandable segments"),
    ("the device is full outside of torch", "second process"),
    ("too little is left", "lower the engine's share"),
    ("the numbers show room", "engine's log"),
)


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        # vllm PR#37428: 384 MiB asked, 329.87 free, 402.27 reserved but unallocated
        ({}, FRAGMENTED),
        ({"torch_largest": -1}, FRAGMENTED),  # nobody looked at its blocks: it was refused all the same
        # the sample has the driver's numbers alone, the error says the rest
        ({"torch_reserved": 0, "error_reserved": round(402.27 * REAL_MIB)}, FRAGMENTED),
        # neither is enough, both together are
        ({"torch_allocated": 78_900 * REAL_MIB}, FRAGMENTED),
        # 100 MiB free in all, the others' memory would not have helped or is next to nothing
        ({"error_free": 50 * REAL_MIB, "torch_allocated": 78_950 * REAL_MIB}, LITTLE),
        (
            {"asked": 9_000 * REAL_MIB, "torch_reserved": 73_000 * REAL_MIB, "torch_allocated": 72_900 * REAL_MIB},
            LITTLE,
        ),
        # verl#6912, vllm#9290: half of the device belongs to another process
        (
            {"torch_reserved": 40_000 * REAL_MIB, "torch_allocated": 39_990 * REAL_MIB, "error_free": 40 * REAL_MIB},
            FULL,
        ),
        ({"error_free": 384 * REAL_MIB}, ROOM),
        ({"torch_largest": 402 * REAL_MIB}, ROOM),
        ({"error_free": 0}, ROOM),  # the error does not say what was free: the sample does, and was a little before
    ],
)
def test_what_lacked_where_the_device_was_sampled(more: dict[str, int], reason: tuple[str, str]) -> None:
    """Torch's own fragmentation, others on the device, or too little left: in the sentence and in the lever."""
    finding = diagnosed(windows(1, active=78, free=922, **{**INCIDENT, **more})).findings()[0]
    words, lever = reason
    assert finding.verdict == "not_kv" and words in finding.summary and lever in finding.lever


def test_an_error_has_the_devices_numbers_as_evidence() -> None:
    """What was asked, what was free where, and how old the sample was; the sentence has those that decide."""
    finding = diagnosed(windows(1, active=78, free=922, **INCIDENT)).findings()[0]
    assert (
        "; 384.0 MiB asked, 329.9 MiB free on the device, 402.3 MiB reserved by torch but unallocated in blocks of "
        "20.0 MiB at most: fragmentation of torch's own memory"
    ) in finding.summary
    assert {part.name: part.value for part in finding.evidence} == {
        "errors in the minute": 1,
        "used share of the pool": 0.078,
        "asked at the error": INCIDENT["asked"],
        "free on the device": INCIDENT["error_free"],
        "reserved by torch but unallocated": INCIDENT["torch_reserved"] - INCIDENT["torch_allocated"],
        "largest free block of torch": INCIDENT["torch_largest"],
        "held outside of torch": 1_600 * REAL_MIB,
        "memory of the device": INCIDENT["device_total"],
        "age of the sample of the device": 0.25,
    }


@pytest.mark.parametrize("unknown", [{"torch_reserved": 0}, {"asked": 0}])
def test_a_sample_that_cannot_tell_adds_numbers_alone(unknown: dict[str, int]) -> None:
    """Without torch's numbers, or without what was asked, nobody knows what lacked: the levers are as ever."""
    bare = diagnosed(windows(1, active=78, free=922, errors=1)).findings()[0]
    finding = diagnosed(windows(1, active=78, free=922, **{**INCIDENT, **unknown})).findings()[0]
    assert (finding.avoided, finding.lever) == (bare.avoided, bare.lever)
    assert finding.summary.startswith(bare.summary) and "on the device" in finding.summary
    assert finding.evidence[: len(bare.evidence)] == bare.evidence


def test_without_a_sample_an_error_says_what_it_always_said() -> None:
    """The error's own numbers alone change nothing."""
    bare = diagnosed(windows(1, active=78, free=922, errors=1)).findings()[0]
    own = {name: INCIDENT[name] for name in ("errors", "asked", "error_free")}
    assert diagnosed(windows(1, active=78, free=922, **own)).findings()[0].to_json() == bare.to_json()


def test_blocks_that_wait_for_a_transfer() -> None:
    """vllm PR#41269: held for 480 s; transfers of seconds are how a prefill engine works."""
    held = {"deferred": 300, "least_deferred": 300, "free": 700}
    assert only(diagnosed(windows(8, **held))) == "stranded"
    assert only(diagnosed(windows(5, **held))) == "healthy"
    assert only(diagnosed(windows(20, deferred=300, least_deferred=0))) == "healthy"


def test_units_without_an_owner() -> None:
    """Units that belong to no live request for three windows; those on their way to one are none."""
    assert only(diagnosed(windows(3, active=50, unowned=5, least_unowned=5))) == "leak"
    assert only(diagnosed(windows(9, active=50, unowned=5, least_unowned=0))) == "healthy"
    assert only(diagnosed(windows(9, active=50, unowned=-1, least_unowned=-1))) == "healthy"
    assert only(diagnosed(windows(9, unowned=5, least_unowned=5, known=0))) == "healthy"


def test_a_request_at_the_head_that_keeps_others_out() -> None:
    """vllm#31731: one long request waits with most of the memory free, and short ones behind it with it."""
    row = refused(800, 700, outcome=WAITS, time=WINDOW_NS // 2)
    waiting = windows(2, waiting=6, fitting=5, free=700, starved=1)
    assert only(diagnosed(waiting, row)) == "head_of_line"
    alone = windows(2, waiting=1, fitting=0, free=700, starved=1)
    assert only(diagnosed(alone, row)) == "capacity"


def test_waiting_matters_when_it_lasts() -> None:
    """A wait of two seconds is silent; one that goes on is not."""
    row = refused(100, 20, outcome=WAITS, time=1)
    ended = refused(0, 0, kind=1, time=2 * 10**9)
    assert only(diagnosed(windows(6, starved=1), row, ended)) == "healthy"
    assert only(diagnosed(windows(6, starved=1), row)) == "capacity"


def test_a_wait_whose_end_was_lost_ends() -> None:
    """Where nobody waits any more, or events are missing, a wait that seems to last is over."""
    row = refused(100, 20, outcome=WAITS, time=1)
    assert only(diagnosed(windows(12), row)) == "healthy"
    rows = windows(12, starved=1)
    rows[0] = window(0, gaps=1, starved=1)
    assert [finding.verdict for finding in diagnosed(rows, row).findings()] == ["telemetry_untrusted"]


def test_the_explanation_comes_first_and_what_is_left_last() -> None:
    """Two causes at once: the one that explains a failure, then the condition, then capacity."""
    rows = windows(6, active=50, unowned=5, least_unowned=5)
    found = diagnosed(rows, refused(100, 0, pinned=400, time=1), refused(100, 0, time=2, seq=2)).findings()
    assert [finding.verdict for finding in found] == ["pinned", "leak", "capacity"]
