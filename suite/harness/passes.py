"""Times a dense model's passes and their operator classes over a grid of batches and lengths, within a time budget.

Caches are filled with random keys and values: times of dense attention do not depend on them, and prefilling every
length would take hours. Operator classes run apart from each other over all layers, each layer with its own weights,
so that weights come from memory as they do in a pass. Shapes: B batch, T new tokens per sequence.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

import psutil
import torch
from torch import Tensor

from kernels import gate
from kernels.gemv import LANE_ROWS, MAX_ROWS, linear
from suite.errors import InputError
from suite.harness.heap import quiet_heap
from suite.harness.measurement import Part, PassUnit, Phase
from suite.harness.noise import Disturbance, snapshot
from suite.models.attention import DenseAttention, Step, store_rotated
from suite.models.cache import KVCache
from suite.models.generation import PREFILL_CHUNK, pass_tokens, prefill

if TYPE_CHECKING:
    from suite.models.decoder import Layer
    from suite.models.language_model import LanguageModel

VISIT_S = 0.06
"""Calls of a short unit are repeated for about this long at each visit."""
LONG_S = 0.3
"""A call that cannot take less needs no warm-up: its first time counts."""
MOST_CALLS = 20
OTHER_BYTES = 256 << 20
"""Read between two samples, so that the second finds nothing in a cache; reading it is a ceiling too."""
EDGE = 2048
"""Of the square product that is the other ceiling."""
CEILING_EVERY = 12
"""After so many visits both ceilings are visited: the machine's speed drifts."""
MOST_PERTURBED = 1 << 14
"""Tokens of a batch in all up to which operator classes are perturbed."""
SLACK = 1.4
"""A call is expected to take so many times its least time, until it has been timed."""
_FILL = 4096  # tokens of random keys and values, repeated
_SHARE_OF_MEMORY = 0.6

Call = Callable[[], object]


@dataclass(frozen=True)
class Timed:
    """What a sample times, and what comes before it."""

    run: Call
    before: Call = lambda: None


def unit_at(phase: Phase, part: Part, batch: int, tokens: int, threads: int) -> PassUnit:
    """A part of a decode step, of a whole prompt, or of a prompt's last pass."""
    most = min(tokens, pass_tokens(tokens, PREFILL_CHUNK))
    new = 1 if phase == "decode" else most if part == "pass" else (tokens - 1) % most + 1
    return PassUnit(phase=phase, part=part, batch=batch, tokens=tokens, new=new, threads=threads)


class PassBench:
    """A model and one pool of keys and values, from which every batch and length takes its cache."""

    def __init__(self, model: LanguageModel, most_batch: int, most_tokens: int) -> None:
        self.model, self.attention = model, DenseAttention(model.config)
        room = most_tokens + PREFILL_CHUNK
        needed = most_batch * room * model.config.kv_bytes_per_token(torch.empty(0, dtype=model.decoder.dtype).itemsize)
        free = psutil.virtual_memory().available * _SHARE_OF_MEMORY
        if needed > free:
            raise InputError(
                f"batch {most_batch} of {most_tokens} tokens needs a cache of {needed / 1e9:.1f} GB, and "
                f"{free / 1e9:.1f} may be used; give a smaller --batch or --seqlen."
            )
        self._other = torch.ones(OTHER_BYTES // 4)
        self._pool = model.decoder.new_cache(most_batch, room)
        _fill(self._pool)

    def cache(self, batch: int, tokens: int) -> KVCache:
        """`batch` rows of the pool with `tokens` tokens each."""
        cache = KVCache(self.model.config, batch, self.model.decoder.dtype)
        cache.keys, cache.values = ([one[:batch] for one in part] for part in (self._pool.keys, self._pool.values))
        cache.capacity, cache.lengths = self._pool.capacity, [tokens] * batch
        return cache

    def timed(self, unit: PassUnit) -> Timed:
        """What one sample of the unit does. Keys, values and the head are found in no cache, as in a pass."""
        if unit.part == "read":
            return Timed(lambda: torch.sum(self._other))
        if unit.part == "multiply":
            square = torch.randn(EDGE, EDGE).to(self.model.decoder.dtype)
            return Timed(lambda: linear(square, square))
        if unit.part == "pass":
            return Timed(self._prompt(unit) if unit.phase == "prefill" else self._step(unit))
        site = _Site(self, unit)
        if unit.part in ("attention", "head"):
            return Timed(site.attend if unit.part == "attention" else site.head, lambda: torch.sum(self._other))
        return Timed(site.linear if unit.part == "linear" else site.elementwise)

    def _prompt(self, unit: PassUnit) -> Call:
        prompts = [[token % self.model.config.vocab for token in range(unit.tokens)]] * unit.batch
        cache = self.cache(unit.batch, 0)

        def call() -> object:
            cache.lengths = [0] * unit.batch
            return prefill(self.model.decoder, self.attention, cache, prompts, None)

        return call

    def _step(self, unit: PassUnit) -> Call:
        fed, cache = torch.ones(unit.batch, 1, dtype=torch.long), self.cache(unit.batch, 0)

        def call() -> object:
            cache.lengths = [unit.tokens - 1] * unit.batch
            return self.model.decoder(fed, cache, self.attention)

        return call


def _fill(cache: KVCache) -> None:
    make = torch.Generator().manual_seed(0)
    _, G, capacity, D = cache.keys[0].shape
    piece = torch.randn(G, min(_FILL, capacity), D, generator=make).to(cache.dtype)
    for storage in (*cache.keys, *cache.values):
        for start in range(0, capacity, piece.shape[1]):
            storage[:, :, start : start + piece.shape[1]] = piece[:, : capacity - start]


class _Site:
    """Inputs of the operator classes of one pass: x [B, T, hidden] and what lies between a layer's operators."""

    def __init__(self, bench: PassBench, unit: PassUnit) -> None:
        self.decoder, self.attention = bench.model.decoder, bench.attention
        self.layers = [cast("Layer", layer) for layer in self.decoder.layers]
        config, B, T = bench.model.config, unit.batch, unit.new
        self.config, self.new, self.decodes = config, T, unit.phase == "decode"
        self.cache = bench.cache(B, unit.tokens - T)
        self.tokens = torch.ones(B, T, dtype=torch.long)

        def random_states(*shape: int) -> Tensor:
            return torch.randn(B, T, *shape).to(self.decoder.dtype)

        self.x, self.change = random_states(config.hidden), torch.zeros(B, T, config.hidden, dtype=self.decoder.dtype)
        self.q = random_states(config.heads, config.head_dim)
        self.k, self.v = (random_states(config.kv_heads, config.head_dim) for _ in range(2))
        self.gate_up = random_states(2 * config.intermediate)
        self.gated = self.gate_up[..., : config.intermediate].contiguous()

    def step(self) -> Step:
        """A new pass, with nothing shared yet."""
        return Step(self.cache, [self.new] * self.cache.batch, self.new)

    def linear(self) -> None:
        for layer in self.layers:
            layer.attention.qkv(self.x)
            layer.attention.out(self.q.flatten(-2))
            layer.mlp.gate_up(self.x)
            layer.mlp.down(self.gated)

    def attend(self) -> None:
        step = self.step()
        for index in range(len(self.layers)):
            self.attention.attend(index, self.q, step)

    def elementwise(self) -> None:
        """Embedding, norms, residuals, rotation with the writing of keys and values, the MLP's gate."""
        step = self.step()
        self.decoder.embed(self.tokens)
        for index, layer in enumerate(self.layers):
            layer.attention_norm(self.x)
            cos, sin = self.attention.tables(index, step.seen)
            store_rotated(index, self.q, self.k, self.v, cos, sin, step.positions, step)
            self.x.add_(self.change)
            layer.mlp_norm(self.x)
            gate.gate(self.gate_up.flatten(0, 1), layer.mlp.activation)
            self.x.add_(self.change)

    def head(self) -> None:
        """Logits of all tokens of a decode step, and of a prompt's last one."""
        self.decoder.to_logits(self.decoder.norm(self.x if self.decodes else self.x[:, -1]))


@dataclass
class Timings:
    """What one run has timed: milliseconds by unit, and what disturbed it."""

    ms: dict[PassUnit, list[float]] = field(default_factory=dict)
    disturbance: Disturbance = field(default_factory=Disturbance)

    def add(self, unit: PassUnit, ms: Sequence[float]) -> None:
        """More samples of a unit."""
        self.ms.setdefault(unit, []).extend(ms)

    def figures(self) -> dict[str, Any]:
        """The measured fields of a `Validation`."""
        return {
            "times": tuple(unit.times(ms) for unit, ms in self.ms.items()),
            "steal_share": self.disturbance.steal_share,
            "other_load": self.disturbance.other_load,
        }


@dataclass(frozen=True)
class Agenda:
    """What to time, and for how long: `seen` counts earlier visits, `least_s` bounds the time of a call from below."""

    units: Sequence[PassUnit]
    seen: dict[PassUnit, int]
    least_s: Callable[[PassUnit], float]
    budget_s: float


Tick = Callable[[PassUnit, float], None]
"""(the unit to be visited, seconds left)."""


def time_passes(bench: PassBench, agenda: Agenda, timings: Timings, tick: Tick) -> None:
    """Visits the units in rounds of random order, those with the fewest visits first; what no longer fits is left.

    Every few visits the machine's ceilings are visited too.
    """
    least = {unit: agenda.least_s(unit) for unit in agenda.units}
    costs = {unit: SLACK * seconds + VISIT_S for unit, seconds in least.items()}
    visits = {unit: agenda.seen.get(unit, 0) for unit in agenda.units}
    end, order = time.perf_counter() + agenda.budget_s, random.Random(sum(visits.values()))
    before, done = torch.get_num_threads(), 0
    try:
        while fitting := [unit for unit in agenda.units if costs[unit] < end - time.perf_counter()]:
            fewest = min(visits[unit] for unit in fitting)
            unit = order.choice([unit for unit in fitting if visits[unit] == fewest])
            start = time.perf_counter()
            tick(unit, end - start)
            timings.add(unit, _visit(bench, unit, least[unit] > LONG_S, timings.disturbance))
            costs[unit], visits[unit] = time.perf_counter() - start, visits[unit] + 1
            if done % CEILING_EVERY == 0:
                for ceiling in ceilings(unit.threads):
                    timings.add(ceiling, _visit(bench, ceiling, False, timings.disturbance))
            done += 1
    finally:
        torch.set_num_threads(before)


def _visit(bench: PassBench, unit: PassUnit, is_long: bool, disturbance: Disturbance) -> list[float]:
    """Milliseconds of one call that is long, or of several after a first one that does not count."""
    torch.set_num_threads(unit.threads)
    with torch.inference_mode():
        timed = bench.timed(unit)
        with quiet_heap():
            before = snapshot()
            first = _seconds(timed)
            calls = 0 if is_long else max(3, min(MOST_CALLS, round(VISIT_S / first)))
            times = [_seconds(timed) for _ in range(calls)] or [first]
            disturbance.add(before, snapshot())
    return [1e3 * value for value in times]


def _seconds(timed: Timed) -> float:
    timed.before()
    start = time.perf_counter()
    timed.run()
    return time.perf_counter() - start


def ceilings(threads: int) -> tuple[PassUnit, PassUnit]:
    """A read from memory and a square product."""
    return (
        PassUnit(phase="decode", part="read", batch=1, tokens=OTHER_BYTES, new=1, threads=threads),
        PassUnit(phase="prefill", part="multiply", batch=1, tokens=EDGE, new=EDGE, threads=threads),
    )


def grid(batches: Iterable[int], lengths: Iterable[int], threads: int) -> list[PassUnit]:
    """Whole passes and all operator classes of both phases at every batch and length.

    Beyond a chunk's length only attention goes on growing; the other classes are left out there.
    """
    phases: tuple[Phase, ...] = ("prefill", "decode")
    parts: tuple[Part, ...] = ("pass", "attention", "linear", "elementwise", "head")
    return [
        unit_at(phase, part, batch, tokens, threads)
        for batch in batches for tokens in lengths for phase in phases
        for part in (parts if tokens <= PREFILL_CHUNK else parts[:2])
    ]  # fmt: skip


def _halves_alike(unit: PassUnit) -> bool:
    """Whether the kernels of a prompt serve half of it too: no limit lies between their rows."""
    rows = unit.batch * unit.new
    return unit.new // 2 > MAX_ROWS and (rows <= LANE_ROWS) == (rows // 2 <= LANE_ROWS)


def perturbed(units: Iterable[PassUnit]) -> list[PassUnit]:
    """The same operator classes with other FLOPs for the same weights, keys and values.

    Left out: elementwise operators, whose FLOPs and bytes are tied; a prompt's head, which is that of a decode step;
    and what another kernel would run.
    """
    wanted = [
        unit
        for unit in units
        if unit.part in ("linear", "attention", "head") and unit.batch * unit.tokens <= MOST_PERTURBED
    ]
    return [
        unit.model_copy(update={"new": 2 if unit.phase == "decode" else unit.new // 2, "perturbed": True})
        for unit in wanted
        if (unit.phase == "decode" and unit.tokens > 1 and 2 * unit.batch <= MAX_ROWS)
        or (unit.phase == "prefill" and unit.part != "head" and _halves_alike(unit))
    ]
