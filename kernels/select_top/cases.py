"""The contract and the realistic shapes of select_top."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from kernels.contract import Case, Race, SpeedCase, Trial, poisoned, strided
from kernels.select_top import reference, select_top, top
from kernels.select_top.cost import select_top_cost


def small_integers(*shape: int) -> Tensor:
    """So few that many scores are equal, and that every order of summing gives the same."""
    return torch.randint(-2, 3, shape).float()


def select_case(
    rows: int,
    heads: int,
    owners: int,
    chunks: int,
    dim: int,
    k: int,
    *,
    selections: int | None = None,
    first: int = 0,
    seen: str = "random",
    size: float = 1.0,
) -> Case:
    """Chunks that no row may choose are NaN, in a larger reservation that is too. `seen`: "random", "all", "none"."""

    def make(dtype: torch.dtype) -> Trial:
        q = strided((size * small_integers(rows, heads, dim)).to(dtype))
        last = {
            "random": torch.randint(0, chunks + 4, (rows,)),
            "all": torch.full((rows,), chunks),
            "none": torch.full((rows,), first),
        }[seen]
        reps = poisoned(owners, chunks + 9, dim, dtype=dtype)[:, :chunks]
        stop = min(chunks, max(last.tolist(), default=0))
        reps[:, first:stop] = (size * small_integers(owners, max(0, stop - first), dim)).to(dtype)
        count = heads if selections is None else selections

        def run() -> dict[str, Tensor]:
            return {"chosen": select_top(q, reps, k, last, first=first, selections=selections)}

        wide = q.double(), reps.double()
        return Trial(run, lambda: {"chosen": reference.select_top(*wide, k, last, first=first, selections=count)})

    flags = (
        (f"-S{selections}" if selections else "") + (f"-from {first}" if first else "") + ("-large" if size > 1 else "")
    )
    return Case("select_top", f"{rows}x{heads}x{owners}x{chunks}x{dim}-{k}-{seen}{flags}", make)


def top_case(rows: int, chunks: int, k: int, *, first: int = 0, values: str = "few", limited: bool = True) -> Case:
    """fp32 scores whatever the dtype. `values`: "few" different, "many", "equal", or "odd": NaN, infinities, zeros."""

    def make(dtype: torch.dtype) -> Trial:
        pool = torch.tensor([torch.nan, torch.inf, -torch.inf, 0.0, -0.0, 3e38, -3e38, 1e-45])
        scores = {
            "few": small_integers(rows, chunks),
            "many": torch.randn(rows, chunks),
            "equal": torch.full((rows, chunks), -1.5),
            "odd": pool[torch.randint(0, len(pool), (rows, chunks))],
        }[values]
        wide = strided(scores)
        last = torch.randint(0, chunks + 1, (rows,)) if limited else None
        return Trial(
            lambda: {"chosen": top(wide, k, last, first=first)},
            lambda: {"chosen": reference.top(scores, k, last, first=first)},
        )

    flags = (f"-from {first}" if first else "") + ("" if limited else "-whole")
    return Case("select_top", f"top-{rows}x{chunks}-{k}-{values}{flags}", make)


def guarded_calls(guarded: Callable[..., Tensor], dtype: torch.dtype) -> None:
    """33 chunks: two whole blocks and one more."""
    last = guarded(3, dtype=torch.int32).copy_(torch.tensor([33, 7, 40]))
    for dim in (64, 80):
        q, reps = guarded(3, 4, dim, dtype=dtype), guarded(2, 33, dim, dtype=dtype)
        select_top(q, reps, 5, last, out=guarded(3, 4, 5, dtype=torch.int32))
    top(guarded(3, 33), 5, last, out=guarded(3, 5, dtype=torch.int32))


def speed_case(name: str, rows: int, heads: int, chunks: int, dim: int, k: int) -> SpeedCase:
    """Every head chooses its own chunks, as in LongHeads."""

    def make(dtype: torch.dtype) -> Race:
        q, reps = torch.randn(rows, heads, dim).to(dtype), torch.randn(heads, chunks, dim).to(dtype)
        last = torch.full((rows,), chunks).int()

        def peer() -> Tensor:
            scores = torch.einsum("thd,hcd->thc", q, reps)
            return scores.topk(k, dim=-1, sorted=False).indices.sort(dim=-1).values

        cost = select_top_cost(rows * chunks, chunks, q.shape, heads, heads, k, dtype.itemsize)
        return Race(lambda: select_top(q, reps, k, last), cost, {"torch einsum + topk + sort": peer})

    return SpeedCase("select_top", name, make)


CASES = [
    select_case(1, 3, 3, 1, 64, 1),
    select_case(1, 9, 9, 63, 64, 13, seen="all"),
    select_case(5, 8, 2, 100, 80, 7),
    select_case(20, 4, 1, 500, 16, 40, first=1),
    select_case(3, 8, 1, 100, 128, 5, selections=1),
    select_case(18, 6, 6, 100, 64, 9, selections=2),
    select_case(4, 6, 2, 63, 64, 100, first=3),
    select_case(2, 2, 2, 40, 64, 0),
    select_case(2, 2, 2, 40, 64, 6, seen="none", first=10),
    select_case(2, 4, 4, 0, 64, 3),
    select_case(0, 4, 4, 10, 64, 3),
    select_case(6, 4, 2, 100, 64, 10, size=2.0**50),
    *(top_case(5, chunks, k) for chunks, k in ((1, 1), (63, 5), (500, 100))),
    *(top_case(7, 100, 30, values=values) for values in ("many", "equal", "odd")),
    top_case(3, 100, 30, first=20, limited=False),
    top_case(3, 40, 60, values="odd", limited=False),
]
TEAM_CASES = [select_case(40, 9, 3, 300, 64, 20), top_case(300, 500, 20, values="many")]
SMALL_CASES = [
    select_case(3, 4, 2, 70, 80, 7, first=1),
    select_case(18, 2, 2, 20, 16, 25, selections=1),
    select_case(2, 2, 1, 30, 64, 4, seen="none"),
    top_case(3, 1500, 40),
    top_case(2, 100, 30, values="odd"),
    top_case(2, 30, 40, first=3, values="equal", limited=False),
]
SPEED_CASES = [
    speed_case("1 x 9 heads, 2K chunks", 1, 9, 2048, 64, 61),
    speed_case("1 x 32 heads, 2K chunks of 128", 1, 32, 2048, 128, 61),
    speed_case("256 x 9 heads, 512 chunks", 256, 9, 512, 64, 13),
]
