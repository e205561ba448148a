"""Timing passes: the right work is timed, within the budget, those seen least first. No time is judged."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator
from types import SimpleNamespace
from typing import cast

import pytest
import torch

from kernels.counting import counting
from suite.errors import InputError
from suite.harness import passes
from suite.harness.measurement import PassUnit
from suite.harness.passes import Agenda, PassBench, Timings, grid, perturbed, time_passes, unit_at
from suite.models.attention import DenseAttention
from suite.models.config import ModelConfig
from suite.models.decoder import Decoder
from suite.models.generation import PREFILL_CHUNK, prefill
from suite.models.language_model import LanguageModel

CONFIG = ModelConfig("llama", 2, 64, 96, 4, 2, 32, 211, 2048)
TOKENS = 24


@pytest.fixture(scope="module")
def bench() -> Iterator[PassBench]:
    """A random model; what is read between samples is small, too."""
    torch.manual_seed(0)
    model = SimpleNamespace(decoder=Decoder(CONFIG).cast_weights(torch.float32), config=CONFIG)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(passes, "OTHER_BYTES", 1 << 20)
        patch.setattr(passes, "EDGE", 64)
        yield PassBench(cast(LanguageModel, model), 3, TOKENS)


def run(bench: PassBench, unit: PassUnit) -> torch.Tensor:
    with torch.inference_mode():
        return cast(torch.Tensor, bench.timed(unit).run())


def test_a_prompt_is_read_as_the_engine_reads_it(bench: PassBench) -> None:
    decoder, ids = bench.model.decoder, list(range(TOKENS))
    with torch.inference_mode():
        expected = prefill(decoder, DenseAttention(CONFIG), decoder.new_cache(2, TOKENS), [ids, ids], None)
    timed = unit_at("prefill", "pass", 2, TOKENS, 1)
    assert torch.equal(run(bench, timed), expected)
    assert torch.equal(run(bench, timed), expected)  # the second call begins where the first began


def test_a_step_attends_to_as_many_tokens_as_it_says(bench: PassBench) -> None:
    cache = bench.cache(3, TOKENS - 1)
    with torch.inference_mode():
        expected = bench.model.decoder(torch.ones(3, 1, dtype=torch.long), cache, DenseAttention(CONFIG))
    timed = unit_at("decode", "pass", 3, TOKENS, 1)
    assert torch.equal(run(bench, timed), expected)
    assert torch.equal(run(bench, timed), expected)
    assert not torch.equal(run(bench, unit_at("decode", "pass", 3, TOKENS - 1, 1)), expected)


def test_caches_are_filled_everywhere(bench: PassBench) -> None:
    for storage in (*bench.cache(3, TOKENS).keys, *bench.cache(3, TOKENS).values):
        assert torch.isfinite(storage).all()
        assert 0.9 < storage.std() < 1.1


@pytest.mark.parametrize("phase", ["prefill", "decode"])
def test_the_classes_are_the_pass(bench: PassBench, phase: str) -> None:
    """The kernels and products that the operator classes run are those of a pass, with the same work."""

    whole, *parts = (
        flops(bench, unit_at(phase, part, 2, TOKENS, 1))  # type: ignore[arg-type]
        for part in ("pass", "linear", "attention", "elementwise", "head")
    )
    assert all(parts)
    assert sum(parts) == pytest.approx(whole, rel=0.1)


def test_a_unit_knows_its_passes() -> None:
    assert unit_at("decode", "pass", 1, 900, 1).new == 1
    assert unit_at("prefill", "pass", 1, 900, 1).new == PREFILL_CHUNK
    assert unit_at("prefill", "attention", 1, 900, 1).new == 900 - PREFILL_CHUNK
    assert unit_at("prefill", "attention", 1, 1024, 1).new == PREFILL_CHUNK
    assert unit_at("prefill", "pass", 1, 100, 1).new == 100
    unit = PassUnit(phase="prefill", part="head", batch=4, tokens=100, new=50, threads=2, perturbed=True)
    assert unit.times([1.0]).unit == unit


def test_the_grid_has_what_grows() -> None:
    units = grid([1, 4], [128, 8192], 2)
    assert len(units) == len(set(units)) == 2 * 2 * (5 + 2)
    assert {unit.part for unit in units if unit.tokens == 8192} == {"pass", "attention"}


def test_perturbed_units_are_those_of_the_grid_with_other_flops() -> None:
    units = grid([1, 16], [128, 8192], 2)
    found = perturbed(units)
    assert all(
        one.model_copy(update={"new": 2 * one.new if one.phase == "prefill" else 1, "perturbed": False}) in units
        for one in found
    )
    assert {(one.phase, one.part) for one in found} == {
        ("prefill", "attention"), ("prefill", "linear"),
        ("decode", "attention"), ("decode", "linear"), ("decode", "head"),
    }  # fmt: skip
    assert {(one.batch, one.tokens) for one in found} == {(1, 128), (1, 8192), (16, 128)}
    assert {one.batch for one in found if one.phase == "decode"} == {1}  # 32 rows take another kernel


@pytest.mark.parametrize(
    ("batch", "tokens", "kept"), [(1, 32, False), (1, 128, True), (1, 256, False), (2, 128, False), (1, 512, True)]
)
def test_a_prompt_is_halved_only_where_the_same_kernels_serve(batch: int, tokens: int, kept: bool) -> None:
    units = [unit for unit in grid([batch], [tokens], 2) if unit.phase == "prefill"]
    assert bool(perturbed(units)) is kept


def test_a_perturbed_part_has_the_work_the_model_gives_it(bench: PassBench) -> None:
    for part in ("linear", "attention", "head"):
        one, two = (
            flops(bench, PassUnit(phase="decode", part=part, batch=2, tokens=TOKENS, new=new, threads=1))
            for new in (1, 2)
        )
        assert two == pytest.approx(2 * one, rel=0.1), part
    half, whole = (
        flops(bench, PassUnit(phase="prefill", part="linear", batch=2, tokens=TOKENS, new=new, threads=1))
        for new in (TOKENS // 2, TOKENS)
    )
    assert whole == pytest.approx(2 * half)


def flops(bench: PassBench, unit: PassUnit) -> float:
    with counting() as counter:
        run(bench, unit)
    return sum(cost.flops for cost in counter.costs.values())


class Clock:
    """Every look takes a millisecond."""

    def __init__(self) -> None:
        self.ticks = itertools.count()

    def perf_counter(self) -> float:
        return next(self.ticks) * 1e-3


def visited(monkeypatch: pytest.MonkeyPatch, bench: PassBench, agenda: Agenda) -> list[PassUnit]:
    monkeypatch.setattr(passes, "time", Clock())
    order: list[PassUnit] = []
    timings = Timings()
    time_passes(bench, agenda, timings, lambda unit, left_s: order.append(unit))
    tops = {*passes.ceilings(1)} if order else set()
    assert set(timings.ms) == {*order, *tops}
    assert {times.unit for times in timings.figures()["times"]} == {*order, *tops}
    return order


def test_rounds_begin_with_what_was_seen_least(monkeypatch: pytest.MonkeyPatch, bench: PassBench) -> None:
    units = [unit_at("decode", part, 1, TOKENS, 1) for part in ("pass", "linear", "head")]
    agenda = Agenda(units, {units[0]: 2, units[1]: 1}, lambda unit: 0.0, 0.6)
    order = visited(monkeypatch, bench, agenda)
    assert order[0] == units[2]
    assert set(order[1:3]) == {units[1], units[2]}
    assert max(Counter(order).values()) - min(Counter(order).values()) <= 3


def test_what_cannot_fit_is_left_out(monkeypatch: pytest.MonkeyPatch, bench: PassBench) -> None:
    short, long = unit_at("decode", "pass", 1, TOKENS, 1), unit_at("prefill", "pass", 1, TOKENS, 1)
    order = visited(monkeypatch, bench, Agenda([short, long], {}, lambda unit: 9.0 if unit == long else 0.0, 0.5))
    assert set(order) == {short}
    assert visited(monkeypatch, bench, Agenda([long], {}, lambda unit: 9.0, 0.5)) == []


def test_first_calls_count_only_where_they_are_long(monkeypatch: pytest.MonkeyPatch, bench: PassBench) -> None:
    monkeypatch.setattr(passes, "time", Clock())
    unit, disturbance = unit_at("decode", "head", 1, TOKENS, 1), Timings().disturbance
    assert passes._visit(bench, unit, True, disturbance) == [pytest.approx(1.0)]
    assert len(passes._visit(bench, unit, False, disturbance)) == passes.MOST_CALLS


def test_a_cache_beyond_memory_is_refused_in_a_sentence(bench: PassBench) -> None:
    with pytest.raises(InputError, match=r"needs a cache of .* GB, and .* may be used; give a smaller --batch"):
        PassBench(bench.model, 1 << 20, 1 << 20)
