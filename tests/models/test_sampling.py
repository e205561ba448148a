"""Greedy, temperature, top-k and top-p: the right distribution, from each request's own seed."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from scipy import stats
from torch import Tensor

from kernels.sample.reference import restrict
from suite.models.sampling import Sampler
from workloads.schema import Request

LOGITS = torch.tensor([1.0, 3.0, 2.0, 0.0, -1.0, 2.5, -float("inf"), 1.5])


def request(**fields: Any) -> Request:
    return Request(id="r", task="t", prompt="p", metric="m", max_new_tokens=8, **fields)


def test_greedy_takes_the_largest_and_the_lower_id_on_a_tie() -> None:
    logits = torch.tensor([[0.0, 2.0, 2.0, 1.0], [5.0, 5.0, 5.0, 5.0]])
    assert Sampler([request(), request()])(logits) == [1, 0]
    mixed = Sampler([request(), request(temperature=1.0)])
    assert mixed(logits)[0] == 1


def expected(temperature: float, kept: list[int]) -> list[float]:
    """The distribution by its definition, in plain Python."""
    weights = [math.exp(float(LOGITS[i]) / temperature) if i in kept else 0.0 for i in range(len(LOGITS))]
    return [weight / sum(weights) for weight in weights]


# softmax(LOGITS) in falling order: 1 (0.417), 5 (0.253), 2 (0.153), 7 (0.093), 0 (0.056), 3 (0.021), 4 (0.008)
CASES: dict[str, tuple[dict[str, Any], list[int]]] = {
    "temperature": ({"temperature": 0.7}, [0, 1, 2, 3, 4, 5, 7]),
    "top-k": ({"temperature": 1.0, "top_k": 3}, [1, 5, 2]),
    "top-k over the vocabulary": ({"temperature": 1.0, "top_k": 50}, [0, 1, 2, 3, 4, 5, 7]),
    "top-p": ({"temperature": 1.0, "top_p": 0.8}, [1, 5, 2]),
    "top-p keeps one": ({"temperature": 1.0, "top_p": 0.01}, [1]),
    "top-k then top-p": ({"temperature": 2.0, "top_k": 4, "top_p": 0.5}, [1, 5]),
}


@pytest.mark.parametrize("name", CASES)
def test_draws_follow_the_restricted_distribution(name: str) -> None:
    fields, kept = CASES[name]
    sampler = Sampler([request(seed=3, **fields)])
    draws = torch.tensor([sampler(LOGITS[None])[0] for _ in range(3000)])
    counts = torch.bincount(draws, minlength=len(LOGITS))
    probabilities = expected(fields["temperature"], kept)
    assert {i for i in range(len(LOGITS)) if counts[i]} <= set(kept)
    if len(kept) > 1:
        test = stats.chisquare([int(counts[i]) for i in kept], [3000 * probabilities[i] for i in kept])
        assert test.pvalue > 0.001


def test_top_p_mass_is_the_smallest_that_reaches_p() -> None:
    for top_p in (0.1, 0.3, 0.5, 0.77, 0.95, 0.999):
        full, cut = restrict(LOGITS, 1.0, 0, 1.0), restrict(LOGITS, 1.0, 0, top_p)
        kept = full[cut > 0]
        assert kept.sum() >= top_p
        assert kept.sum() - kept.min() < top_p
        assert float(cut.sum()) == pytest.approx(1.0)


def draw(sampler: Sampler, logits: Tensor, steps: int) -> list[list[int]]:
    return [sampler(logits) for _ in range(steps)]


def test_a_seed_gives_the_same_tokens_in_any_batch() -> None:
    requests = [request(seed=seed, temperature=1.0) for seed in (5, 6, 5)]
    batch = draw(Sampler(requests), LOGITS.expand(3, -1), 40)
    alone = draw(Sampler([requests[1]]), LOGITS[None], 40)
    assert [step[1] for step in batch] == [step[0] for step in alone]
    assert [step[0] for step in batch] == [step[2] for step in batch]
    assert [step[0] for step in batch] != [step[1] for step in batch]


def test_a_tiny_temperature_is_greedy_not_an_error() -> None:
    assert Sampler([request(temperature=1e-39)])(LOGITS[None]) == [1]
