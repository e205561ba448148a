"""The inputs of the kernel contract suite: every op on odd shapes, with poisoned outputs and poisoned unused memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import cycle, product

import torch
from torch import Tensor

from kernels.flash_decode import dense_spans, flash_decode
from kernels.flash_decode import reference as flash_reference
from kernels.gemv import gated_gemv, gemv
from kernels.gemv import reference as gemv_reference
from kernels.rms_norm import reference as rms_reference
from kernels.rms_norm import rms_norm
from kernels.rope import append, apply, rotate_and_append
from kernels.rope import reference as rope_reference

Outputs = dict[str, Tensor]


@dataclass(frozen=True)
class Trial:
    """One call, repeatable: `run` asks the dispatcher, `expected` the naive reference in fp64."""

    run: Callable[[], Outputs]
    expected: Callable[[], Outputs]


@dataclass(frozen=True, eq=False)
class Case:
    """A named call of an op; `make(dtype)` draws the inputs."""

    op: str
    name: str
    make: Callable[[torch.dtype], Trial]

    @property
    def id(self) -> str:
        return f"{self.op}-{self.name}"


def poisoned(*shape: int, dtype: torch.dtype) -> Tensor:
    return torch.full(shape, torch.nan, dtype=dtype)


def strided(x: Tensor) -> Tensor:
    """The same values, the rows further apart, poison between them."""
    wide = poisoned(*x.shape[:-1], x.shape[-1] + 9, dtype=x.dtype)
    wide[..., : x.shape[-1]] = x
    return wide[..., : x.shape[-1]]


def tables(positions: int, head_dim: int) -> tuple[Tensor, Tensor]:
    inverse = 10000.0 ** -(torch.arange(0, head_dim, 2) / head_dim)
    angles = torch.arange(positions)[:, None] * inverse
    return angles.cos(), angles.sin()


# ---- gemv --------------------------------------------------------------------------------------------------------


def gemv_case(n: int, features: int, outputs: int, bias: bool = False, residual: str = "none", size: float = 1) -> Case:
    def make(dtype: torch.dtype) -> Trial:
        x, w = strided(size * torch.randn(n, features).to(dtype)), torch.randn(outputs, features).to(dtype)
        b = torch.randn(outputs) if bias else None
        r = None if residual == "none" else strided(torch.randn(n, outputs).to(dtype))
        wide_r = None if r is None else r.double()

        def run() -> Outputs:
            out = strided(poisoned(n, outputs, dtype=dtype))
            if r is None or residual == "apart":
                return {"y": gemv(x, w, r, bias=b, out=out)}
            updated = strided(r)
            return {"y": gemv(x, w, updated, bias=b, out=updated)}

        return Trial(run, lambda: {"y": gemv_reference.gemv(x.double(), w.double(), wide_r, b)})

    flags = ("-bias" if bias else "") + ("" if residual == "none" else f"-residual {residual}")
    return Case("gemv", f"{n}x{features}x{outputs}{flags}{'-large' if size > 1 else ''}", make)


def logits_case(n: int) -> Case:
    """fp32 logits from the model's dtype, and a bias in that dtype."""

    def make(dtype: torch.dtype) -> Trial:
        x, w, b = torch.randn(n, 64).to(dtype), torch.randn(500, 64).to(dtype), torch.randn(500).to(dtype)
        run = lambda: {"fp32 y": gemv(x, w, bias=b, out=poisoned(n, 500, dtype=torch.float32))}  # noqa: E731
        return Trial(run, lambda: {"fp32 y": gemv_reference.gemv(x.double(), w.double(), None, b)})

    return Case("gemv", f"logits-{n}", make)


def gated_case(n: int, features: int, intermediate: int, activation: str, size: float = 1.0) -> Case:
    def make(dtype: torch.dtype) -> Trial:
        x = strided(size * torch.randn(n, features).to(dtype))
        w = torch.randn(2 * intermediate, features).to(dtype)

        def run() -> Outputs:
            return {"y": gated_gemv(x, w, activation, out=strided(poisoned(n, intermediate, dtype=dtype)))}

        return Trial(run, lambda: {"y": gemv_reference.gated_gemv(x.double(), w.double(), activation)})

    return Case("gated_gemv", f"{n}x{features}x{intermediate}-{activation}{'-large' if size > 1 else ''}", make)


# ---- rms_norm ----------------------------------------------------------------------------------------------------


def rms_case(*shape: int, residual: bool = False, in_place: bool = False, size: float = 1.0) -> Case:
    def make(dtype: torch.dtype) -> Trial:
        given, weight = (size * torch.randn(shape)).to(dtype), torch.randn(shape[-1])
        start = torch.randn(shape).to(dtype)
        summed = (given.double() + start.double()).to(dtype) if residual else given

        def run() -> Outputs:
            x, r = strided(given), strided(start) if residual else None
            out = x if in_place else strided(poisoned(*shape, dtype=dtype))
            outputs = {"y": rms_norm(x, weight, 1e-5, r, out=out)}
            return outputs if r is None else outputs | {"residual": r}

        def expected() -> Outputs:
            outputs = {"y": rms_reference.rms_norm(summed.double(), weight, 1e-5)}
            return outputs | {"residual": summed.double()} if residual else outputs

        return Trial(run, expected)

    flags = ("-residual" if residual else "") + ("-in place" if in_place else "") + ("-large" if size > 1 else "")
    return Case("rms_norm", "x".join(map(str, shape)) + flags, make)


# ---- rope --------------------------------------------------------------------------------------------------------


def rope_case(what: str, tokens: int, heads: int, kv_heads: int, dim: int) -> Case:
    """q, k and v are views of one projection; the caches are slices of a larger, poisoned reservation."""

    def make(dtype: torch.dtype) -> Trial:
        qkv = strided(torch.randn(tokens, (heads + 2 * kv_heads) * dim).to(dtype))
        cos, sin = tables(700, dim)
        positions = torch.randint(0, 700, (tokens,), dtype=torch.int32)
        rows = torch.randint(0, 3, (tokens,))  # int64 on purpose: any integers are taken
        slots = torch.randperm(tokens + 5)[:tokens].int()

        def outcome(x: Tensor, ops: Sequence[Callable[..., None]]) -> Outputs:
            q, k, v = x.clone().split([heads * dim, kv_heads * dim, kv_heads * dim], dim=1)
            q, k, v = q.unflatten(1, (heads, dim)), k.unflatten(1, (kv_heads, dim)), v.unflatten(1, (kv_heads, dim))
            reserved = poisoned(2, 3, kv_heads + 1, tokens + 9, dim, dtype=x.dtype)
            caches = reserved[0, :, :kv_heads, : tokens + 5], reserved[1, :, :kv_heads, : tokens + 5]
            arguments = {
                "rotate_and_append": (q, k, v, cos, sin, positions, *caches, rows, slots),
                "apply": (q, k, cos, sin, positions),
                "append": (k, v, *caches, rows, slots),
            }
            for op in ops:
                op(*arguments[op.__name__])
            return {"q": q, "k": k, "caches": reserved}

        own = {"fused": (rotate_and_append,), "apply": (apply,), "append": (append,)}[what]
        naive = {"fused": ("apply", "append"), "apply": ("apply",), "append": ("append",)}[what]
        theirs = tuple(getattr(rope_reference, name) for name in naive)
        return Trial(lambda: outcome(qkv, own), lambda: outcome(qkv.double(), theirs))

    return Case("rope", f"{what}-{tokens}x{heads}x{kv_heads}x{dim}", make)


# ---- flash_decode ------------------------------------------------------------------------------------------------


def random_spans(n: int, selections: int, tokens: int, count: int) -> Tensor:
    """`count` disjoint ragged spans, some of them empty, with arbitrary query positions."""
    cuts = torch.randint(0, tokens + 1, (n, selections, 2 * count)).sort(-1).values
    return torch.stack((cuts[..., ::2], cuts[..., 1::2], torch.randint(0, 700, (n, selections, count))), -1).int()


def flash_case(
    tokens: int,
    dim: int,
    heads: int,
    kv_heads: int,
    selections: int,
    *,
    kind: str = "ragged",
    n: int = 2,
    rotated: bool = False,
    softcap: float = 0.0,
    scale: float | None = None,
) -> Case:
    """Everything outside the spans is NaN, in a slice of a larger NaN reservation."""

    def make(dtype: torch.dtype) -> Trial:
        q = strided(torch.randn(n, heads, dim).to(dtype))
        rows = torch.randperm(n + 1)[:n].int()
        spans = random_spans(n, selections, tokens, 3)
        if kind == "full":
            spans = dense_spans([tokens] * n).expand(n, selections, 1, 3)
        elif kind == "empty":
            spans[..., 1] = spans[..., 0]
        elif kind == "half empty":
            spans[0, ..., 1] = spans[0, ..., 0]
        reserved = poisoned(2, n + 1, kv_heads + 1, tokens + 20, dim, dtype=dtype)
        keys, values = reserved[0, :, :kv_heads, : tokens + 8], reserved[1, :, :kv_heads, : tokens + 8]
        fill(keys, spans, rows)
        fill(values, spans, rows)
        cos, sin = tables(700, dim) if rotated else (None, None)
        options = {"cos": cos, "sin": sin, "scale": scale or dim**-0.5, "softcap": softcap}

        def run() -> Outputs:
            out, lse = flash_decode(q, keys, values, spans, rows, out=poisoned(*q.shape, dtype=dtype), **options)
            return {"out": out, "fp32 lse": lse}

        def expected() -> Outputs:
            out, lse = flash_reference.flash_decode(q.double(), keys.double(), values.double(), spans, rows, **options)
            return {"out": out, "fp32 lse": lse}

        return Trial(run, expected)

    groups = {1: "S=1", kv_heads: "S=G", heads: "S=H"}[selections]
    flags = ("-rotated" if rotated else "") + ("-softcap" if softcap else "") + ("-extreme" if scale else "")
    return Case("flash_decode", f"{tokens}x{n}x{heads}x{kv_heads}x{dim}-{groups}-{kind}{flags}", make)


def fill(cache: Tensor, spans: Tensor, rows: Tensor) -> None:
    """Random values where some span reads, in the KV heads it reads."""
    kv_heads, selections = cache.shape[1], spans.shape[1]
    for i, row in enumerate(rows.tolist()):
        for kv_head in range(kv_heads):
            first, last = kv_head * selections // kv_heads, max(1, (kv_head + 1) * selections // kv_heads)
            for start, stop, _ in spans[i, first:last].flatten(0, 1).tolist():
                cache[row, kv_head, start:stop] = torch.randn(stop - start, cache.shape[-1]).to(cache.dtype)


def flash_grid() -> list[Case]:
    """Lengths x head dimensions x group sizes x selections, the options dealt out in turn."""
    options = cycle(({}, {"rotated": True}, {"softcap": 5.0}, {"kind": "full"}, {"rotated": True, "softcap": 20.0}))
    shapes = product((1, 63, 100, 500), (16, 64, 80, 128), ((2, 2), (6, 2), (8, 2), (8, 1)))
    return [
        flash_case(tokens, dim, heads, kv_heads, selections, **next(options))
        for tokens, dim, (heads, kv_heads) in shapes
        for selections in sorted({1, kv_heads, heads})
    ]


CASES = [
    *(gemv_case(*shape) for shape in ((1, 576, 576), (1, 63, 49), (2, 500, 100), (2, 5000, 17))),
    *(gemv_case(*shape) for shape in ((4, 31, 3), (17, 100, 63))),
    gemv_case(1, 100, 63, bias=True, residual="apart"),
    gemv_case(3, 500, 33, bias=True, residual="in place"),
    gemv_case(5, 2100, 18, bias=True),
    gemv_case(16, 1100, 40, residual="in place"),
    gemv_case(3, 100, 63, size=1e15),
    logits_case(1),
    logits_case(7),
    *(gated_case(*shape, "silu") for shape in ((1, 576, 1536), (3, 63, 49), (16, 100, 17))),
    *(gated_case(*shape, "gelu_tanh") for shape in ((1, 100, 63), (4, 500, 16))),
    gated_case(2, 63, 100, "silu", size=1e4),
    gated_case(2, 63, 100, "gelu_tanh", size=1e4),
    rms_case(1, 576),
    rms_case(3, 63),
    rms_case(200, 500),
    rms_case(5, 9, 64),
    rms_case(5, 3, 80, in_place=True),
    rms_case(2, 3, 4, 16),
    rms_case(7, 100, residual=True),
    rms_case(2, 3, 16, residual=True),
    rms_case(4, 576, size=1e6),
    *(rope_case("fused", *shape) for shape in ((1, 9, 3, 64), (63, 2, 2, 16), (100, 8, 1, 80), (5, 4, 1, 128))),
    *(rope_case("apply", *shape) for shape in ((1, 3, 1, 128), (63, 8, 2, 80))),
    *(rope_case("append", *shape) for shape in ((1, 3, 3, 64), (500, 2, 2, 16))),
    *flash_grid(),
    *(flash_case(100, 64, 6, 2, s, kind=kind, n=3) for s in (1, 2, 6) for kind in ("empty", "half empty")),
    *(flash_case(63, 64, 4, 1, s, scale=300.0, kind="full") for s in (1, 4)),
    flash_case(63, 64, 4, 1, 1, scale=300.0, softcap=30.0),
    flash_case(500, 64, 9, 3, 9, n=20, rotated=True),
    flash_case(100, 64, 1, 1, 1),
]
# Large enough that the kernels use a team of threads.
TEAM_CASES = [
    gemv_case(1, 577, 577),
    gated_case(3, 576, 100, "silu"),
    rms_case(300, 577, residual=True),
    rope_case("fused", 300, 3, 1, 64),
    flash_case(500, 64, 9, 3, 1, kind="full", n=1),
    flash_case(500, 128, 4, 1, 4, n=5, rotated=True),
    flash_case(500, 64, 1, 1, 1, kind="full", n=1),
]
# Few programs, for the interpreter of the Triton kernels.
SMALL_CASES = [
    gemv_case(1, 300, 33, bias=True, residual="apart"),
    gemv_case(3, 63, 17, bias=True, residual="in place"),
    gemv_case(17, 100, 20),
    logits_case(2),
    gated_case(1, 100, 17, "silu"),
    gated_case(3, 63, 20, "gelu_tanh"),
    rms_case(2, 63),
    rms_case(2, 3, 80, in_place=True),
    rms_case(3, 100, residual=True),
    rope_case("fused", 3, 6, 2, 80),
    rope_case("apply", 2, 3, 1, 16),
    rope_case("append", 3, 3, 3, 64),
    *(flash_case(100, 80, 4, 2, s, rotated=True, n=1) for s in (1, 2, 4)),
    flash_case(1, 64, 3, 1, 1, kind="full", n=1),
    flash_case(100, 64, 2, 2, 1, kind="full", softcap=5.0),
    flash_case(63, 16, 3, 1, 3, kind="half empty"),
    flash_case(63, 64, 4, 1, 1, kind="full", scale=300.0),
]
