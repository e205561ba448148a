"""Searches whose tokens an engine draws: without chance they are the native sampler's, piece by piece."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest

from suite.engines.base import Engine, Limits
from suite.engines.native import NativeEngine
from suite.engines.openai_server import OpenAIEngine
from suite.engines.searching import EngineSampler
from suite.errors import UnitError
from suite.harness.meter import RequestMeter
from suite.methods.search.asks import run
from suite.methods.search.base import Desk
from suite.methods.search.ledger import Ledger
from suite.methods.search.policy import Policy
from suite.methods.search.sampler import NativeSampler
from suite.methods.search.trace import Problem, Trace
from suite.models.language_model import LanguageModel
from suite.models.loaders import hf
from tests.engines.serving import serving
from tests.engines.test_contract import LAB, PROMPTS

IDS = PROMPTS[0].ids


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    return hf.load(hf.Path(LAB.directory), "fp32", LAB.name, "")


@pytest.fixture(scope="module")
def native() -> Iterator[NativeEngine]:
    with NativeEngine(LAB, 1, Limits(generate_s=60)) as started:
        yield started


@pytest.fixture(scope="module", params=["native", "openai"])
def engine(request: pytest.FixtureRequest, native: NativeEngine) -> Iterator[Engine]:
    if request.param == "native":
        yield native
        return
    with serving(native) as url, OpenAIEngine(LAB, 1, Limits(generate_s=60), url) as started:
        yield started


def search(sampler, what, count: int = 1, temperature: float = 0.0, **fields):
    """What `count` searches found, and their ledgers."""
    problems = [Problem(f"p{i}", "", IDS, **{"max_new_tokens": 40, "seed": i, **fields}) for i in range(count)]
    policies = [Policy(problem, temperature, 1.0, Ledger()) for problem in problems]
    roots = [policy.root for policy in policies]
    sampler.prefill(roots)
    found = dict(run([what(policy) for policy in policies], Desk(sampler, None).serve))
    ledgers = [policy.ledger for policy in policies]
    sampler.settle(roots, ledgers)
    return [found[i] for i in range(count)], ledgers


def seen(traces: list[Trace]) -> list[tuple]:
    return [(t.all_ids, t.text, t.end, t.reached, t.length) for t in traces]


def words(model: LanguageModel) -> list[str]:
    """What the model says greedily, token by token."""
    (chain,), _ = _greedy(model)
    return [model.tokenizer.decode([token]) for token in chain.all_ids]


def _greedy(model: LanguageModel):
    async def whole(policy):
        return await policy.finish([policy.root])

    found, ledgers = search(NativeSampler(model, RequestMeter()), whole)
    return found[0], ledgers


def test_the_same_pieces_as_the_native_sampler(engine: Engine, model: LanguageModel) -> None:
    """Steps, a text written between, a limit, the end: ids, texts, ends, log-probabilities and ledger."""
    step = next(word for word in words(model)[2:] if word.strip())

    async def pieces(policy):
        chains = await policy.step([policy.root] * 2)
        written = await policy.write(chains[0], step)
        chains = await policy.finish([written, chains[1]], most=5)
        return await policy.finish(chains)

    ours, [ledger] = search(EngineSampler(engine, model), pieces, step=step)
    theirs, [expected] = search(NativeSampler(model, RequestMeter()), pieces, step=step)
    assert seen(ours[0]) == seen(theirs[0])
    for one, other in zip(ours[0], theirs[0], strict=True):
        assert one.depth > 2
        assert one.all_logprobs == pytest.approx(other.all_logprobs, abs=1e-3)
    assert replace(ledger, prefilled=0, flops=0) == replace(expected, prefilled=0, flops=0)
    assert ledger.generated > 0


@pytest.mark.parametrize("counts", [True, False])
def test_what_an_engine_computed_is_known_where_it_counts_what_it_found(counts: bool, model, monkeypatch) -> None:
    """Two pieces of 5 tokens behind the prompt, two more behind these; 21 tokens of the four prompts were found."""
    found = iter((100.0, 121.0))

    async def pieces(policy):
        return await policy.finish(await policy.finish([policy.root] * 2, most=5), most=5)

    with NativeEngine(LAB, 1, Limits(generate_s=60)) as engine:
        monkeypatch.setattr(engine, "metrics", lambda: {"prefix_cache_hits": next(found)} if counts else {})
        _, [ledger] = search(EngineSampler(engine, model), pieces)
    if not counts:
        assert (ledger.prefilled, ledger.flops) == (None, None)
        return
    flops, length = model.config.flops, len(IDS)
    asked = 2 * length + 2 * (length + 5)
    assert ledger.prefilled == asked - 21
    drawn = 2 * flops(4, length) + 2 * flops(4, length + 5)
    assert ledger.flops == pytest.approx(drawn + 4 * flops((asked - 21) / 4, 21 / 4))


def test_a_stop_text_ends_a_trace_with_its_token(engine: Engine, model: LanguageModel) -> None:
    stop = next(word for word in words(model)[3:] if word.strip())

    async def whole(policy):
        return await policy.finish([policy.root])

    (ours,), [ledger] = search(EngineSampler(engine, model), whole, stop=(stop,))
    (theirs,), _ = search(NativeSampler(model, RequestMeter()), whole, stop=(stop,))
    assert seen(ours) == seen(theirs)
    assert ours[0].end == "stop"
    assert stop not in ours[0].text
    assert ledger.generated == ours[0].length


def test_a_step_with_the_final_text_is_the_last(engine: Engine, model: LanguageModel) -> None:
    """What is no step of its own - a whole chain, a piece up to another text - goes on behind it."""
    said = [word for word in words(model)[2:] if word.strip()]
    final, step = said[0], said[1]

    async def pieces(policy):
        stepped = await policy.step([policy.root])
        other = await policy.first([policy.root], 1, until=said[2])
        whole = await policy.finish([policy.root])
        return [*await policy.step(stepped), *other, *whole]

    (ours,), _ = search(EngineSampler(engine, model), pieces, step=step, final=final)
    (theirs,), _ = search(NativeSampler(model, RequestMeter()), pieces, step=step, final=final)
    assert seen(ours) == seen(theirs)
    assert [trace.end == "stop" for trace in ours] == [True, False, False]
    assert ours[0].text.endswith(step)


def test_every_piece_has_a_seed_of_its_own_and_the_next_run_the_same(engine: Engine, model: LanguageModel) -> None:
    async def chains(policy):
        return await policy.finish([policy.root] * 3, most=12)

    first, _ = search(EngineSampler(engine, model), chains, 2, temperature=1.5)
    again, _ = search(EngineSampler(engine, model), chains, 2, temperature=1.5)
    assert [seen(group) for group in first] == [seen(group) for group in again]
    assert len({trace.all_ids for group in first for trace in group}) == 6


def test_the_first_to_arrive_calls_the_others_off(engine: Engine, model: LanguageModel) -> None:
    """What they have made by then is theirs; nothing of it is lost for the ledger."""
    said = words(model)
    place, word = next((i, w) for i, w in reversed([*enumerate(said)]) if w.strip() and said.index(w) == i)

    async def race(policy):
        (near,) = await policy.finish([policy.root], most=place)
        return await policy.first([near, policy.root, policy.root], 1, until=word)

    (found,), [ledger] = search(EngineSampler(engine, model), race, max_new_tokens=90)
    assert sum(trace.reached for trace in found) == 1
    assert ledger.cancelled == 2
    assert all(trace.end is None for trace in found)
    assert ledger.generated >= place + sum(len(trace.ids) for trace in found)
    assert ledger.generated < place + 1 + 2 * 90


class Silent(NativeEngine):
    """Gives the opening newlines and nothing more."""

    def stream(self, prompts):
        return iter(())


def test_an_engine_that_gives_nothing_is_a_fault(model: LanguageModel) -> None:
    async def whole(policy):
        return await policy.finish([policy.root])

    with Silent(LAB, 1) as engine, pytest.raises(UnitError, match="no more tokens"):
        search(EngineSampler(engine, model), whole)
