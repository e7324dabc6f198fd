"""Workloads: what they refuse, who follows whom, and how pages are named."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from kvmon.allocators import ContiguousConfig, PagedConfig
from kvmon.errors import ConfigError, TraceError
from kvmon.serving import StepTime, Workload, page_hashes
from kvmon.serving.model_shape import kv_bytes_per_token, parse_model_shape
from kvmon.serving.workload import check_page_hashes


def two(**changes: object) -> Workload:
    """Two requests with one identity step of 8 tokens each, changed as asked."""
    values: dict[str, object] = {
        "arrival_ns": np.array([0, 5], np.int64),
        "prompt_tokens": np.array([8, 20], np.int32),
        "output_tokens": np.array([1, 2], np.int32),
        "token_limit": np.array([4, 4], np.int32),
        "class_id": np.array([0, 1], np.int32),
        "hash_offsets": np.array([0, 1, 3], np.int64),
        "hashes": np.array([7, 7, 8], np.uint64),
        "hash_tokens": 8,
    }
    return Workload(**(values | changes))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"arrival_ns": np.array([5, 0])}, "request 2 arrives before"),
        ({"arrival_ns": np.array([-1, 0])}, "before time 0"),
        ({"prompt_tokens": np.array([8, 0])}, "prompt_tokens of request 2 is 0"),
        ({"output_tokens": np.array([0, 1])}, "output_tokens of request 1"),
        ({"token_limit": np.array([1, -3])}, "token_limit of request 2"),
        ({"class_id": np.array([0])}, "class_id has 1 entries for 2"),
        ({"hash_offsets": np.array([0, 1, 2])}, "do not divide"),
        ({"hash_tokens": 0}, "without hash_tokens"),
        ({"hashes": np.array([7, 0, 8], np.uint64)}, "reserved"),
        ({"arrival_ns": np.zeros(0, np.int64)}, "holds no request"),
        ({"follows": np.array([0])}, "follows has 1 entries for 2"),
        ({"follows": np.array([0, 2])}, "request 2 follows request 2: only an earlier"),
        ({"follows": np.array([1, 0])}, "request 1 follows request 1: only an earlier"),
        ({"follows": np.array([0, -1])}, "request 2 follows request -1"),
        ({"follows": np.array([0, 1]), "arrival_ns": np.array([0, -1])}, "request 2 arrives after a negative pause"),
        ({"follows": np.array([0, 1]), "arrival_ns": np.array([2**61, 2**62])}, "more than 146 years"),
        ({"arrival_ns": np.array([0, 2**63 - 1])}, "more than 146 years"),
        ({"abort_ns": np.array([1, 2, 3])}, "abort_ns has 3 entries for 2"),
        ({"abort_ns": np.array([0, -1])}, "abort_ns of request 2 is -1"),
    ],
)
def test_what_no_request_can_be_is_refused(changes: dict[str, object], says: str) -> None:
    """Each impossible array is named, with the request."""
    with pytest.raises(TraceError, match=says):
        two(**changes)


def test_equal_prefixes_have_equal_page_names_and_others_do_not() -> None:
    """Sub-pages of one identity differ, equal identities agree, a super-page is named by the last identity inside."""
    workload = two(prompt_tokens=np.array([8, 16], np.int32))
    assert page_hashes(workload, 1, 4).tolist() == page_hashes(workload, 2, 4)[:2].tolist()
    assert len(set(page_hashes(workload, 2, 4).tolist())) == 4
    assert page_hashes(workload, 1, 16).size == 0
    assert page_hashes(workload, 2, 16).size == 1
    assert page_hashes(workload, 2, 16)[0] != page_hashes(workload, 1, 8)[0]
    assert 0 not in page_hashes(workload, 2, 1)


def test_page_sizes_must_match_identities_only_where_they_are_used() -> None:
    """Divisors and multiples match; anything else is refused unless nothing looks pages up."""
    for unit in (1, 4, 8, 16, 24):
        check_page_hashes(8, PagedConfig(10, unit))
    for unit in (3, 12):
        with pytest.raises(ConfigError, match="switch the prefix cache off"):
            check_page_hashes(8, PagedConfig(10, unit))
        check_page_hashes(8, PagedConfig(10, unit, prefix_cache=False))
        check_page_hashes(8, ContiguousConfig(10, unit))
        check_page_hashes(0, PagedConfig(10, unit))


def test_covered_tokens() -> None:
    """Identities cover the prompt, less where they are few, and what is generated where they are more."""
    assert two().covered_tokens().tolist() == [8, 16]
    longer = two(hash_offsets=np.array([0, 1, 3]), prompt_tokens=np.array([5, 8], np.int32))
    assert longer.covered_tokens().tolist() == [5, 16]


def test_the_first_requests() -> None:
    """A shorter workload keeps its identities in order; none at all is an error."""
    assert two().first(1).hashes.tolist() == [7]
    assert len(two().first(9)) == 2
    with pytest.raises(ConfigError, match="at least 1"):
        two().first(0)


def test_who_follows_whom() -> None:
    """Requests that follow another one pause after it, in any order; only independent ones are sorted by arrival."""
    chain = {"arrival_ns": np.array([7, 3], np.int64), "follows": np.array([0, 1], np.int32)}
    assert two(**chain).independent.tolist() == [True, False]
    assert two().independent.tolist() == [True, True]
    cut = two(**chain, abort_ns=np.array([0, 4], np.int64)).first(1)
    assert (len(cut), cut.follows.tolist(), cut.abort_ns.tolist()) == (1, [], [])
    whole = two(**chain, abort_ns=np.array([0, 4], np.int64)).first(2)
    assert (whole.follows.tolist(), whole.abort_ns.tolist()) == ([0, 1], [0, 4])


def test_nobody_follows_and_nobody_hangs_up() -> None:
    """Zeros throughout are the same as no array: one way to say it."""
    none = two(follows=np.zeros(2, np.int32), abort_ns=np.zeros(2, np.int64))
    assert len(none.follows) == len(none.abort_ns) == 0


@pytest.mark.parametrize(
    ("shape", "bytes_a_token"),
    [
        ("llama-2-7b", 524_288),
        ("llama-3.1-8b", 131_072),
        ("Llama-3.1-8B-fp8", 65_536),
        ("llama-3.1-70b", 327_680),
        ("opt-13b", 819_200),
        ("deepseek-v3", 70_272),
        ("32, 8, 128, 2", 131_072),
    ],
)
def test_bytes_a_token(shape: str, bytes_a_token: int) -> None:
    """The published figures of known models, and the formula; doubling the layers doubles the bytes."""
    assert parse_model_shape(shape) == bytes_a_token
    assert kv_bytes_per_token(64, 8, 128, 2) == 2 * kv_bytes_per_token(32, 8, 128, 2)


@pytest.mark.parametrize("shape", ["", "32,8,128", "32,8,128,0", "32,8,x,2", "gemma"])
def test_an_unknown_model_is_refused(shape: str) -> None:
    """A wrong number of bytes is worse than none."""
    with pytest.raises(ConfigError, match="no model shape"):
        parse_model_shape(shape)


def test_step_time_is_linear_and_checked() -> None:
    """The formula, and constants that are no durations."""
    assert StepTime(1000, 10, 5, 1).duration_ns(3, 2, 100) == 1000 + 30 + 10 + 100
    for wrong in ({"base_ns": 0.0}, {"prefill_token_ns": -1.0}, {"context_token_ns": float("nan")}):
        with pytest.raises(ConfigError):
            replace(StepTime(), **wrong)
