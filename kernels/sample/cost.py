"""Cost of softmax statistics and of sampling (methods/glimprouter, section 5: bytes b B V, FLOPs about 6 B V)."""

from __future__ import annotations

from kernels.cost import Cost


def statistics_cost(rows: int, vocabulary: int, k: int, element_bytes: int) -> Cost:
    """Per logit a maximum, a difference, an exponential, a sum and a multiply-add; finding the top k is not counted."""
    read = rows * vocabulary * element_bytes
    return Cost(6 * rows * vocabulary, read, rows * (8 + 8 * k))


def sample_cost(rows: int, vocabulary: int, element_bytes: int, *, logprobs: bool = False) -> Cost:
    """Per logit a maximum, a difference, an exponential and a sum. How the set is restricted is the kernel's affair."""
    return Cost(4 * rows * vocabulary, rows * (vocabulary * element_bytes + 4), rows * (8 if logprobs else 4))
