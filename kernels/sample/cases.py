"""The contract and the realistic shapes of sample.

Tokens must be exact, so uniform numbers lie in the middle of a likely token's interval of the CDF, and top-p in the
middle of a token's share of the ranking: rounding cannot move either across an edge.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from kernels.contract import Case, Outputs, Race, SpeedCase, Trial, poisoned, strided
from kernels.sample import reference, sample, statistics
from kernels.sample.cost import sample_cost, statistics_cost

_F32, _I32, _INF = torch.float32, torch.int32, float("inf")


def normal(rows: int, vocabulary: int) -> Tensor:
    """Nothing special."""
    return 3 * torch.randn(rows, vocabulary)


def tied(rows: int, vocabulary: int) -> Tensor:
    """Small integers: every rank is shared by many tokens."""
    return torch.randint(-3, 4, (rows, vocabulary)).float()


def alike(rows: int, vocabulary: int) -> Tensor:
    """One value: the most ties there can be, and the largest entropy."""
    return torch.full((rows, vocabulary), -2.5)


def holed(rows: int, vocabulary: int) -> Tensor:
    """Four in five are forbidden or NaN; the last row is empty and the one before has a single token."""
    x = normal(rows, vocabulary)
    x[torch.rand(x.shape) < 0.7] = -_INF
    x[torch.rand(x.shape) < 0.3] = torch.nan
    x[-2:] = -_INF
    x[-2, -1] = 1.0
    return x


def huge(rows: int, vocabulary: int) -> Tensor:
    """Near the ends of fp32, two tokens share each row; and moderate differences far from 0."""
    x = torch.randint(-9, 9, (rows, vocabulary)) * 3e37
    x[: rows // 2] = 1e4 + 64 * torch.randint(0, 3, (rows // 2, vocabulary))
    x[rows // 2 :, [0, -1]] = 3e38
    return x


def rising(rows: int, vocabulary: int) -> Tensor:
    """Each logit is larger than all before."""
    return torch.linspace(-20, 10, vocabulary).expand(rows, vocabulary)


def infinite(rows: int, vocabulary: int) -> Tensor:
    """Two logits of +inf: the entropy is not defined, and the first of them is drawn."""
    x = normal(rows, vocabulary)
    x[:, [vocabulary // 2, -1]] = _INF
    return x


Draw = Callable[[int, int], Tensor]


def statistics_case(rows: int, vocabulary: int, k: int, draw: Draw = normal) -> Case:
    def make(dtype: torch.dtype) -> Trial:
        logits = strided(draw(rows, vocabulary).to(dtype))
        return Trial(
            lambda: named(tuple(statistics(logits, k=k))), lambda: named(reference.statistics(logits.double(), k))
        )

    return Case("sample", f"statistics-{rows}x{vocabulary}-top {k}-{draw.__name__}", make)


def named(results: tuple[Tensor, ...]) -> Outputs:
    """Outputs of `statistics`, all of which are fp32 or integers."""
    return dict(zip(("fp32 logsumexp", "fp32 entropy", "top", "fp32 top_logits"), results, strict=True))


@dataclass(frozen=True)
class Settings:
    """Of each row: temperature, top_k and top_p [B]."""

    temperature: Tensor
    top_k: Tensor
    top_p: Tensor

    def of(self, row: int) -> tuple[float, int, float]:
        """Those of one row."""
        return float(self.temperature[row]), int(self.top_k[row]), float(self.top_p[row])


def settings(logits: Tensor, temperature: float, top_k: int, top_p: float) -> Settings:
    """The same for all rows, except that top_p is moved into the middle of a token's share of the ranking."""
    rows = len(logits)
    nuclei = [middle_of_ranking(row, temperature, top_k, top_p) if top_p < 1 else 1.0 for row in logits]
    return Settings(torch.full((rows,), temperature), torch.full((rows,), top_k).int(), torch.tensor(nuclei))


def middle_of_ranking(logits: Tensor, temperature: float, top_k: int, top_p: float) -> float:
    ranked = reference.restrict(logits, temperature, top_k, 1.0).sort(descending=True).values
    last = int((ranked.cumsum(0) - ranked < top_p).sum()) - 1
    return float(ranked[:last].sum() + ranked[last] / 2)


def middle_of_a_token(probabilities: Tensor) -> float:
    """A uniform number in the middle of the interval of a token that is drawn by its probability."""
    token = torch.multinomial(probabilities, 1)
    return float(probabilities[:token].sum() + probabilities[token] / 2)


def sample_case(
    rows: int,
    vocabulary: int,
    *,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    draw: Draw = normal,
) -> Case:
    def make(dtype: torch.dtype) -> Trial:
        logits = strided(draw(rows, vocabulary).to(dtype))
        return trial(logits, settings(logits, temperature, top_k, top_p))

    flags = f"T {temperature:g}-top {top_k}-p {top_p:g}"
    return Case("sample", f"sample-{rows}x{vocabulary}-{flags}-{draw.__name__}", make)


def mixed_case(vocabulary: int) -> Case:
    """Every row its own settings, a greedy one among them."""

    def make(dtype: torch.dtype) -> Trial:
        logits = strided(normal(7, vocabulary).to(dtype))
        temperature, top_k = torch.tensor([0, 1, 0.5, 1, 2, 1e-30, 1e30]), torch.tensor([5, 0, 3, 0, 60, 9, 0])
        shares = [0.5, 1.0, 1.0, 0.3, 0.9, 0.9, 0.5]
        rows = zip(logits, temperature.tolist(), top_k.tolist(), shares, strict=True)
        nuclei = torch.tensor([middle_of_ranking(*row) if row[-1] < 1 else 1.0 for row in rows])
        return trial(logits, Settings(temperature, top_k.int(), nuclei))

    return Case("sample", f"sample-7x{vocabulary}-mixed", make)


def trial(logits: Tensor, own: Settings) -> Trial:
    """Tokens and their log-probabilities."""
    rows = len(logits)
    wide = logits.double()
    uniforms = torch.tensor([middle_of_a_token(reference.restrict(wide[row], *own.of(row))) for row in range(rows)])
    given = own.temperature, own.top_k, own.top_p

    def run() -> Outputs:
        out, logprobs = torch.full((rows,), -7, dtype=_I32), poisoned(rows, dtype=_F32)
        sample(
            logits,
            uniforms,
            temperature=own.temperature,
            top_k=own.top_k,
            top_p=own.top_p,
            out=out,
            logprobs=logprobs,
        )
        return {"token": out, "fp32 logprob": logprobs}

    return Trial(
        run, lambda: dict(zip(("token", "fp32 logprob"), reference.sample(wide, uniforms, *given), strict=True))
    )


def guarded_calls(guarded: Callable[..., Tensor], dtype: torch.dtype) -> None:
    """Both functions on tensors behind which nothing may be read or written."""
    for vocabulary in (1, 31, 1055):
        logits, uniforms = guarded(3, vocabulary, dtype=dtype), guarded(3).abs_().frac_()
        statistics(logits, k=min(20, vocabulary))
        for top_k, top_p in ((0, 1.0), (20, 1.0), (0, 0.9), (20, 0.9)):
            sample(
                logits, uniforms, top_k=top_k, top_p=top_p, out=guarded(3, dtype=_I32), logprobs=guarded(3, dtype=_F32)
            )


CASES = [
    *(statistics_case(*shape) for shape in ((1, 1, 1), (3, 63, 0), (2, 100, 100), (0, 9, 2), (5, 1023, 1))),
    *(statistics_case(*shape) for shape in ((3, 2500, 20), (1, 49152, 20))),
    *(statistics_case(4, 1500, 20, draw) for draw in (tied, alike, holed, huge, rising, infinite)),
    *(sample_case(*shape) for shape in ((1, 1), (3, 63), (0, 9), (5, 1025), (2, 49152))),
    *(sample_case(4, 1500, draw=draw) for draw in (tied, alike, holed, huge, rising, infinite)),
    *(sample_case(4, 1500, top_k=7, top_p=0.8, draw=draw) for draw in (tied, alike, holed, huge, infinite)),
    *(sample_case(4, 1500, top_p=0.6, draw=draw) for draw in (tied, alike, holed, huge, rising)),
    *(sample_case(4, 500, temperature=t, draw=tied) for t in (0, 1e-38, 0.7, 1e38)),
    sample_case(3, 3000, top_k=50),
    sample_case(3, 3000, top_k=2999, top_p=0.99),
    sample_case(3, 40, top_k=41, top_p=1e-6),
    sample_case(2, 49152, top_p=0.9),
    mixed_case(100),
    mixed_case(3000),
]
TEAM_CASES = [
    statistics_case(5, 20000, 20),
    sample_case(1, 40000, top_p=0.7),
    sample_case(7, 9000, top_k=50, top_p=0.9),
    sample_case(5, 9000),
]
SMALL_CASES = [
    *(statistics_case(3, 4500, 3, draw) for draw in (normal, tied, holed, huge, infinite)),
    statistics_case(2, 20, 0),
    *(sample_case(3, 1500, draw=draw) for draw in (normal, holed, huge, infinite)),
    *(sample_case(3, 1500, top_k=7, top_p=0.8, draw=draw) for draw in (normal, tied, holed)),
    sample_case(2, 1100, top_p=0.6, draw=tied),
    mixed_case(100),
]


def speed_logits(rows: int, vocabulary: int, dtype: torch.dtype) -> Tensor:
    """As unequal as those of a language model: a nucleus of 0.9 is some hundred tokens."""
    return (4 * torch.randn(rows, vocabulary)).to(dtype)


def statistics_speed(rows: int, vocabulary: int, k: int) -> SpeedCase:
    def make(dtype: torch.dtype) -> Race:
        logits = speed_logits(rows, vocabulary, dtype)

        def peer() -> object:
            logs = logits.float().log_softmax(-1)
            return -(logs.exp() * logs).sum(-1), logits.topk(k)

        cost = statistics_cost(rows, vocabulary, k, dtype.itemsize)
        return Race(lambda: statistics(logits, k=k), cost, {"torch": peer})

    return SpeedCase("sample", f"statistics {rows} x {vocabulary}, top {k}", make)


def sample_speed(rows: int, vocabulary: int, top_k: int = 0, top_p: float = 1.0) -> SpeedCase:
    def make(dtype: torch.dtype) -> Race:
        logits, uniforms = speed_logits(rows, vocabulary, dtype), torch.rand(rows)

        def peer() -> Tensor:
            return torch.multinomial(torch_restrict(logits.float(), top_k, top_p), 1)

        run = lambda: sample(logits, uniforms, top_k=top_k, top_p=top_p)  # noqa: E731
        return Race(run, sample_cost(rows, vocabulary, dtype.itemsize), {"torch": peer})

    return SpeedCase("sample", f"sample {rows} x {vocabulary}, top {top_k}, p {top_p:g}", make)


def torch_restrict(logits: Tensor, top_k: int, top_p: float) -> Tensor:
    """Probabilities [B, V] as torch users restrict them."""
    if top_k:
        least = logits.topk(top_k).values[:, -1:]
        logits = logits.masked_fill(logits < least, -_INF)
    probabilities = logits.softmax(-1)
    if top_p < 1:
        ranked, order = probabilities.sort(dim=-1, descending=True, stable=True)
        kept = ranked.where(ranked.cumsum(-1) - ranked < top_p, 0.0)
        probabilities = torch.zeros_like(ranked).scatter_(-1, order, kept)
    return probabilities


SPEED_CASES = [
    statistics_speed(1, 49152, 20),
    statistics_speed(16, 49152, 20),
    sample_speed(1, 49152),
    sample_speed(16, 49152),
    sample_speed(1, 49152, top_k=50, top_p=0.95),
    sample_speed(16, 49152, top_p=0.95),
]
