"""Synthetic traffic: published means, burstiness, popularity, conversations, determinism, and what is refused."""

from __future__ import annotations

from collections import Counter
from dataclasses import fields, replace

import numpy as np
import pytest

from kvmon.errors import ConfigError
from kvmon.serving import Workload, page_hashes
from kvmon.serving.workloads import (
    CLASS_AGENT,
    CLASS_CHAT,
    DISTRIBUTIONS,
    KINDS,
    LENGTHS,
    AtOnce,
    ClosedLoop,
    OpenLoop,
    Patience,
    SharedPrefixes,
    Traffic,
    chat_and_agents,
    generate,
    merge,
    parse_distribution,
    parse_lengths,
)

MANY = 60_000


def same(one: Workload, other: Workload) -> bool:
    """Whether all arrays agree."""
    return all(np.array_equal(getattr(one, field.name), getattr(other, field.name)) for field in fields(Workload))


def identities(workload: Workload) -> list[list[int]]:
    """The identities of each request."""
    return [part.tolist() for part in np.split(workload.hashes, workload.hash_offsets[1:-1])]


@pytest.mark.parametrize(("name", "prompt", "output"), [("sharegpt", 161, 338), ("alpaca", 19.3, 58.5)])
def test_published_means(name: str, prompt: float, output: float) -> None:
    """ShareGPT and Alpaca have the means of the PagedAttention paper, within 2 %, in sequences of 2,048 tokens."""
    workload = generate(Traffic(MANY, 1, lengths=name))
    assert workload.prompt_tokens.mean() == pytest.approx(prompt, rel=0.02)
    assert workload.output_tokens.mean() == pytest.approx(output, rel=0.02)
    assert np.all(workload.prompt_tokens + workload.token_limit == 2048)
    assert np.all(workload.output_tokens <= workload.token_limit)


def test_the_shape_of_sharegpt() -> None:
    """The output is a gamma with a CV of 0.87, the input has a heavy tail: its mean is far above its median."""
    workload = generate(Traffic(MANY, 2))
    assert workload.output_tokens.std() / workload.output_tokens.mean() == pytest.approx(0.87, rel=0.02)
    assert workload.prompt_tokens.mean() > 1.5 * np.median(workload.prompt_tokens)


def test_long_context_is_near_mooncake() -> None:
    """p50 6,909 in and 350 out, mean 12,035 and 343, p99 85,400 in the conversation trace."""
    workload = generate(Traffic(MANY, 1, lengths="long-context"))
    assert np.median(workload.prompt_tokens) == pytest.approx(6909, rel=0.03)
    assert workload.prompt_tokens.mean() == pytest.approx(12_035, rel=0.03)
    assert np.percentile(workload.prompt_tokens, 99) == pytest.approx(85_400, rel=0.1)
    assert workload.prompt_tokens.max() > 100_000
    assert np.median(workload.output_tokens) == pytest.approx(350, rel=0.03)
    assert workload.output_tokens.mean() == pytest.approx(343, rel=0.04)


@pytest.mark.parametrize(
    ("text", "mean", "cv", "least", "most"),
    [
        ("fixed:7", 7, 0, 7, 7),
        ("uniform:20-2000", 1010, 0.566, 20, 2000),
        ("log-uniform:50-4000", 901.4, 1.105, 50, 4000),
        ("one-of:50,1500", 775, 0.935, 50, 1500),
        ("lognormal:500,2", 500, 2, 1, 2**30),
        ("gamma:500,0.5", 500, 0.5, 1, 2**30),
        ("normal:500,0.1", 500, 0.1, 1, 2**30),
    ],
)
def test_distributions(text: str, mean: float, cv: float, least: int, most: int) -> None:
    """Mean and coefficient of variation are what the words say, and nothing is outside its bounds."""
    drawn = parse_distribution(text).draw(np.random.default_rng(5), 200_000)
    assert drawn.mean() == pytest.approx(mean, rel=0.02)
    assert drawn.std() / drawn.mean() == pytest.approx(cv, rel=0.06)
    assert least <= drawn.min() and drawn.max() <= most
    assert text.partition(":")[0] in DISTRIBUTIONS
    if text.startswith(("uniform", "one-of")):
        assert (drawn.min(), drawn.max()) == (least, most)


@pytest.mark.parametrize("cv", [0.3, 1.0, 3.0, 8.0])
def test_arrivals_have_their_rate_and_burstiness(cv: float) -> None:
    """Gaps have the mean 1 / rate and the coefficient of variation; the first request comes at 0."""
    workload = generate(Traffic(MANY, 3, arrivals=OpenLoop(20.0, cv)))
    gaps = np.diff(workload.arrival_ns) / 1e9
    assert workload.arrival_ns[0] == 0
    assert gaps.mean() == pytest.approx(1 / 20, rel=0.1)
    assert gaps.std() / gaps.mean() == pytest.approx(cv, rel=0.06)


def test_poisson_counts_vary_as_they_should() -> None:
    """Arrivals a second have a variance like their mean."""
    workload = generate(Traffic(MANY, 3, arrivals=OpenLoop(10.0)))
    counts = np.bincount(workload.arrival_ns // 10**9)
    assert counts.var() / counts.mean() == pytest.approx(1.0, abs=0.1)


def test_everybody_at_once() -> None:
    """Saturated: all requests are there at 0."""
    workload = generate(Traffic(50, arrivals=AtOnce()))
    assert not workload.arrival_ns.any() and workload.independent.all()


@pytest.mark.parametrize("kind", KINDS)
def test_a_closed_loop_never_has_more_than_its_clients(kind: str) -> None:
    """Each request is followed by one at most, and only N follow nobody: N chains, whatever the engine does."""
    workload = generate(Traffic(500, 4, kind=kind, arrivals=ClosedLoop(7, 3.0)))
    assert workload.independent.sum() == 7
    assert max(Counter(workload.follows[workload.follows > 0].tolist()).values()) == 1
    assert not workload.arrival_ns[workload.independent].any()
    if kind == "requests":
        assert workload.arrival_ns[~workload.independent].mean() / 1e9 == pytest.approx(3.0, rel=0.15)


def test_more_clients_than_requests() -> None:
    """Then everybody asks once."""
    assert generate(Traffic(5, arrivals=ClosedLoop(9))).independent.all()


def test_popularity_of_prefixes_is_zipfs() -> None:
    """Prefix k is used in proportion to k**-s, by the share of the requests that was asked for."""
    shared = SharedPrefixes(20, 64, zipf=1.2, share=0.6)
    workload = generate(Traffic(MANY, 5, prefixes=shared, class_by_prefix=True))
    uses = np.bincount(workload.class_id, minlength=21)
    assert uses[1:].sum() / MANY == pytest.approx(0.6, abs=0.01)
    expected = np.arange(1, 21) ** -1.2
    assert uses[1:] / uses[1:].sum() == pytest.approx(expected / expected.sum(), abs=0.01)
    slope = np.polyfit(np.log(np.arange(1, 21)), np.log(uses[1:]), 1)[0]
    assert slope == pytest.approx(-1.2, abs=0.05)


def test_requests_with_the_same_prefix_share_it_and_others_do_not() -> None:
    """Identities agree within a prefix and nowhere else; the prefix is part of the prompt."""
    workload = generate(Traffic(200, 5, prefixes=SharedPrefixes(3, 70, share=0.8), class_by_prefix=True))
    names = identities(workload)
    by_class: dict[int, set[tuple[int, ...]]] = {}
    for which, ids in zip(workload.class_id.tolist(), names, strict=True):
        by_class.setdefault(which, set()).add(tuple(ids))
    assert by_class.pop(0) == {()}
    assert set(by_class) == {1, 2, 3} and all(len(ids) == 1 for ids in by_class.values())
    assert len({ids[0] for group in by_class.values() for ids in group}) == 3
    assert workload.prompt_tokens[workload.class_id > 0].min() > 70


def turns(workload: Workload) -> list[tuple[int, int]]:
    """Pairs (request, the one it follows), from 0."""
    return [(i, int(k) - 1) for i, k in enumerate(workload.follows.tolist()) if k]


@pytest.mark.parametrize("kind", ["chats", "agents"])
def test_a_turn_begins_with_all_that_was_said(kind: str) -> None:
    """The next prompt holds prompt and answer of the turn before, and its identities begin with that turn's."""
    workload = generate(Traffic(400, 6, kind=kind, prefixes=SharedPrefixes(2, 100)))
    names = identities(workload)
    assert len(turns(workload)) > 200
    for later, earlier in turns(workload):
        said = int(workload.prompt_tokens[earlier] + workload.output_tokens[earlier])
        assert workload.prompt_tokens[later] > said
        assert len(names[earlier]) == said // 16
        assert names[later][: said // 16] == names[earlier]
    heads = [names[i] for i in np.flatnonzero(workload.independent)]
    assert len({ids[0] for ids in heads}) == 2, "the shared prefix is shared"
    assert len({ids[6] for ids in heads if len(ids) > 6}) == sum(len(ids) > 6 for ids in heads), "what is behind is not"


def test_a_conversation_ends_where_no_room_is_left() -> None:
    """No sequence is longer than --max-tokens, however many turns a chat would have."""
    workload = generate(Traffic(2000, 6, kind="chats", steps="fixed:50", max_tokens=3000, limit=400))
    assert (workload.prompt_tokens + workload.output_tokens).max() <= 3000
    assert (workload.prompt_tokens + workload.token_limit).max() <= 3000
    assert workload.output_tokens.max() <= workload.token_limit.max() == 400
    assert len(workload) == 2000
    assert 1 < len(workload) / workload.independent.sum() < 20


def test_steps_and_pauses_are_those_that_were_asked_for() -> None:
    """Five turns a chat, ten seconds in between."""
    workload = generate(Traffic(5000, 6, kind="chats", steps="fixed:5", pause_s=10.0, max_tokens=65_536))
    assert workload.independent.sum() == 1000
    pauses = workload.arrival_ns[~workload.independent] / 1e9
    assert pauses.mean() == pytest.approx(10.0, rel=0.05)
    assert pauses.std() == pytest.approx(10.0, rel=0.07)


def test_agents_bring_a_big_header_and_think_shortly() -> None:
    """Every prompt begins with the tools; steps follow each other within seconds."""
    workload = generate(Traffic(3000, 6, kind="agents"))
    assert workload.prompt_tokens.min() > 4000
    assert np.median(workload.arrival_ns[~workload.independent]) < 3e9
    assert set(workload.class_id.tolist()) == {CLASS_AGENT}
    assert 8 < len(workload) / workload.independent.sum() < 16
    assert len({ids[0] for ids in identities(workload)}) == 1


def test_a_beginning_of_the_workload_is_a_beginning_of_the_traffic() -> None:
    """The first requests belong to many chats, in the order in which those begin."""
    workload = generate(Traffic(1000, 6, kind="chats")).first(100)
    assert workload.independent.sum() > 50
    assert np.all(np.diff(workload.arrival_ns[workload.independent]) >= 0)


def test_who_hangs_up() -> None:
    """The share and the mean patience are those that were asked for; nobody else ever does."""
    workload = generate(Traffic(MANY, 7, patience=Patience(0.25, 4.0)))
    gives_up = workload.abort_ns > 0
    assert gives_up.mean() == pytest.approx(0.25, abs=0.01)
    assert workload.abort_ns[gives_up].mean() / 1e9 == pytest.approx(4.0, rel=0.03)
    assert len(generate(Traffic(10, 7, patience=Patience(0.0, 4.0))).abort_ns) == 0


@pytest.mark.parametrize("kind", KINDS)
def test_the_seed_decides(kind: str) -> None:
    """Equal descriptions agree, other seeds do not, and global random state changes nothing."""
    traffic = Traffic(300, 8, kind=kind, patience=Patience(0.2, 1.0), prefixes=SharedPrefixes(4, 64))
    first = generate(traffic)
    np.random.seed(1)
    assert same(first, generate(traffic))
    assert not np.array_equal(first.prompt_tokens, generate(replace(traffic, seed=9)).prompt_tokens)


def test_each_concern_has_a_stream_of_its_own() -> None:
    """Other arrivals or aborts leave the lengths alone: the same requests in another order of time."""
    base = Traffic(300, 8)
    for other in (replace(base, arrivals=OpenLoop(9.0, 4.0)), replace(base, patience=Patience(0.5, 2.0))):
        assert np.array_equal(generate(base).prompt_tokens, generate(other).prompt_tokens)
        assert np.array_equal(generate(base).output_tokens, generate(other).output_tokens)


def test_merged_workloads_share_nothing() -> None:
    """All requests are there by arrival, followers follow the same ones, and identities never meet."""
    chats = generate(Traffic(200, 1, kind="chats", prefixes=SharedPrefixes(2, 64), patience=Patience(0.3, 1.0)))
    agents = generate(Traffic(100, 2, kind="agents", arrivals=ClosedLoop(3)))
    both = merge(chats, agents)
    assert len(both) == 300
    assert np.all(np.diff(both.arrival_ns[both.independent]) >= 0)
    for part, which in ((chats, CLASS_CHAT), (agents, CLASS_AGENT)):
        mine = np.flatnonzero(both.class_id == which)
        assert np.array_equal(both.prompt_tokens[mine], part.prompt_tokens)
        assert np.array_equal(both.arrival_ns[mine], part.arrival_ns)
        again = np.where(both.follows[mine] > 0, np.searchsorted(mine, both.follows[mine] - 1) + 1, 0)
        assert np.array_equal(again, part.follows)
        assert np.array_equal(np.diff(both.hash_offsets)[mine], np.diff(part.hash_offsets))
    assert np.array_equal(both.abort_ns[both.class_id == CLASS_CHAT], chats.abort_ns)
    names = identities(both)
    groups = [{i for r in np.flatnonzero(both.class_id == c) for i in names[r]} for c in (CLASS_CHAT, CLASS_AGENT)]
    assert not groups[0] & groups[1]
    assert same(replace(merge(chats), name=chats.name), chats)
    with pytest.raises(ConfigError, match="nothing to merge"):
        merge()


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"requests": 0}, "number of requests is 0"),
        ({"requests": 10**12}, "number of requests"),
        ({"seed": -1}, "seed is -1"),
        ({"kind": "chat"}, "did you mean chats"),
        ({"lengths": "sharegtp"}, "did you mean sharegpt"),
        ({"lengths": "fixed:5"}, "only one length: write PROMPT/OUTPUT, such as fixed:5/fixed:100"),
        ({"lengths": "qqq"}, "choose sharegpt, alpaca"),
        ({"lengths": "unifrom:1-2/fixed:1"}, "did you mean uniform"),
        ({"lengths": "fixed:5000/fixed:1", "max_tokens": 5000}, "leave no room"),
        ({"lengths": "fixed:300000/fixed:1"}, "leave no room"),
        ({"prefixes": SharedPrefixes(1, 2048)}, "leave no room"),
        ({"max_tokens": 1}, "longest sequence"),
        ({"limit": 0}, "limit of generated tokens"),
        ({"steps": "fixed:3"}, "choose chats or agents"),
        ({"pause_s": 1.0}, "choose chats or agents"),
        ({"kind": "chats", "pause_s": float("nan")}, "pause between steps is nan"),
        ({"kind": "chats", "pause_s": -1.0}, "0 or more"),
        ({"class_id": -1}, "class is -1"),
        ({"class_id": 1, "class_by_prefix": True}, "give one of them"),
        ({"class_by_prefix": True}, "need shared prefixes"),
        ({"arrivals": OpenLoop(1e-6), "requests": 20_000}, "more than 126 years"),
        ({"kind": "chats", "pause_s": 1e8, "requests": 1000}, "more than 126 years"),
        ({"kind": "agents", "requests": 300_000}, "fewer or shorter requests"),
    ],
)
def test_what_no_traffic_can_be(changes: dict[str, object], says: str) -> None:
    """Each impossible description is refused in one line."""
    with pytest.raises(ConfigError, match=says) as caught:
        generate(Traffic(**({"requests": 10} | changes)))  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("wrong", [0.0, -1.0, float("nan"), float("inf")])
def test_numbers_that_cannot_be(wrong: float) -> None:
    """Rates, coefficients of variation and patience are above 0 and finite; shares are not above 1."""
    for make in (OpenLoop, lambda cv: OpenLoop(1.0, cv), lambda s: Patience(0.5, s)):
        with pytest.raises(ConfigError):
            make(wrong)
    for make in (
        lambda: ClosedLoop(0),
        lambda: ClosedLoop(1, -1.0),
        lambda: ClosedLoop(1, float("nan")),
        lambda: Patience(1.1, 1.0),
        lambda: Patience(float("nan"), 1.0),
        lambda: SharedPrefixes(0, 10),
        lambda: SharedPrefixes(1, 0),
        lambda: SharedPrefixes(1, 1, share=1.5),
        lambda: SharedPrefixes(1, 1, zipf=-0.1),
        lambda: SharedPrefixes(1, 1, zipf=float("nan")),
    ):
        with pytest.raises(ConfigError):
            make()


@pytest.mark.parametrize(
    "text",
    [
        "", "fixed", "fixed:", "fixed:x", "fixed:0", "fixed:1.5", "fixed:1,2", "uniform:5", "uniform:9-3",
        "uniform:-3-9", "uniform:1-inf", "one-of:", "one-of:1,,2", "gamma:5", "gamma:5,0", "gamma:5,nan",
        "gamma:nan,1", "gamma:0,1", "lognormal:5,1e200", "normal:1e300,1",
    ],
)  # fmt: skip
def test_distributions_that_cannot_be_drawn(text: str) -> None:
    """A word that is no distribution says how one is written."""
    with pytest.raises(ConfigError):
        parse_distribution(text)


def test_every_name_is_listed_with_what_it_is() -> None:
    """Every named length can be parsed, and no name hides another one."""
    assert not set(LENGTHS) & set(DISTRIBUTIONS)
    for name, (spec, most, what) in LENGTHS.items():
        lengths = parse_lengths(name)
        assert lengths.max_tokens == most and what
        assert parse_lengths(spec).prompt == lengths.prompt


def test_chats_and_agents_of_the_demo() -> None:
    """Equal seeds agree, others do not; agents and chats have their lengths, and everybody the shared prefix."""
    demand = chat_and_agents(3, 4000, rate_per_s=8.0)
    again = chat_and_agents(3, 4000, rate_per_s=8.0)
    assert np.array_equal(demand.arrival_ns, again.arrival_ns) and np.array_equal(
        demand.prompt_tokens, again.prompt_tokens
    )
    assert not np.array_equal(demand.prompt_tokens, chat_and_agents(4, 4000).prompt_tokens)
    agents = demand.class_id == CLASS_AGENT
    assert set(demand.class_id.tolist()) == {CLASS_CHAT, CLASS_AGENT}
    assert agents.mean() == pytest.approx(0.35, abs=0.03)
    assert demand.prompt_tokens[agents].min() >= 650 and demand.prompt_tokens[agents].max() <= 4600
    assert demand.output_tokens[agents].min() >= 800 and demand.output_tokens[agents].max() <= 1500
    assert demand.output_tokens[~agents].mean() == pytest.approx(200, rel=0.1)
    assert 4000 / (demand.arrival_ns[-1] / 1e9) == pytest.approx(8.0, rel=0.1)
    assert page_hashes(demand, 1, 16).tolist() == page_hashes(demand, 2, 16).tolist()
    for wrong in ({"rate_per_s": 0.0}, {"agent_share": 1.5}, {"shared_prefix_tokens": -1}):
        with pytest.raises(ConfigError):
            chat_and_agents(1, 10, **wrong)
    with pytest.raises(ConfigError):
        chat_and_agents(1, 0)
    assert chat_and_agents(1, 3, shared_prefix_tokens=0).hash_tokens == 0
