"""What a request generates does not depend on where its keys and values are, who else is there, or what moves them."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvmon.allocators import AllocatorConfig, ContiguousConfig, PagedConfig
from kvmon.engine import Engine, Sampling, random_weights, tiny_config
from kvmon.engine.device_memory import bytes_of
from kvmon.errors import ConfigError
from kvmon.serving import SchedulerConfig
from kvmon.serving import state as at
from tests.unit.engine.driving import Run, generate, run, take
from tests.unit.engine.models import VOCABULARY, tiny

LONGEST = 80
WINDOW = 9
SWAP = {"preemption": "swap", "host_tokens": 96}
#: A pool of so many tokens, the scheduler, and the width of the window of the model's second layer.
Policy = tuple[AllocatorConfig, SchedulerConfig, int]
POLICIES: dict[str, Policy] = {
    "pages with prefix cache": (PagedConfig(30, 4), SchedulerConfig(), 0),
    "pages of one token": (PagedConfig(100, 1), SchedulerConfig(token_budget=24), 0),
    "pages without prefix cache, chunked": (
        PagedConfig(30, 4, prefix_cache=False),
        SchedulerConfig(token_budget=16, max_sequences=9),
        0,
    ),
    "pages, admission by chunk": (PagedConfig(30, 4), SchedulerConfig(token_budget=16, admit_by="chunk"), 0),
    "pages, admission by full need": (PagedConfig(30, 4), SchedulerConfig(admit_by="full"), 0),
    "pages, unchunked": (PagedConfig(30, 4), SchedulerConfig(token_budget=32, chunked_prefill=False), 0),
    "pages, swapped": (PagedConfig(30, 4), SchedulerConfig(**SWAP), 0),  # type: ignore[arg-type]
    "pages, lfu and pins": (PagedConfig(30, 4, evict="lfu", pin_after_hits=1, pin_share=0.3), SchedulerConfig(), 0),
    "pages, sliding layers in one group": (PagedConfig(30, 4), SchedulerConfig(token_budget=24), WINDOW),
    "pages, window group": (
        PagedConfig(50, 4, prefix_cache=False, window_tokens=WINDOW),
        SchedulerConfig(token_budget=24),
        WINDOW,
    ),
    "pages, window group with its own pool": (
        PagedConfig(30, 4, prefix_cache=False, window_tokens=WINDOW, window_pool_units=30),
        SchedulerConfig(token_budget=24),
        WINDOW,
    ),
    "longest": (ContiguousConfig(40, 4), SchedulerConfig(), 0),
    "power of two, buddies": (ContiguousConfig(128, 1, reserve="pow2", placement="buddy"), SchedulerConfig(), 0),
    "oracle, best fit": (ContiguousConfig(120, 1, reserve="oracle", placement="best-fit"), SchedulerConfig(), 0),
    "chunks": (ContiguousConfig(30, 4, 8), SchedulerConfig(), 0),
    "chunks of buddies": (ContiguousConfig(128, 1, 4, placement="buddy"), SchedulerConfig(token_budget=16), 0),
    "chunks, compacted": (ContiguousConfig(110, 1, 4, compaction=True), SchedulerConfig(token_budget=24), 0),
    "chunks, swapped": (ContiguousConfig(110, 1, 4), SchedulerConfig(**SWAP), 0),  # type: ignore[arg-type]
    "chunks, compacted and swapped": (
        ContiguousConfig(110, 1, 4, compaction=True),
        SchedulerConfig(token_budget=24, **SWAP),  # type: ignore[arg-type]
        0,
    ),
    "chunks, prefixes stay behind": (ContiguousConfig(220, 1, 4, retained_prefixes=3), SchedulerConfig(), 0),
    "chunks, sliding layers": (ContiguousConfig(30, 4, 8), SchedulerConfig(token_budget=24), WINDOW),
    "chunks, whoever cannot grow is lost": (
        ContiguousConfig(110, 1, 4),
        SchedulerConfig(on_growth_failure="abort"),
        0,
    ),
}


def prompt_of(family: int, length: int) -> list[int]:
    """Prompts of a family begin alike."""
    tokens: list[int] = np.random.default_rng(family).integers(0, VOCABULARY, LONGEST)[:length].tolist()
    return tokens


@cache
def alone(family: int, length: int, window: int) -> list[int]:
    """What the model says when it has all the memory of the world and nobody else is there."""
    engine = Engine(tiny(window=window), ContiguousConfig(200))
    return generate(engine, [prompt_of(family, length)], 24)[0][0]


requests = st.lists(
    st.tuples(
        st.integers(0, 8),  # steps until it comes
        st.integers(0, 2),  # family
        st.integers(1, 60),  # tokens of the prompt
        st.integers(1, 24),  # to generate
        st.sampled_from([1, 1, 1, 2, 3]),  # samples
        st.sampled_from([0, 0, 0, 0, 1, 5]),  # aborted so many steps later
    ),
    min_size=1,
    max_size=10,
)


@settings(max_examples=12)
@pytest.mark.parametrize("name", POLICIES)
@given(requests)
def test_everybody_gets_the_right_tokens_or_a_stated_error(name: str, arrivals: list[tuple[int, ...]]) -> None:
    """Preempted, moved, swapped, shared, forked, in chunks, in any order: the tokens are those of a request alone.

    Everything that nobody may read holds NaN meanwhile, and at the end all memory is back.
    """
    allocator, scheduler, window = POLICIES[name]
    engine = Engine(tiny(window=window), allocator, scheduler, poison=True)
    done, asked = Run(), {}
    aborts: list[tuple[int, int]] = []
    for delay, family, length, output, samples, patience in arrivals:
        for _ in range(delay):
            _step(engine, done, aborts)
        try:
            numbers = engine.add(prompt_of(family, length), Sampling(output, ignore_eos=True, n=samples))
        except ConfigError as error:
            assert "needs" in str(error) or "more than" in str(error)
            continue
        asked.update(dict.fromkeys(numbers, (family, length, output)))
        aborts += [(done.steps + patience, number) for number in numbers[:1] if patience]
    while engine.has_work:
        _step(engine, done, aborts)
    for number, (family, length, output) in asked.items():
        expected = alone(family, length, window)[:output]
        got = done.tokens.get(number, [])
        if done.finish[number] == "length":
            assert got == expected
        else:
            assert got == expected[: len(got)]
            assert done.finish[number] == "abort" or "out of KV memory" in done.errors[number]
    tally = engine.scheduler.state.tally
    assert engine.running == engine.waiting == tally[at.HELD_PAGES] == tally[at.WINDOW_HELD] == 0


def _step(engine: Engine, done: Run, aborts: list[tuple[int, int]]) -> None:
    take(engine, done)
    engine.scheduler.check()
    for moment, number in list(aborts):
        if done.steps >= moment:
            aborts.remove((moment, number))
            engine.abort(number)
    assert done.steps < 5000


#: What must have happened under pressure, so that the comparison was about it, and the bytes that were copied for it.
PRESSED = {
    "pages with prefix cache": ((at.PREEMPTIONS, at.HIT_TOKENS), "fork", at.COPIED_TOKENS),
    "pages without prefix cache, chunked": ((at.PREEMPTIONS,), "fork", at.COPIED_TOKENS),
    "pages, swapped": ((at.PREEMPTIONS,), "swap in", at.SWAPPED_IN_TOKENS),
    "pages, window group": ((at.PREEMPTIONS,), None, None),
    "pages, window group with its own pool": ((at.PREEMPTIONS,), None, None),
    "chunks": ((at.PREEMPTIONS, at.RELOCATIONS), "relocation", at.COPIED_TOKENS),
    "chunks of buddies": ((at.PREEMPTIONS, at.RELOCATIONS), "relocation", at.COPIED_TOKENS),
    "chunks, compacted": ((at.COMPACTIONS,), "compaction", at.COMPACTED_TOKENS),
    "chunks, swapped": ((at.PREEMPTIONS,), "swap out", at.SWAPPED_OUT_TOKENS),
    "chunks, compacted and swapped": ((at.PREEMPTIONS, at.SWAPPED_IN_TOKENS), "compaction", at.COMPACTED_TOKENS),
}


@pytest.mark.parametrize("name", PRESSED)
def test_under_pressure_every_byte_that_is_copied_is_counted(name: str) -> None:
    """Many at once in a pool that is too small: right tokens, and bytes copied = tokens moved times bytes a token."""
    happened, why, counter = PRESSED[name]
    allocator, scheduler, window = POLICIES[name]
    engine = Engine(tiny(window=window), allocator, scheduler, poison=True)
    shapes = [(family, 12 + 5 * k) for k in range(5) for family in range(3)]
    tokens = generate(engine, [prompt_of(*shape) for shape in shapes], 20, n=2 if why == "fork" else 1)
    for shape, samples in zip(shapes, tokens, strict=True):
        assert all(sample == alone(*shape, window)[:20] for sample in samples)
    tally = engine.scheduler.state.tally
    assert all(tally[column] for column in happened)
    if why is not None and counter is not None:
        assert engine.store.copied[why] == tally[counter] * engine.store.token_bytes > 0


def test_what_is_generated_depends_on_what_is_read() -> None:
    """Another first token of the prompt changes what follows: otherwise the comparisons here would say nothing."""
    engine = Engine(tiny(), ContiguousConfig(2000))
    prompts = [prompt_of(family, length) for family in range(3) for length in (20, 40, 60)]
    changed = [[(prompt[0] + 1) % VOCABULARY, *prompt[1:]] for prompt in prompts]
    pairs = zip(generate(engine, prompts, 20), generate(engine, changed, 20), strict=True)
    assert sum(one != other for one, other in pairs) >= 8


def test_a_prefix_that_stayed_behind_is_copied_not_computed() -> None:
    """The second request of a family begins with the region of the first one; its tokens are right all the same."""
    engine = Engine(tiny(), ContiguousConfig(220, 1, 4, retained_prefixes=3), poison=True)
    first = engine.add(prompt_of(0, 40), Sampling(8), shared_prefix_tokens=32)
    run(engine)
    second = engine.add(prompt_of(0, 60), Sampling(8), shared_prefix_tokens=32)
    done = run(engine)
    assert first != second and done.tokens[second[0]] == alone(0, 60, 0)[:8]
    assert engine.store.copied["prefix"] == 32 * engine.store.token_bytes
    assert engine.scheduler.state.tally[at.HIT_TOKENS] == 32


def test_a_later_turn_finds_what_the_model_said_before() -> None:
    """Generated pages are named like those of a prompt: the next turn of a chat hits them."""
    engine = Engine(tiny(), PagedConfig(100, 4))
    prompt = prompt_of(1, 18)
    (first,) = engine.add(prompt, Sampling(20, ignore_eos=True))
    said = run(engine).tokens[first]
    engine.add([*prompt, *said, 5, 6], Sampling(4, ignore_eos=True))
    before = int(engine.scheduler.state.tally[at.HIT_TOKENS])
    run(engine)
    assert int(engine.scheduler.state.tally[at.HIT_TOKENS]) - before == (18 + 20 - 1) // 4 * 4


def test_a_contiguous_block_is_read_where_it_is() -> None:
    """Keys and values of a sequence are a view into the pool, at the address of its first unit."""
    engine = Engine(tiny(), ContiguousConfig(50, 4))
    (number,) = engine.add(prompt_of(0, 30), Sampling(4))
    engine.step()
    state = engine.scheduler.state
    unit = int(state.held[state.live[number, at.SEAT], at.START])
    for layer in range(2):
        view = engine.store.block(layer, unit, 30)
        pool = engine.store.data[layer]
        assert view.data_ptr() == pool[:, (unit - 1) * 4 :].data_ptr()
        assert view.untyped_storage().data_ptr() == engine.store.data.untyped_storage().data_ptr()
        assert view.shape == (2, 30, 2, 32)


def test_a_paged_step_reads_no_more_than_the_pages_of_the_batch() -> None:
    """Tokens fetched in a step = those of the pages of the running sequences, in each layer."""
    engine = Engine(tiny(), PagedConfig(100, 8))
    for family, length in ((0, 30), (1, 5), (2, 17)):
        engine.add(prompt_of(family, length), Sampling(12, ignore_eos=True))
    engine.step()
    before = engine.read_tokens
    engine.step()
    assert engine.read_tokens - before == 2 * 8 * (4 + 1 + 3)


def test_samples_are_drawn_apart_and_again_the_same() -> None:
    """With a temperature the samples of a prompt differ, and the same seed gives the same ones in every layout."""
    wanted = Sampling(16, temperature=1.0, top_p=0.9, seed=7, ignore_eos=True, n=3)
    found = []
    for pool in (PagedConfig(200, 4), PagedConfig(26, 4), ContiguousConfig(200, chunk_tokens=8)):
        engine = Engine(tiny(), pool, poison=True)
        numbers = engine.add(prompt_of(2, 21), wanted)
        done = run(engine)
        found.append([done.tokens[number] for number in numbers])
    assert found[0] == found[1] == found[2]
    assert len({tuple(sample) for sample in found[0]}) == 3


@pytest.mark.parametrize(("temperature", "top_p"), [(2.0, 1e-6), (1e-310, 1.0), (5e-324, 0.5)])
def test_what_leaves_only_the_most_likely_token_is_greedy(temperature: float, top_p: float) -> None:
    """A tiny top_p whatever the temperature, and a temperature by which no score can be divided."""
    engine = Engine(tiny(), PagedConfig(100, 4))
    (number,) = engine.add(prompt_of(0, 20), Sampling(10, temperature=temperature, top_p=top_p, ignore_eos=True))
    assert run(engine).tokens[number] == alone(0, 20, 0)[:10]


def test_stop_tokens_end_a_request_and_are_not_said(tmp_path: object) -> None:
    """A request ends with its stop token; the model's own end of sequence can be ignored."""
    expected = alone(1, 30, 0)
    stop = expected[6]
    end = expected.index(stop)
    model = tiny()
    for eos, sampling in (((), Sampling(20, stop_tokens=(stop,))), ((stop,), Sampling(20))):
        engine = Engine(model, PagedConfig(100, 4), eos=eos)
        (number,) = engine.add(prompt_of(1, 30), sampling)
        done = run(engine)
        assert done.tokens.get(number, []) == expected[:end] and done.finish[number] == "stop"
    engine = Engine(model, PagedConfig(100, 4), eos=(stop,))
    (number,) = engine.add(prompt_of(1, 30), Sampling(20, ignore_eos=True))
    assert run(engine).tokens[number] == expected[:20]


def test_an_abort_frees_its_memory_at_once() -> None:
    """Between two steps, a running request and one that waits."""
    engine = Engine(tiny(), PagedConfig(20, 4, prefix_cache=False), poison=True)
    first, second = (engine.add(prompt_of(k, 60), Sampling(10))[0] for k in range(2))
    engine.step()
    assert (engine.running, engine.waiting) == (1, 1)
    assert engine.abort(second) and engine.abort(first) and not engine.abort(first)
    assert engine.scheduler.state.tally[at.HELD_PAGES] == 0
    assert {(output.request, output.finish) for output in engine.step()} == {(first, "abort"), (second, "abort")}
    assert not engine.has_work


@pytest.mark.parametrize(
    ("prompt", "sampling", "says"),
    [
        ([], Sampling(1), "empty prompt"),
        ([0, VOCABULARY], Sampling(1), f"token {VOCABULARY} is not in the vocabulary"),
        ([-1], Sampling(1), "token -1 is not"),
        ([1] * 70, Sampling(11), "81, more than the 80"),
    ],
)
def test_a_prompt_that_can_never_run_is_refused_with_numbers(prompt: list[int], sampling: Sampling, says: str) -> None:
    """Nothing is queued, and the message says what to do."""
    engine = Engine(tiny(), PagedConfig(20, 4))
    with pytest.raises(ConfigError, match=says):
        engine.add(prompt, sampling)
    assert not engine.has_work


def test_a_prompt_larger_than_the_pool_is_refused_and_recorded() -> None:
    """Its units and those of the pool stand in the message; observers saw it come and go."""
    engine = Engine(tiny(), PagedConfig(20, 4), max_model_len=1000)
    seen: list[int] = []
    engine.observers.append(lambda words: seen.extend(words.tolist()))
    with pytest.raises(ConfigError, match=r"never_fits.*25 units of 4 tokens and the pool has 20"):
        engine.add([1] * 100, Sampling(4))
    assert seen and engine.has_work, "a step has to say that it is gone"
    assert engine.step() == [] and not engine.has_work


@pytest.mark.parametrize(
    ("allocator", "scheduler", "says"),
    [
        (PagedConfig(9, 4), SchedulerConfig(lookahead_tokens=2), "no draft model"),
        (PagedConfig(9, 4, prefix_cache=False, window_tokens=7), SchedulerConfig(), "no layers with a window of 7"),
        (
            PagedConfig(9, 4, prefix_cache=False, window_tokens=7),
            SchedulerConfig(preemption="swap", host_tokens=8),
            "not swapped",
        ),
    ],
)
def test_pools_that_the_model_cannot_use_are_refused(
    allocator: AllocatorConfig, scheduler: SchedulerConfig, says: str
) -> None:
    """What would be silently wrong is an error."""
    with pytest.raises(ConfigError, match=says):
        Engine(tiny(), allocator, scheduler)


def test_a_pool_larger_than_the_memory_is_refused() -> None:
    """One line with both sizes, before anything is allocated."""
    from kvmon.errors import SystemRefused

    with pytest.raises(SystemRefused, match=r"the pool takes .* and this machine has .* free: choose a smaller one"):
        Engine(tiny(), PagedConfig(2**26, 16))


@pytest.mark.parametrize("tied", [False, True])
def test_every_weight_is_counted_once(tied: bool) -> None:
    """A head that is the embedding, too, takes no memory of its own."""
    config = replace(tiny_config(VOCABULARY), tied=tied)
    weights = random_weights(config, 0)
    layers = 2 * (64 * 2 + 256 * 64 + 64 * 128 + 3 * 64 * 128)
    ends = (1 if tied else 2) * VOCABULARY * 64 + 64
    assert bytes_of(weights.tensors(), weights.embedding.device) == 4 * (layers + ends)
