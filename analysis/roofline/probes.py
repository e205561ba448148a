"""The micro-benchmarks behind a calibration: streams by working set, matrix products, and an empty call.

Byte counts are STREAM's: what the program names, without the extra read of each stored line (write-allocate).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from analysis.roofline.ceilings import human_bytes
from kernels import build
from kernels.flash_decode import flash_decode
from kernels.gemv import gemv as kernel_gemv

Kind = Literal["read", "copy", "triad", "gemm", "gemv"]

SQUARES = (512, 1024, 2048)
GPU_SQUARES = (4096, 8192)
"""A GPU needs larger products to show what it can do."""
TALL = (8192, 512, 512)
"""Rows, columns and depth of the tall product: a long prompt through a narrow layer."""
GEMV_EDGE = 2048
_GEMV_READS_FROM = 1 << 20  # bytes: below this the call costs more than the reading
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Probe:
    """One thing to measure. `work` is bytes or FLOPs of a call; of several `variants` (by name) the fastest counts."""

    kind: Kind
    dtype: str
    threads: int
    size: int
    work: float
    variants: dict[str, Callable[[], object]]

    @property
    def label(self) -> str:
        """For people: "read fp32 256 MB, 2 threads"."""
        size = human_bytes(self.size) if self.kind in ("read", "copy", "triad") else str(self.size)
        return f"{self.kind} {self.dtype} {size}, {self.threads} thread{'s' if self.threads > 1 else ''}"


def working_sets(llc_bytes: int, limit_bytes: int) -> list[int]:
    """16 KiB, then times four, up to 8 x LLC (or `limit_bytes` where memory is short), which is included."""
    last = min(8 * llc_bytes, limit_bytes) // (16 << 10) * (16 << 10)
    sizes = itertools.takewhile(lambda size: size < last, (16 << 10 << 2 * step for step in itertools.count()))
    return [*sizes, last]


def stream_probes(size: int, threads: int) -> Iterator[Probe]:
    """Read, copy and triad over arrays of `size` bytes together: beyond 2 x LLC nothing survives in a cache."""
    whole = torch.ones(size // 4)
    half, other = whole.chunk(2)
    a, b, c = whole[: size // 12 * 3].chunk(3)
    readers: dict[str, Callable[[], object]] = {
        "torch.sum": lambda: torch.sum(whole),
        "torch.dot": lambda: torch.dot(half, other),
    }
    if size >= _GEMV_READS_FROM:
        row, matrix = torch.ones(1, GEMV_EDGE), whole.view(-1, GEMV_EDGE)
        readers["kernels.gemv"] = lambda: kernel_gemv(row, matrix)
        if whole.is_cpu and build.load("flash_decode") is not None:
            readers["kernels.flash_decode"] = _attention_reader(whole)
    yield Probe("read", "fp32", threads, size, whole.nbytes, readers)
    yield Probe("copy", "fp32", threads, size, 2 * half.nbytes, {"Tensor.copy_": lambda: other.copy_(half)})
    yield Probe("triad", "fp32", threads, size, 3 * a.nbytes, {"torch.add": lambda: torch.add(a, b, alpha=0.5, out=c)})


def _attention_reader(data: Tensor) -> Callable[[], object]:
    """Reads all of it as the keys and values of one decode step: of our kernels the one that asks furthest ahead."""
    heads, width = 8, 64
    keys, values = data.view(torch.bfloat16).view(2, 1, heads, -1, width)
    q, rows = torch.zeros(1, heads, width, dtype=torch.bfloat16), torch.zeros(1, dtype=torch.int32)
    spans = torch.tensor([0, keys.shape[2], 0], dtype=torch.int32).view(1, 1, 1, 3)
    return lambda: flash_decode(q, keys, values, spans, rows, scale=1.0)


def stream_overhead() -> dict[Kind, Callable[[], object]]:
    """The same calls on next to nothing: what to take off a stream's time, as the model counts launches apart."""
    return {probe.kind: next(iter(probe.variants.values())) for probe in stream_probes(96, 1)}


def gemm_probes(dtype: str, threads: int) -> Iterator[Probe]:
    """Square products and a tall one, each cycling through two sets of operands.

    A CPU that does not multiply bf16 does it through fp32, as `kernels.gemv.linear` does: torch's own product of 2048 x
    2048 takes minutes there.
    """
    on_cpu = torch.get_default_device().type == "cpu"
    squares = SQUARES if on_cpu else GPU_SQUARES
    widened = on_cpu and dtype == "bf16" and not build.multiplies_bf16()
    for rows, columns, depth in (*((edge, edge, edge) for edge in squares), TALL):
        sets = itertools.cycle([_operands(rows, columns, depth, DTYPES[dtype]) for _ in range(2)])
        yield Probe("gemm", dtype, threads, rows, 2.0 * rows * columns * depth, _products(sets, widened))


def _operands(rows: int, columns: int, depth: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    make = torch.Generator(torch.get_default_device()).manual_seed(0)
    left, right = (torch.randn(shape, generator=make).to(dtype) for shape in ((rows, depth), (depth, columns)))
    return left, right, torch.empty(rows, columns, dtype=dtype)


def _products(sets: Iterator[tuple[Tensor, Tensor, Tensor]], widened: bool) -> dict[str, Callable[[], object]]:
    def product() -> object:
        left, right, out = next(sets)
        return torch.mm(left, right, out=out)

    def through_fp32() -> object:
        left, right, out = next(sets)
        return out.copy_(torch.mm(left.float(), right.float()))

    return {"torch.mm through fp32": through_fp32} if widened else {"torch.mm": product}


def gemv_probe(dtype: str, threads: int, llc_bytes: int) -> Probe:
    """One row times a matrix, cycling through enough matrices (4 x LLC) that each comes from memory, as in decoding."""
    x = torch.ones(1, GEMV_EDGE, dtype=DTYPES[dtype])
    count = max(2, 4 * llc_bytes // (GEMV_EDGE * GEMV_EDGE * x.element_size()))
    matrices = [torch.ones(GEMV_EDGE, GEMV_EDGE, dtype=x.dtype) for _ in range(count)]
    variants = {
        "torch.mv": _cycled(matrices, lambda matrix: torch.mv(matrix, x[0])),
        "torch linear": _cycled(matrices, lambda matrix: F.linear(x, matrix)),
        "kernels.gemv": _cycled(matrices, lambda matrix: kernel_gemv(x, matrix)),
    }
    return Probe("gemv", dtype, threads, GEMV_EDGE, 2.0 * GEMV_EDGE * GEMV_EDGE, variants)


def _cycled(matrices: Sequence[Tensor], op: Callable[[Tensor], object]) -> Callable[[], object]:
    turn = itertools.cycle(matrices)
    return lambda: op(next(turn))


def empty_call() -> Callable[[], object]:
    """The cheapest framework call: add to one element in place."""
    x = torch.zeros(1)
    return lambda: x.add_(1.0)
