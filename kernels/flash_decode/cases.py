"""The contract and the realistic shapes of flash_decode."""

from __future__ import annotations

from collections.abc import Callable
from itertools import cycle, product
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from kernels.contract import Case, Outputs, Race, SpeedCase, Trial, poisoned, strided
from kernels.flash_decode import dense_spans, flash_decode, reference
from kernels.flash_decode.cost import flash_decode_cost
from kernels.rope.cases import tables


def random_spans(n: int, selections: int, tokens: int, count: int) -> Tensor:
    """`count` disjoint ragged spans, some of them empty, with arbitrary query positions."""
    cuts = torch.randint(0, tokens + 1, (n, selections, 2 * count)).sort(-1).values
    return torch.stack((cuts[..., ::2], cuts[..., 1::2], torch.randint(0, 700, (n, selections, count))), -1).int()


def short_spans(n: int, selections: int, tokens: int) -> Tensor:
    """Many spans of few tokens; query positions change now and then."""
    spans = random_spans(n, selections, tokens, tokens // 15)
    spans[..., 2] = 250 * torch.randint(0, 3, spans.shape[:-1]).sort(-1).values
    return spans


def sharing_spans(n: int, tokens: int) -> Tensor:
    """Rows that begin with the same 3/5 of the tokens, go on a little together, and then apart."""
    most, apart = tokens * 3 // 5, tokens * 4 // 5
    rows = torch.arange(n)
    together = torch.stack((torch.zeros(n), torch.full((n,), most)), -1)
    further = torch.stack((torch.full((n,), most + 1), most + 1 + rows % 3 * 5), -1)
    own = torch.stack((apart + 2 * rows, apart + 2 * rows + 1 + rows % 2), -1)
    spans = torch.stack((together, further, own), 1)
    return torch.cat((spans, torch.zeros(n, 3, 1)), -1).int()[:, None]


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
    opposed: bool = False,
) -> Case:
    """Everything outside the spans is NaN, in a slice of a larger NaN reservation. `opposed`: all logits negative."""

    def make(dtype: torch.dtype) -> Trial:
        q = strided(torch.randn(n, heads, dim).to(dtype))
        rows = torch.randperm(n + 1)[:n].int()
        spans = random_spans(n, selections, tokens, 3)
        if kind == "short":
            spans = short_spans(n, selections, tokens)
        elif kind == "shared":  # by all rows but the last two, and by those
            rows, spans = (torch.arange(n) >= n - 2).int(), sharing_spans(n, tokens)
        elif kind == "full":
            spans = dense_spans([tokens] * n).expand(n, selections, 1, 3)
        elif kind == "empty":
            spans[..., 1] = spans[..., 0]
        elif kind == "half empty":
            spans[0, ..., 1] = spans[0, ..., 0]
        reserved = poisoned(2, n + 1, kv_heads + 1, tokens + 20, dim, dtype=dtype)
        keys, values = reserved[0, :, :kv_heads, : tokens + 8], reserved[1, :, :kv_heads, : tokens + 8]
        fill(keys, spans, rows)
        fill(values, spans, rows)
        if opposed:
            q.abs_()
            keys.abs_().neg_()
        cos, sin = tables(700, dim) if rotated else (None, None)
        options: dict[str, Any] = {"cos": cos, "sin": sin, "scale": scale or dim**-0.5, "softcap": softcap}

        def run() -> Outputs:
            out, lse = flash_decode(q, keys, values, spans, rows, out=poisoned(*q.shape, dtype=dtype), **options)
            return {"out": out, "fp32 lse": lse}

        def expected() -> Outputs:
            out, lse = reference.flash_decode(q.double(), keys.double(), values.double(), spans, rows, **options)
            return {"out": out, "fp32 lse": lse}

        return Trial(run, expected)

    groups = {1: "S=1", kv_heads: "S=G", heads: "S=H"}[selections]
    flags = ("-rotated" if rotated else "") + ("-softcap" if softcap else "") + ("-extreme" if scale else "")
    flags += "-opposed" if opposed else ""
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
    options: cycle[dict[str, Any]] = cycle(
        ({}, {"rotated": True}, {"softcap": 5.0}, {"kind": "full"}, {"rotated": True, "softcap": 20.0})
    )
    shapes = product((1, 63, 100, 500), (16, 64, 80, 128), ((2, 2), (6, 2), (8, 2), (8, 1)))
    return [
        flash_case(tokens, dim, heads, kv_heads, selections, **next(options))
        for tokens, dim, (heads, kv_heads) in shapes
        for selections in sorted({1, kv_heads, heads})
    ]


CASES = [
    *flash_grid(),
    *(flash_case(100, 64, 6, 2, s, kind=kind, n=3) for s in (1, 2, 6) for kind in ("empty", "half empty")),
    *(flash_case(63, 64, 4, 1, s, scale=300.0, kind="full") for s in (1, 4)),
    flash_case(63, 64, 4, 1, 1, scale=300.0, softcap=30.0),
    *(
        flash_case(tokens, 64, heads, 1, 1, scale=8.0, opposed=True, kind="full")
        for tokens in (63, 500)
        for heads in (3, 8)
    ),
    flash_case(500, 64, 9, 3, 9, n=20, rotated=True),
    *(
        flash_case(500, dim, 6, 2, s, kind="short", rotated=rotated)
        for dim, s, rotated in ((64, 1, True), (64, 1, False), (64, 2, True), (128, 6, True), (80, 1, True))
    ),
    flash_case(100, 64, 1, 1, 1),
    *(
        flash_case(500, dim, heads, kv_heads, 1, kind="shared", n=n, softcap=softcap)
        for dim, (heads, kv_heads), n, softcap in (
            (64, (9, 3), 16, 0.0),
            (16, (6, 2), 10, 0.0),
            (80, (8, 1), 7, 5.0),
            (128, (2, 2), 40, 0.0),
        )
    ),
    flash_case(500, 64, 3, 1, 1, kind="shared", n=9, scale=8.0, opposed=True),
    flash_case(500, 64, 3, 1, 1, kind="shared", n=9, scale=300.0),
]
TEAM_CASES = [
    flash_case(500, 64, 9, 3, 1, kind="full", n=1),
    flash_case(500, 128, 4, 1, 4, n=5, rotated=True),
    flash_case(500, 64, 1, 1, 1, kind="full", n=1),
    flash_case(500, 64, 9, 3, 1, kind="shared", n=16),
    flash_case(500, 128, 8, 1, 1, kind="shared", n=5),
]
SMALL_CASES = [
    *(flash_case(100, 80, 4, 2, s, rotated=True, n=1) for s in (1, 2, 4)),
    flash_case(1, 64, 3, 1, 1, kind="full", n=1),
    flash_case(100, 64, 2, 2, 1, kind="full", softcap=5.0),
    flash_case(63, 16, 3, 1, 3, kind="half empty"),
    flash_case(63, 64, 4, 1, 1, kind="full", scale=300.0),
]


def speed_case(
    tokens: int, heads: int, kv_heads: int, dim: int, kept: float = 1.0, *, rotated: bool = False
) -> SpeedCase:
    """One query over a long cache, or over a share `kept` of it in scattered spans of 16 to 48 tokens.

    `rotated`: the kernel turns the query, to one position for all spans, as methods have it do.
    """

    def make(dtype: torch.dtype) -> Race:
        q = torch.randn(1, heads, dim).to(dtype)
        keys, values = (torch.randn(1, kv_heads, tokens, dim).to(dtype) for _ in range(2))
        rows, out = torch.zeros(1, dtype=torch.int32), torch.empty_like(q)
        whole = dense_spans([tokens])
        spans = whole if kept == 1.0 else scattered(tokens, kept)
        read = int((spans[..., 1] - spans[..., 0]).sum())
        cost = flash_decode_cost(read, 1, 1, heads, kv_heads, dim, q.element_size(), span_count=spans.shape[2])
        cos, sin = tables(700, dim) if rotated else (None, None)

        def attend(spans: Tensor) -> Tensor:
            return flash_decode(q, keys, values, spans, rows, cos=cos, sin=sin, scale=dim**-0.5, out=out)[0]

        def peer() -> Tensor:
            return F.scaled_dot_product_attention(q[:, :, None], keys, values, enable_gqa=True)

        peers: dict[str, Callable[[], object]] = {"torch SDPA": peer}
        if kept < 1.0:
            peers = {"kernels.flash_decode dense": lambda: attend(whole)}
        return Race(lambda: attend(spans), cost, peers)

    share = ("" if kept == 1.0 else f", {kept:.0%} in spans") + (", rotated" if rotated else "")
    return SpeedCase("flash_decode", f"{tokens // 1024}K {heads}/{kv_heads} x {dim}{share}", make)


def shared_speed_case(tokens: int, n: int, heads: int, kv_heads: int, dim: int) -> SpeedCase:
    """Chains behind one prompt, 16 tokens each; against the same where each row reads the prompt for itself."""

    def make(dtype: torch.dtype) -> Race:
        q = torch.randn(n, heads, dim).to(dtype)
        keys, values = (torch.randn(1, kv_heads, tokens + 16 * n, dim).to(dtype) for _ in range(2))
        rows, out = torch.zeros(n, dtype=torch.int32), torch.empty_like(q)
        prompt = torch.tensor([0, tokens, 0]).expand(n, 3)
        first = tokens + 16 * torch.arange(n)
        own = torch.stack((first, first + 16, torch.zeros(n, dtype=torch.int64)), -1)
        together, apart = (torch.stack(pair, 1).int()[:, None] for pair in ((prompt, own), (own, prompt)))
        cost = flash_decode_cost(n * (tokens + 16), 1, n, heads, kv_heads, dim, q.element_size(), span_count=2,
                                 distinct=tokens + 16 * n)  # fmt: skip

        def attend(spans: Tensor) -> Tensor:
            return flash_decode(q, keys, values, spans, rows, scale=dim**-0.5, out=out)[0]

        return Race(lambda: attend(together), cost, {"each row for itself": lambda: attend(apart)})

    return SpeedCase("flash_decode", f"{tokens} shared by {n}, {heads}/{kv_heads} x {dim}", make)


def scattered(tokens: int, kept: float) -> Tensor:
    """Spans [1, 1, n, 3] of 16 to 48 tokens, spread evenly over the cache."""
    spans: list[tuple[int, int, int]] = []
    position = 0.0
    make = torch.Generator().manual_seed(0)
    while True:
        length = int(torch.randint(16, 49, (), generator=make, device="cpu"))
        start = int(position)
        if start + length > tokens:
            return torch.tensor(spans, dtype=torch.int32)[None, None]
        spans.append((start, start + length, 0))
        position += length / kept


SPEED_CASES = [
    *(speed_case(tokens << 10, 9, 3, 64) for tokens in (8, 32, 128)),
    *(speed_case(tokens << 10, 32, 8, 128) for tokens in (8, 32)),
    *(speed_case(tokens << 10, 9, 3, 64, kept=0.25) for tokens in (8, 32, 128)),
    speed_case(32 << 10, 32, 8, 128, kept=0.25),
    speed_case(128 << 10, 9, 3, 64, kept=0.125, rotated=True),
    *(shared_speed_case(tokens, n, 9, 3, 64) for tokens, n in ((640, 6), (640, 16), (8192, 16))),
    shared_speed_case(2048, 8, 32, 8, 128),
]
