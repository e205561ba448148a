"""The contract and the realistic shapes of lut_gemv."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from kernels.contract import Case, Outputs, Race, SpeedCase, Trial, poisoned, strided
from kernels.gemv import gemv
from kernels.lut_gemv import Outliers, lut_gemv, pack, reference, row_words
from kernels.lut_gemv.cost import lut_gemv_cost

SHARE = 0.0045
"""Of weights that are outliers: SqueezeLLM's."""


def outlier_counts(kind: str, outputs: int, features: int) -> Tensor:
    """Entries of each row."""
    counts = torch.zeros(outputs, dtype=torch.int32)
    if kind == "some":
        counts = torch.randint(0, min(features, 40), (outputs,), dtype=torch.int32)
        counts[1::3] = 0
    elif kind == "one row":
        counts[outputs // 2] = features
    return counts


def random_outliers(counts: Tensor, features: int, dtype: torch.dtype) -> Outliers:
    """Columns in any order; what lies behind the last entry must not be read."""
    rows = [torch.randperm(features)[:count] for count in counts.tolist()]
    total = sum(len(row) for row in rows)
    starts = torch.cat((torch.zeros(1, dtype=torch.int32), counts.cumsum(0).int()))
    columns = torch.cat((*rows, torch.full((20,), 1 << 30))).int()
    values = torch.cat((torch.randn(total), poisoned(20, dtype=torch.float32))).to(dtype)
    return Outliers(starts, columns[:total], values[:total])


def lut_case(
    n: int, features: int, outputs: int, bits: int, outliers: str = "", bias: bool = False, size: float = 1
) -> Case:
    """`outliers`: "some" rows have some, "one row" has all, there are "none"; "" for no sparse part."""

    def make(dtype: torch.dtype) -> Trial:
        x = strided(size * torch.randn(n, features).to(dtype))
        packed = pack(torch.randint(0, 2**bits, (outputs, features)), bits)
        tables = torch.randn(outputs, 2**bits).to(dtype)
        b = torch.randn(outputs).to(dtype) if bias else None
        sparse = None
        if outliers:
            sparse = random_outliers(outlier_counts(outliers, outputs, features), features, dtype)

        def run() -> Outputs:
            out = strided(poisoned(n, outputs, dtype=dtype))
            return {"y": lut_gemv(x, packed, tables, sparse, bias=b, out=out)}

        return Trial(run, lambda: {"y": reference.lut_gemv(x.double(), packed, tables, sparse, b)})

    flags = (f"-outliers {outliers}" if outliers else "") + "-bias" * bias + ("-large" if size > 1 else "")
    return Case("lut_gemv", f"{n}x{features}x{outputs}-{bits} bits{flags}", make)


def speed_case(features: int, outputs: int, bits: int, outliers: bool = False) -> SpeedCase:
    def make(dtype: torch.dtype) -> Race:
        x, tables = torch.randn(1, features).to(dtype), torch.randn(outputs, 2**bits).to(dtype)
        packed = torch.randint(-(2**15), 2**15, (outputs, row_words(features, bits)), dtype=torch.int16)
        weight = torch.full((outputs, features), 0.5, dtype=dtype)
        peers: dict[str, Callable[[], object]] = {"kernels.gemv bf16": lambda: gemv(x, weight)}
        sparse, entries = None, None
        if outliers:
            per_row = round(SHARE * features)
            sparse, entries = even_outliers(outputs, features, per_row, dtype), per_row * outputs
            peers["lut_gemv without outliers"] = lambda: lut_gemv(x, packed, tables)
        cost = lut_gemv_cost(1, features, outputs, bits, x.element_size(), outliers=entries)
        return Race(lambda: lut_gemv(x, packed, tables, sparse), cost, peers)

    return SpeedCase("lut_gemv", f"1 x {features} -> {outputs}, {bits} bits{', outliers' * outliers}", make)


def even_outliers(outputs: int, features: int, per_row: int, dtype: torch.dtype) -> Outliers:
    """As many in each row."""
    columns = torch.randint(0, features, (outputs, per_row)).sort(1).values.int().flatten()
    starts = torch.arange(0, outputs + 1, dtype=torch.int32) * per_row
    return Outliers(starts, columns, torch.randn(outputs * per_row).to(dtype))


def guarded_calls(guarded: Callable[..., Tensor], dtype: torch.dtype) -> None:
    """Narrow blocks at the end of the codes, and an outlier in the last input of the last row."""
    features, outputs = 650, 19
    sparse = random_outliers(outlier_counts("one row", outputs, features), features, dtype)
    at_end = (guarded(len(part), dtype=part.dtype).copy_(part) for part in sparse)
    outliers, bias = Outliers(*at_end), guarded(outputs, dtype=dtype)
    for bits in (3, 4):
        packed = guarded(outputs, row_words(features, bits), dtype=torch.int16)
        packed.copy_(pack(torch.randint(0, 2**bits, (outputs, features)), bits))
        tables = guarded(outputs, 2**bits, dtype=dtype)
        for n in (1, 3, 20):
            x, out = guarded(n, features, dtype=dtype), guarded(n, outputs, dtype=dtype)
            assert lut_gemv(x, packed, tables, outliers, bias=bias, out=out).isfinite().all()
            lut_gemv(x, packed, tables, out=out)


BITS = (3, 4)
CASES = [
    *(lut_case(*shape, bits) for bits in BITS for shape in ((1, 576, 576), (1, 63, 49), (2, 1000, 33), (4, 31, 3))),
    *(lut_case(1, features, 17, bits) for bits in BITS for features in (1, 129, 1024, 2049)),
    *(lut_case(*shape, bits) for bits in BITS for shape in ((9, 512, 40), (16, 700, 31), (40, 545, 45), (64, 128, 16))),
    lut_case(130, 500, 33, 3, "some", bias=True),
    *(lut_case(n, 500, 50, bits, "some", bias=True) for bits in BITS for n in (1, 3, 7, 20)),
    *(lut_case(n, 100, 35, 4, kind) for n in (1, 17) for kind in ("one row", "none")),
    lut_case(3, 100, 63, 3, "some", size=1e15),
    lut_case(17, 100, 63, 4, "some", size=1e15),
    lut_case(0, 100, 5, 4),
]
TEAM_CASES = [
    lut_case(1, 600, 577, 3, "some", bias=True),
    lut_case(1, 1025, 100, 4, "one row"),
    lut_case(20, 600, 200, 4, "some"),
]
SMALL_CASES = [
    lut_case(1, 300, 17, 4, "some", bias=True),
    lut_case(1, 600, 10, 3, "some"),
    lut_case(3, 100, 17, 4),
    lut_case(17, 63, 5, 3, "one row", bias=True),
    lut_case(2, 100, 5, 4, "none"),
]
SPEED_CASES = [
    *(speed_case(*shape, bits) for bits in BITS for shape in ((4096, 4096), (4096, 11008), (14336, 4096))),
    *(speed_case(*shape, 4, outliers=True) for shape in ((4096, 4096), (4096, 11008), (14336, 4096))),
]
