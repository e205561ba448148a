"""What a model costs on a machine: time by phase, memory, energy, money; at one point, or at all points of a sweep.

Batch and lengths may be arrays of one shape: every figure is then an array too, from the same formulas.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from analysis.hardware import Hardware
from analysis.roofline.model import (
    Execution,
    Machine,
    OperatorTime,
    chunked_prefill,
    decode,
    forward,
    operator_times,
    prefill,
    total_bytes,
    total_flops,
    verify,
)
from analysis.roofline.operators import Operator, Precision
from analysis.roofline.parallel import ALONE, Parallel
from analysis.roofline.shape import ModelShape
from suite.cost import DENSE, Count, Drafter, MethodCost, Situation
from suite.errors import InputError

MANY = 1e12
"""Tokens that reach every expert."""

Phases = dict[str, list[OperatorTime]]
"""Operators of "prefill" and a "decode" step; with drafts, also of the "draft" and "verify" halves of a round."""


@dataclass(frozen=True)
class Setup:
    """A model, how it is stored and executed, and where. `method` gives a method's cost at a context length."""

    shape: ModelShape
    precision: Precision
    machine: Machine
    method: Callable[[Situation], MethodCost] = lambda situation: DENSE
    drafter: ModelShape | None = None
    fused: bool = True
    parallel: Parallel = ALONE
    chunk: int = 0

    def __post_init__(self) -> None:
        self.parallel.check(self.shape)
        if self.parallel.devices > 1 and self.machine.link_bytes_per_s is None:
            raise InputError(f"{self.machine.name} lists no link between devices, which several of them need.")

    def execution(self, tokens: Count, prompt: Count | None = None) -> Execution:
        """How a pass over a context of `tokens` is executed, the first `prompt` of which (None: all) are the prompt."""
        shape, element = self.shape, self.precision.activation
        at = Situation(tokens, shape.layers, shape.hidden, shape.heads, shape.kv_heads, shape.head_dim, element, prompt)
        return Execution(self.fused, self.method(at), self.parallel)

    def phases(self, batch: Count, tokens: Count, prompt: Count | None = None) -> Phases:
        """Prefill of `tokens` tokens per sequence, and the step that attends to as many, `prompt` of the prompt."""
        execution = self.execution(tokens, prompt)
        found = {
            "prefill": self._prefill(batch, tokens, execution),
            "decode": decode(self.shape, self.precision, batch=batch, context=tokens, execution=execution),
        }
        if drafted := execution.method.drafted:
            found["verify"] = verify(
                self.shape, self.precision, batch=batch, context=tokens, drafted=drafted, execution=execution
            )
        if (drafter := execution.method.drafter) is not None:
            packed = self.drafting_execution(drafter, execution.method)
            drafts = decode(self.drafting_shape(drafter), self.precision, batch=batch, context=tokens, execution=packed)
            found["draft"] = [operator * drafter.steps for operator in drafts]
        return {phase: operator_times(operators, self.machine) for phase, operators in found.items()}

    def _prefill(self, batch: Count, tokens: Count, execution: Execution) -> list[Operator]:
        shape, precision = self.shape, self.precision
        if not self.chunk:
            return prefill(shape, precision, batch=batch, tokens=tokens, execution=execution)
        return chunked_prefill(shape, precision, batch=batch, tokens=tokens, chunk=self.chunk, execution=execution)

    def drafting_shape(self, drafter: Drafter) -> ModelShape:
        """The drafter's shape: a model of its own, or the model with fewer layers."""
        if self.drafter is not None:
            return self.drafter
        vocab = min(drafter.vocab or self.shape.vocab, self.shape.vocab)
        return replace(self.shape.shortened(min(drafter.layers, self.shape.layers)), vocab=vocab)

    def drafting_execution(self, drafter: Drafter, target: MethodCost) -> Execution:
        """How the drafter's weights are packed: as the target's where they are the target's."""
        if drafter.shared and self.drafter is None:
            return Execution(method=MethodCost(weight_bits=target.weight_bits, row_bytes=target.row_bytes))
        return Execution(method=MethodCost(weight_bits=drafter.weight_bits))

    def prefill_seconds(self, phases: Phases, batch: Count) -> Count:
        """Time to the first token. The stages of a pipeline fill up with parts of the batch, one after the other."""
        stages = self.parallel.pipeline
        parts = np.minimum(stages, batch)
        return seconds(phases["prefill"]) * (parts + stages - 1) / stages

    def round_seconds(self, phases: Phases) -> Count:
        """One step of generation: a draft and its verification where there are drafts, else a decode step."""
        if "verify" not in phases:
            return seconds(phases["decode"])
        return seconds(phases["verify"]) + seconds(phases.get("draft", []))

    def tokens_per_second(self, phases: Phases, batch: Count, accepted: float = 1.0) -> Count:
        """Generated tokens of all sequences and chains at `accepted` tokens per step, the pipeline being full."""
        chains = self.execution(1.0).method.chains
        return batch * chains * accepted / self.round_seconds(phases)

    def chat_seconds(self, batch: Count, prompt: Count, generated: int, accepted: float = 1.0) -> Count:
        """A prompt, and `generated` tokens behind it: the first is prefill's, every later step sees its own context."""
        rows, before = (np.asarray(one, dtype=float)[..., None] for one in np.broadcast_arrays(batch, prompt))
        first = self.prefill_seconds(self.phases(batch, prompt), batch)
        if generated < 2:
            return first
        steps = replace(self, chunk=0).phases(rows, before + np.arange(1, generated), before)
        decoded: Count = np.sum(self.round_seconds(steps), axis=-1)[()]
        return first + decoded / accepted


def seconds(times: Iterable[OperatorTime]) -> Count:
    """Time of all operators, one after the other."""
    return sum((time.seconds for time in times), 0.0)


@dataclass(frozen=True)
class Memory:
    """Bytes on one device: weights, keys and values, the largest operator's inputs and outputs with the residual."""

    weights: Count
    kv_cache: Count
    activations: Count

    @property
    def total(self) -> Count:
        """All three."""
        return self.weights + self.kv_cache + self.activations


def memory(setup: Setup, phases: Phases, batch: Count, tokens: Count, phase: str = "prefill") -> Memory:
    """What must lie in memory in a phase with `tokens` per sequence cached; windows keep no more than their length."""
    method, parallel, held = setup.execution(tokens).method, setup.parallel, setup.parallel.device_shape(setup.shape)
    stage = parallel.stage_layers(setup.shape) / setup.shape.layers
    cached: Count = 0.0
    for window, count in held.layers_by_window().items():
        cached = cached + count * (tokens if window is None else np.minimum(tokens, window))
    sequences = np.maximum(1.0, batch / parallel.expert) * method.chains
    new = np.minimum(tokens, setup.chunk or tokens) if phase == "prefill" else 1
    residual = new * parallel.device_batch(batch) * held.hidden * setup.precision.activation
    moved = (time.operator.activation_bytes / np.maximum(1, time.operator.calls) for time in phases[phase])
    return Memory(
        weights=_weight_bytes(setup) * stage,
        kv_cache=sequences * cached * stage * held.kv_width * setup.precision.kv * method.stored,
        activations=functools.reduce(np.maximum, moved) + residual,
    )


def _weight_bytes(setup: Setup) -> Count:
    """All weights on a device that held every layer: what a pass over very many tokens reads, and the embeddings."""
    execution = setup.execution(1.0)
    operators = forward(setup.shape, setup.precision, batch=MANY, new=1, execution=execution)
    layers = sum((one.weight_bytes for one in operators if one.name not in ("embedding", "lm_head")), 0.0)
    held = setup.parallel.device_shape(setup.shape)
    return layers + held.vocab * held.hidden * (1 if held.tied else 2) * setup.precision.weight


def joules(hardware: Hardware, times: Sequence[OperatorTime]) -> Count | None:
    """Energy of one device: idle power, and so much per FLOP and byte; None where these are not known."""
    idle, flop, byte = hardware.idle_w, hardware.flop_pj, hardware.byte_pj
    if idle is None or flop is None or byte is None:
        return None
    operators = [time.operator for time in times]
    return idle * seconds(times) + 1e-12 * (flop * total_flops(operators) + byte * total_bytes(operators))


def price_per_million(price_per_hour: float, devices: int, tokens_per_second: Count) -> Count:
    """What a million tokens cost at the price of a device's hour, in its currency."""
    return price_per_hour / 3600 * devices / tokens_per_second * 1e6
