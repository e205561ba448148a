"""The contract and the realistic shapes of segment_reduce."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from kernels.contract import Case, Race, SpeedCase, Trial, poisoned, strided
from kernels.segment_reduce import probe_pool, reference, segment_mass, segment_sum
from kernels.segment_reduce.cost import probe_pool_cost, segment_mass_cost, segment_sum_cost

_F32 = torch.float32


def ragged(tokens: int, segments: int, *, covering: bool = False) -> Tensor:
    """Ascending offsets [segments + 1] within `tokens`, some segments empty; `covering`: from the first to the last."""
    offsets = torch.randint(0, tokens + 1, (segments + 1,)).sort().values.int()
    if covering:
        offsets[0], offsets[-1] = 0, tokens
    return offsets


def sum_case(
    tokens: int,
    dim: int,
    segments: int,
    kind: str = "sum",
    *,
    batches: int = 2,
    groups: int = 3,
    same: float | None = None,
) -> Case:
    """Tokens in no segment are NaN, in a slice of a larger NaN reservation. `same`: all values are alike."""

    def make(dtype: torch.dtype) -> Trial:
        offsets = ragged(tokens, segments, covering=same is not None)
        x = poisoned(batches, groups + 1, tokens + 9, dim + 16, dtype=dtype)[:, :groups, :tokens, :dim]
        first, last = int(offsets[0]), int(offsets[-1])
        x[:, :, first:last] = torch.randn(batches, groups, last - first, dim) if same is None else same
        out_shape = batches, groups, segments, dim
        return Trial(
            lambda: {"fp32 y": segment_sum(x, offsets, kind, out=poisoned(*out_shape, dtype=_F32))},
            lambda: {"fp32 y": reference.segment_sum(x.double(), offsets, kind)},
        )

    flags = "" if same is None else "-alike"
    return Case("segment_reduce", f"{kind}-{batches}x{groups}x{tokens}x{dim}-{segments}{flags}", make)


def plain_case(tokens: int, dim: int, segments: int, kind: str) -> Case:
    """[T, D] with rows further apart than D."""

    def make(dtype: torch.dtype) -> Trial:
        x, offsets = strided(torch.randn(tokens, dim).to(dtype)), ragged(tokens, segments)
        return Trial(
            lambda: {"fp32 y": segment_sum(x, offsets, kind)},
            lambda: {"fp32 y": reference.segment_sum(x.double(), offsets, kind)},
        )

    return Case("segment_reduce", f"{kind}-{tokens}x{dim}-{segments}", make)


def probe_case(
    rows: int, columns: int, *, given: bool = False, size: float = 1.0, shift: float = 0.0, same: bool = False
) -> Case:
    def make(dtype: torch.dtype) -> Trial:
        values = (size * torch.randn(1 if same else rows, columns) + shift).to(dtype)
        x = strided(values.expand(rows, columns))
        running = (torch.randn(columns), torch.rand(columns) + 0.1) if given else None
        wide = None if running is None else (running[0].double(), running[1].double())
        return Trial(
            lambda: {"fp32 y": probe_pool(x, running, out=poisoned(columns, dtype=_F32))},
            lambda: {"fp32 y": reference.probe_pool(x.double(), wide)},
        )

    flags = ("-given" if given else "") + ("-large" if size > 1 else "") + ("-shifted" if shift else "")
    return Case("segment_reduce", f"probe-{rows}x{columns}{flags}{'-alike' if same else ''}", make)


def mass_case(
    rows: int,
    tokens: int,
    dim: int,
    heads: int,
    kv_heads: int,
    segments: int,
    *,
    scale: float | None = None,
    softcap: float = 0.0,
    seen: str = "random",
) -> Case:
    """Keys that no row sees are NaN. `seen`: "random" positions, "causal" (the last rows), "nothing" or "all"."""

    def make(dtype: torch.dtype) -> Trial:
        q, offsets = strided(torch.randn(rows, heads, dim).to(dtype)), ragged(tokens, segments)
        positions = {
            "random": torch.randint(-1, tokens, (rows,)),
            "causal": torch.arange(tokens - rows, tokens),
            "nothing": torch.full((rows,), -1),
            "all": torch.full((rows,), tokens + 5),
        }[seen].int()
        keys = poisoned(kv_heads, tokens + 9, dim + 16, dtype=dtype)[:, :tokens, :dim]
        last = min(int(positions.max()) + 1, tokens)
        keys[:, :last] = torch.randn(kv_heads, last, dim).to(dtype)
        factor = dim**-0.5 if scale is None else scale
        out_shape, rules = (rows, heads, segments), {"scale": factor, "softcap": softcap}
        return Trial(
            lambda: {
                "fp32 mass": segment_mass(q, keys, offsets, positions, **rules, out=poisoned(*out_shape, dtype=_F32))
            },
            lambda: {"fp32 mass": reference.segment_mass(q.double(), keys.double(), offsets, positions, **rules)},
        )

    flags = f"-{seen}{'-extreme' if scale else ''}{'-softcap' if softcap else ''}"
    return Case("segment_reduce", f"mass-{rows}x{tokens}x{dim}-{heads}x{kv_heads}-{segments}{flags}", make)


def sum_speed(dtype: torch.dtype) -> Race:
    """32K tokens of a cache in segments of 16 to 128."""
    tokens, heads, dim = 32768, 3, 64
    lengths = torch.randint(16, 129, (tokens // 72,))
    offsets = torch.cat((torch.zeros(1), lengths.cumsum(0))).clamp(max=tokens).int()
    segments, covered = len(lengths), int(offsets[-1])
    x, out = torch.randn(1, heads, tokens, dim).to(dtype), torch.empty(1, heads, segments, dim)
    owner = torch.repeat_interleave(torch.arange(segments), offsets.diff())

    def peer() -> Tensor:
        return out.new_zeros(out.shape).index_add_(2, owner, x[:, :, :covered].float())

    cost = segment_sum_cost(covered, segments, heads, dim, dtype.itemsize)
    return Race(lambda: segment_sum(x, offsets, out=out), cost, {"torch index_add": peer})


def probe_speed(dtype: torch.dtype) -> Race:
    """A window of 256 queries of SmolLM2-135M."""
    x = torch.randn(256, 576).to(dtype)
    cost = probe_pool_cost(256, 576, dtype.itemsize)
    return Race(lambda: probe_pool(x), cost, {"torch": lambda: reference.probe_pool(x)})


def mass_speed(dtype: torch.dtype) -> Race:
    """The teacher of one layer of SmolLM2-135M: a window of 768 tokens in chunks of 20."""
    tokens, heads, kv_heads, dim = 768, 9, 3, 64
    q, keys = torch.randn(tokens, heads, dim).to(dtype), torch.randn(kv_heads, tokens, dim).to(dtype)
    positions, offsets = torch.arange(tokens).int(), torch.arange(0, tokens, 20).int()
    segments = len(offsets) - 1
    owner = torch.zeros(tokens, segments).to(dtype)
    owner[torch.arange(segments * 20), torch.arange(segments).repeat_interleave(20)] = 1
    hidden = torch.ones(tokens, tokens, dtype=torch.bool).triu(1)

    def peer() -> Tensor:
        logits = q.transpose(0, 1) @ keys.repeat_interleave(heads // kv_heads, 0).mT * dim**-0.5
        mass: Tensor = logits.masked_fill(hidden, -torch.inf).softmax(-1) @ owner
        return mass

    visible = tokens * (tokens + 1) // 2
    cost = segment_mass_cost(visible, tokens, segments, tokens, heads, kv_heads, dim, dtype.itemsize)
    run = lambda: segment_mass(q, keys, offsets, positions, scale=dim**-0.5)  # noqa: E731
    return Race(run, cost, {"torch softmax + matmul": peer})


def guarded_calls(guarded: Callable[..., Tensor], dtype: torch.dtype) -> None:
    """Every function on tensors behind which nothing may be read or written."""
    offsets = guarded(4, dtype=torch.int32).copy_(torch.tensor([0, 5, 5, 33]))
    for dim in (63, 80):
        segment_sum(guarded(1, 2, 33, dim, dtype=dtype), offsets, out=guarded(1, 2, 3, dim))
        probe_pool(guarded(33, dim, dtype=dtype), (guarded(dim), guarded(dim).abs_()), out=guarded(dim))
        positions = guarded(5, dtype=torch.int32).copy_(torch.arange(28, 33))
        q, keys = guarded(5, 6, dim, dtype=dtype), guarded(2, 33, dim, dtype=dtype)
        segment_mass(q, keys, offsets, positions, scale=1.0, out=guarded(5, 6, 3))


CASES = [
    *(sum_case(t, d, n) for t, d, n in ((1, 16, 1), (63, 63, 7), (100, 64, 0), (100, 80, 150), (500, 128, 9))),
    *(sum_case(t, d, n, "mean") for t, d, n in ((63, 16, 5), (500, 80, 3))),
    *(sum_case(t, d, n, "sqrt") for t, d, n in ((100, 64, 12), (500, 200, 2), (1, 7, 3))),
    *(sum_case(100_000, 16, 1, kind, batches=1, groups=1, same=0.1) for kind in ("sum", "mean", "sqrt")),
    *(plain_case(100, 63, 6, kind) for kind in ("sum", "mean", "sqrt")),
    *(probe_case(m, f) for m, f in ((1, 64), (2, 63), (63, 500), (256, 576), (500, 16))),
    probe_case(64, 100, given=True),
    probe_case(1, 16, given=True),
    probe_case(64, 100, size=1e15),
    probe_case(64, 100, shift=100.0),
    probe_case(9, 63, same=True),
    probe_case(0, 48),
    *(mass_case(n, t, d, 6, g, s) for n, t, d, g, s in ((1, 1, 16, 6, 1), (3, 63, 64, 2, 5), (2, 100, 80, 1, 9))),
    *(mass_case(n, t, d, 8, g, s) for n, t, d, g, s in ((5, 100, 128, 8, 200), (2, 63, 63, 2, 3), (2, 63, 64, 1, 0))),
    mass_case(40, 500, 64, 9, 3, 25, seen="causal"),
    mass_case(70, 70, 64, 1, 1, 8, seen="causal"),
    mass_case(3, 500, 64, 4, 1, 1, seen="all"),
    mass_case(3, 100, 64, 4, 2, 6, seen="nothing"),
    mass_case(6, 100, 64, 4, 1, 6, scale=300.0),
    mass_case(6, 100, 64, 4, 2, 6, scale=2.0, softcap=5.0),
]
TEAM_CASES = [
    sum_case(500, 128, 40, batches=1),
    probe_case(256, 576),
    mass_case(80, 500, 64, 4, 2, 9, seen="causal"),
]
SMALL_CASES = [
    sum_case(63, 80, 5, "sqrt", batches=1, groups=2),
    sum_case(63, 63, 5, "mean", batches=2, groups=1),
    sum_case(5000, 16, 1, batches=1, groups=1, same=0.1),
    plain_case(40, 16, 0, "sum"),
    probe_case(40, 100),
    probe_case(5, 63, given=True),
    probe_case(3, 16, same=True),
    probe_case(0, 16),
    mass_case(23, 63, 64, 6, 2, 5, seen="causal"),
    mass_case(2, 40, 80, 2, 1, 9),
    mass_case(2, 40, 16, 2, 1, 3, scale=300.0),
    mass_case(2, 40, 16, 2, 1, 3, scale=2.0, softcap=5.0),
    mass_case(2, 40, 16, 2, 1, 3, seen="nothing"),
]
SPEED_CASES = [
    SpeedCase("segment_reduce", "sum-3x32K", sum_speed, (torch.bfloat16, torch.float32)),
    SpeedCase("segment_reduce", "probe-256x576", probe_speed),
    SpeedCase("segment_reduce", "mass-768", mass_speed),
]
