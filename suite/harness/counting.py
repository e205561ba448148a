"""The untimed counting pass: FLOPs and bytes of every operator, per phase (`_roofline.md` section 2).

torch's operators are seen by a dispatch mode: FLOPs by torch's own formulas, bytes as the distinct memory each call
touches. The suite's C++ and Triton kernels are invisible to it and report their own cost models (`kernels.counting`);
torch operators that a kernel's dispatcher runs itself (its reference path, say) are part of that report, and left out.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from statistics import fmean
from types import FrameType, TracebackType
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry, sdpa_flop

from kernels.counting import Counter, counting
from suite.harness.measurement import KVSample, OpCount, Phase, PhaseCount
from suite.harness.meter import CountingMeter, Step

ModelCost = Callable[[Phase, Sequence[Step], Sequence[KVSample]], tuple[float, float]]
"""(phase, its forward passes, what the counted requests kept and read) -> modelled FLOPs and bytes of all passes."""

aten = torch.ops.aten

_FLOPS = {
    **flop_registry,
    aten._scaled_dot_product_flash_attention_for_cpu: sdpa_flop,  # torch lists the GPU variants only
}
_NO_MEMORY = {aten.empty, aten.empty_like, aten.empty_strided, aten.new_empty, aten.new_empty_strided, aten.resize_}
_GATHERS = {aten.embedding, aten.index_select, aten.gather, aten.index, aten.take}
_SCATTERS = {aten.index_put_, aten._index_put_impl_, aten.index_copy_, aten.scatter_}
_OVERWRITES = {aten.copy_, aten.fill_, aten.zero_}


class Tally:
    """Calls, FLOPs, bytes read and bytes written, by operator."""

    def __init__(self) -> None:
        self._rows: dict[str, list[float]] = {}

    def add(self, op: str, flops: float, read: float, written: float, calls: int = 1) -> None:
        """Adds `calls` calls of one operator."""
        row = self._rows.setdefault(op, [0.0, 0.0, 0.0, 0.0])
        for column, value in enumerate((calls, flops, read, written)):
            row[column] += value

    def add_kernels(self, counter: Counter) -> None:
        """Adds what the suite's own kernels reported."""
        for op, cost in counter.costs.items():
            self.add(f"kernels.{op}", cost.flops, cost.read_bytes, cost.write_bytes, counter.calls[op])

    def records(self) -> list[OpCount]:
        """One record per operator."""
        return [
            OpCount(op=op, calls=int(calls), flops=flops, read_bytes=read, write_bytes=written)
            for op, (calls, flops, read, written) in self._rows.items()
        ]


class DispatchCounter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts every torch operator into the current tally. Views, allocations and shape questions are free."""

    def __init__(self, tally: Tally) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.tally = tally

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func.namespace == "suite":  # `kernels.library`: it reports its own cost
            return func(*args, **kwargs)
        packet = func._overloadpacket
        if packet not in _FLOPS:
            with self:  # a composite operator is counted as the parts it runs as
                parts = func.decompose(*args, **kwargs)
            if parts is not NotImplemented:
                return parts
        out = func(*args, **kwargs)
        if not func.is_view and packet not in _NO_MEMORY and not _in_kernel():
            read, written = _bytes(func, args, kwargs, out)
            if read or written:
                self.tally.add(str(packet), _flops(func, args, kwargs, out), read, written)
        return out


def _in_kernel() -> bool:
    """True while code of the `kernels` room is running: it has reported this work already."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if frame.f_globals.get("__name__", "").startswith("kernels."):
            return True
        frame = frame.f_back
    return False


def _flops(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> float:
    """torch's formula for the operator, with the causal half of an attention left out; 0 without a formula."""
    formula = _FLOPS.get(func._overloadpacket)
    if formula is None:
        return 0.0
    flops = float(formula(*args, **kwargs, out_val=out))
    names = [argument.name for argument in func._schema.arguments]
    given = dict(zip(names, args, strict=False)) | kwargs
    return flops * _causal_share(given["query"], given["key"]) if given.get("is_causal") else flops


def _causal_share(query: Tensor, key: Tensor) -> float:
    """Share of the (query, key) pairs that causal attention computes; query i sees keys 0..i."""
    T, S = query.shape[-2], key.shape[-2]
    full_rows = max(0, T - S)
    growing = T - full_rows
    return (growing * (growing + 1) / 2 + full_rows * S) / (T * S)


def _bytes(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> tuple[int, int]:
    """Bytes read from distinct input memory and written to distinct output memory."""
    packet, schema = func._overloadpacket, func._schema
    inputs, outputs = _tensors((args, kwargs)), _tensors(out)
    if not schema.is_mutable:
        if _storages(outputs) & _storages(inputs):
            return 0, 0  # a view that its schema does not declare, such as _unsafe_view or a no-op `contiguous`
        if packet in _GATHERS:
            return _touched(inputs[1:]) + _touched(outputs), _touched(outputs)
        return _touched(inputs), _touched(outputs)
    if packet in _SCATTERS:
        return _touched(inputs[1:]), _touched(inputs[-1:])
    targets = _written(schema, args, kwargs)
    if packet in _OVERWRITES or "out" in schema.overload_name:
        inputs = [tensor for tensor in inputs if not any(tensor is target for target in targets)]
    return _touched(inputs), _touched(targets)


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def _storages(tensors: Sequence[Tensor]) -> set[int]:
    return {tensor.untyped_storage().data_ptr() for tensor in tensors if tensor.numel()}


def _written(schema: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Tensor]:
    """The arguments that the schema marks as written to."""
    names = [argument.name for argument in schema.arguments if argument.alias_info and argument.alias_info.is_write]
    given = dict(zip([argument.name for argument in schema.arguments], args, strict=False)) | kwargs
    return _tensors([given[name] for name in names if name in given])


def _touched(tensors: Sequence[Tensor]) -> int:
    """Bytes of distinct memory under these tensors: the same region counts once, a storage at most as a whole."""
    regions: dict[int, dict[tuple[Any, ...], int]] = {}
    sizes: dict[int, int] = {}
    for tensor in tensors:
        storage = tensor.untyped_storage()
        region = (tensor.storage_offset(), tensor.shape, tensor.stride())
        sizes[storage.data_ptr()] = storage.nbytes()
        regions.setdefault(storage.data_ptr(), {})[region] = _extent(tensor)
    return sum(min(sum(parts.values()), sizes[pointer]) for pointer, parts in regions.items())


def _extent(tensor: Tensor) -> int:
    """Bytes a tensor reaches; an expanded dimension (stride 0) reaches the same bytes again."""
    distinct = [size for size, stride in zip(tensor.shape, tensor.stride(), strict=True) if stride or not size]
    return math.prod(distinct) * tensor.element_size()


class CountingPass:
    """Counts the requests that run inside, phase by phase; hand `meter` to the generator.

    `pair_flops` are those of a query and a key in all heads and layers; without them there is no attention density.

    with CountingPass(kv_bytes_per_token) as counted:
        generator.generate([request], counted.meter)
    counted.phases(model_cost), counted.meter.kv_samples()
    """

    def __init__(self, kv_bytes_per_token: int, pair_flops: int = 0) -> None:
        self._pair_flops = pair_flops
        self.meter = CountingMeter(kv_bytes_per_token, self._switch)
        self._torch: dict[Phase, Tally] = {"prefill": Tally(), "decode": Tally()}
        self._kernels: dict[Phase, Tally] = {"prefill": Tally(), "decode": Tally()}
        self._phase: Phase = "prefill"
        self._mode = DispatchCounter(self._torch["prefill"])
        self._counter = Counter()
        self._kernel_scope = ExitStack()
        self._scope = ExitStack()

    def __enter__(self) -> CountingPass:
        self._scope.enter_context(self._mode)
        self._scope.callback(self._collect_kernels)
        self._counter = self._kernel_scope.enter_context(counting())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._scope.close()

    def _collect_kernels(self) -> None:
        self._kernel_scope.close()
        self._kernels[self._phase].add_kernels(self._counter)

    def _switch(self, phase: Phase) -> None:
        """Called by the meter: what follows belongs to another phase."""
        self._collect_kernels()
        self._phase = phase
        self._mode.tally = self._torch[phase]
        self._counter = self._kernel_scope.enter_context(counting())

    def phases(self, model_cost: ModelCost | None) -> tuple[PhaseCount, ...]:
        """The counts of each phase that had a forward pass."""
        return tuple(self._phase_count(phase, model_cost) for phase, steps in self.meter.steps.items() if steps)

    def _phase_count(self, phase: Phase, model_cost: ModelCost | None) -> PhaseCount:
        steps = self.meter.steps[phase]
        kernels = self._kernels[phase].records()
        ops = sorted([*self._torch[phase].records(), *kernels], key=lambda op: -_moved([op]))
        flops, moved = model_cost(phase, steps, self.meter.kv_samples()) if model_cost is not None else (0.0, 0.0)
        return PhaseCount(
            phase=phase,
            steps=len(steps),
            tokens=sum(step.tokens for step in steps),
            context_tokens_mean=fmean(step.context_tokens for step in steps),
            flops=sum(op.flops for op in ops),
            counted_bytes=_moved(ops),
            kernel_bytes=_moved(kernels),
            modelled_flops=flops,
            modelled_bytes=moved,
            attention_density=self._density(steps, kernels),
            ops=tuple(ops),
        )

    def _density(self, steps: Sequence[Step], kernels: Sequence[OpCount]) -> float | None:
        pairs = sum(step.tokens * step.context_tokens - step.tokens * (step.tokens - 1) // 2 for step in steps)
        attended = sum(op.flops for op in kernels if op.op == "kernels.flash_decode" or op.op.endswith("prefill"))
        return attended / (pairs * self._pair_flops) if self._pair_flops else None


def _moved(ops: Sequence[OpCount]) -> float:
    return sum(op.read_bytes + op.write_bytes for op in ops)
