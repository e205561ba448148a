"""What voting, selection and early stopping would have scored, from answers that are stored (`_verifiers.md` 3 and 4).

Every question is answered n times, once and for all. A method with k answers is then the mean over all k-subsets of
the n, or over at least a thousand drawn ones: never one draw, whose error is larger than the effects. Sizes are called
k here, also where a paper says N. Cards: `short_m_at_k`, `first_finish_search`, `bag_of_tricks`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations
from typing import Literal

import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]

Tie = Literal["first", "random", "shortest"]
"""Of classes with equally many votes: the one whose first member came first; any, so that all share the credit; the one
with the shortest member."""
Counts = Literal["finished", "answered", "correct"]
"""Which chains a method that stops early waits for: any that ended by itself, as short-m@k does; those that also
answer, as the follow-up of First Finish Search does; those that are right (the oracle)."""

MOST_SUBSETS = 20_000
FEWEST_SUBSETS = 1_000
SEED = 20250523


@dataclass(frozen=True)
class Samples:
    """n answers to one question, arrays [n], in the order in which they were drawn.

    `lengths`: tokens until the stop that counts: of the thinking for short-m@k, of the whole answer elsewhere.
    `classes`: as `workloads.answers.classes` names them; -1 has no vote. `finished`: False where the limit cut it off.
    `rewards`: a verifier's. `ValueError` unless all have one length and classes are named by their first members.
    """

    lengths: IntArray
    classes: IntArray
    correct: BoolArray
    finished: BoolArray
    rewards: FloatArray | None = None

    def __post_init__(self) -> None:
        shapes = {array.shape for array in vars(self).values() if array is not None}
        if len(shapes) != 1 or self.lengths.ndim != 1:
            raise ValueError(f"arrays of shapes {sorted(shapes)}: expected one value of each kind for every answer")
        members = np.flatnonzero(self.classes >= 0)
        named = self.classes[members]
        if (named > members).any() or (self.classes[named] != named).any():
            raise ValueError("a class is named by the index of its first member, as `workloads.answers.classes` does")

    def __len__(self) -> int:
        return len(self.lengths)


@dataclass(frozen=True)
class Outcome:
    """One question under one method: means over subsets. Accuracy and tie rate are shares, the rest tokens.

    `gen_tokens` counts what cancelled chains had produced, `seq_tokens` is when the answer is known.
    `finished_only_tokens` leaves cancelled chains out, as the follow-up of First Finish Search prints it: not a cost.
    """

    accuracy: float
    gen_tokens: float
    seq_tokens: float
    finished_only_tokens: float
    tie_rate: float = 0.0


def subsets(n: int, k: int, most: int = MOST_SUBSETS) -> IntArray:
    """[S, k], ascending: all k-subsets of n, or `most` drawn ones (with a fixed seed) where there are more."""
    if not 1 <= k <= n:
        raise ValueError(f"there are no subsets of {k} among {n} answers; k is between 1 and {n}")
    if most < FEWEST_SUBSETS:
        raise ValueError(f"{most} subsets are too few to average over; take {FEWEST_SUBSETS} or more")
    return _subsets(n, k, most)


@lru_cache(maxsize=64)
def _subsets(n: int, k: int, most: int) -> IntArray:
    if math.comb(n, k) <= most:
        found = np.array(list(combinations(range(n), k)), dtype=np.int64)
    else:
        keys = np.random.default_rng((SEED, n, k)).random((most, n))
        found = np.sort(keys.argpartition(k - 1, axis=1)[:, :k], axis=1)
    found.flags.writeable = False
    return found


def pass_at_k(n: int, correct: int, k: int) -> float:
    """Chance that one of k of n answers is correct, if `correct` of the n are: the unbiased 1 - C(n-c, k) / C(n, k)."""
    if not 1 <= k <= n:
        raise ValueError(f"pass@{k} of {n} answers is not defined; k is between 1 and {n}")
    return 1.0 - math.comb(n - correct, k) / math.comb(n, k)


def rank_weights(n: int, k: int) -> FloatArray:
    """[n]: the chance that the i-th of n ranks is the best of a random k-subset, C(n-i, k-1) / C(n, k)."""
    return np.array([math.comb(n - rank, k - 1) / math.comb(n, k) for rank in range(1, n + 1)])


def majority(samples: Samples, k: int, *, tie: Tie = "first", most: int = MOST_SUBSETS) -> Outcome:
    """Majority voting (self-consistency) over all k answers, those that the limit cut off included."""
    members = subsets(len(samples), k, most)
    return _waiting(samples, members, *vote(samples, members, np.ones(members.shape), tie))


def weighted_majority(
    samples: Samples, k: int, *, normalised: bool = False, tie: Tie = "first", most: int = MOST_SUBSETS
) -> Outcome:
    """The class of the largest sum of rewards. `normalised`: min-max over the k, all 1 if equal (`bag_of_tricks`)."""
    members = subsets(len(samples), k, most)
    weights = _rewards(samples)[members]
    if normalised:
        low, width = weights.min(axis=1, keepdims=True), np.ptp(weights, axis=1, keepdims=True)
        weights = np.where(width > 0, (weights - low) / np.where(width > 0, width, 1.0), 1.0)
    return _waiting(samples, members, *vote(samples, members, weights, tie))


def best_of_n(samples: Samples, k: int) -> Outcome:
    """The answer of the largest reward, of equal ones the first; exact, by ranks."""
    n = len(samples)
    chances = rank_weights(n, k)
    order = np.argsort(-_rewards(samples), kind="stable")
    longest = float(chances @ np.sort(samples.lengths)[::-1])
    tokens = k * float(samples.lengths.mean())
    return Outcome(float(chances @ samples.correct[order]), tokens, longest, tokens)


def first_finish(
    samples: Samples, k: int, *, m: int = 1, counts: Counts = "finished", tie: Tie = "shortest",
    most: int = MOST_SUBSETS,
) -> Outcome:  # fmt: skip
    """k chains start, all stop when m that count have ended, and these vote: short-m@k, and FFS-m@k.

    Of chains that end at the same step the lower index is first. Where fewer than m count, these vote and all k run to
    their end; where none does, the answer is wrong. m = 1 is exact, by ranks.
    """
    if not 1 <= m <= k:
        raise ValueError(f"{m} of {k} chains cannot be waited for; m is between 1 and k")
    order, counted = _finishing_order(samples, counts)
    if m == 1:
        return _first_by_rank(samples, order, counted, k)
    members = subsets(len(samples), k, most)
    ranks = np.argsort(order)[members]
    admitted = (ranks <= np.sort(ranks, axis=1)[:, m - 1 : m]) & counted[members]
    credit, ties = vote(samples, members, np.ones(members.shape), tie, admitted)
    lengths = samples.lengths[members]
    last = np.where(admitted, lengths, 0).max(axis=1)
    stop = np.where(admitted.sum(axis=1) == m, last, lengths.max(axis=1))
    produced = np.minimum(lengths, stop[:, None]).sum(axis=1)
    ended = np.where(admitted, lengths, 0).sum(axis=1)
    return Outcome(*(float(array.mean()) for array in (credit, produced, stop, ended, ties)))


def last_finish(samples: Samples, k: int, *, m: int = 1, tie: Tie = "first", most: int = MOST_SUBSETS) -> Outcome:
    """LFS-m@k, the control of First Finish Search: all k end, and the m longest that ended by themselves vote."""
    if not 1 <= m <= k:
        raise ValueError(f"{m} of {k} chains cannot vote; m is between 1 and k")
    members = subsets(len(samples), k, most)
    order, counted = _finishing_order(samples, "finished")
    ranks = np.where(counted, np.argsort(order), -1)[members]
    longest = (ranks >= np.sort(ranks, axis=1)[:, k - m : k - m + 1]) & counted[members]
    return _waiting(samples, members, *vote(samples, members, np.ones(members.shape), tie, longest))


def vote(
    samples: Samples, members: IntArray, weights: FloatArray, tie: Tie, admitted: BoolArray | None = None
) -> tuple[FloatArray, BoolArray]:
    """members [S, k], their weights [S, k] -> credit of each subset's winner [S], and whether there was a tie [S].

    Answers of class -1, and those that are not `admitted`, have no vote; a subset without votes has no credit. A
    class is right if its representative is.
    """
    classes = samples.classes[members]
    votes = classes >= 0 if admitted is None else (classes >= 0) & admitted
    size, n = len(members), len(samples)
    cells = (np.arange(size)[:, None] * n + classes)[votes]
    present = np.bincount(cells, minlength=size * n).reshape(size, n) > 0
    sums = np.where(present, np.bincount(cells, weights[votes], size * n).reshape(size, n), -np.inf)
    best = sums.max(axis=1, keepdims=True)
    winners = present & (sums >= best - 1e-9 * np.abs(best))
    shared, voted = winners.sum(axis=1), present.any(axis=1)
    if tie == "random":
        credit = (winners * samples.correct).sum(axis=1) / np.maximum(shared, 1)
    else:
        preferred = np.arange(n) if tie == "first" else np.argsort(np.argsort(samples.lengths, kind="stable"))
        candidates = votes & np.take_along_axis(winners, np.maximum(classes, 0), axis=1)
        chosen = np.where(candidates, preferred[members], n).argmin(axis=1)
        credit = samples.correct[classes[np.arange(size), chosen]] * 1.0
    return np.where(voted, credit, 0.0), shared > 1


def length_auc(samples: Samples) -> float | None:
    """P(a right answer is shorter than a wrong one to the same question), ties half; None if it has only one sort."""
    right, wrong = samples.lengths[samples.correct], samples.lengths[~samples.correct]
    if not len(right) or not len(wrong):
        return None
    gaps = wrong[None, :] - right[:, None]
    return float(((gaps > 0) + 0.5 * (gaps == 0)).mean())


def _rewards(samples: Samples) -> FloatArray:
    if samples.rewards is None:
        raise ValueError("these answers have no rewards; a verifier must score them first")
    return samples.rewards


def _waiting(samples: Samples, members: IntArray, credit: FloatArray, ties: BoolArray) -> Outcome:
    """The outcome of a method that waits for all of its answers."""
    lengths = samples.lengths[members]
    tokens = float(lengths.sum(axis=1).mean())
    return Outcome(float(credit.mean()), tokens, float(lengths.max(axis=1).mean()), tokens, float(ties.mean()))


def _finishing_order(samples: Samples, counts: Counts) -> tuple[IntArray, BoolArray]:
    """Indices [n] by length, lower index first, those that do not count behind; and which do [n]."""
    counted = samples.finished
    if counts == "answered":
        counted = counted & (samples.classes >= 0)
    elif counts == "correct":
        counted = counted & samples.correct
    return np.lexsort((np.arange(len(samples)), samples.lengths, ~counted)), counted


def _first_by_rank(samples: Samples, order: IntArray, counted: BoolArray, k: int) -> Outcome:
    """One chain is waited for: rank i decides with chance P_i, and the k - 1 others are any of later rank."""
    n, usable = len(samples), int(counted.sum())
    if not 1 <= k <= n:
        raise ValueError(f"there are no subsets of {k} among {n} answers; k is between 1 and {n}")
    chances, lengths = rank_weights(n, k)[:usable], samples.lengths[order].astype(np.float64)
    stops = lengths[:usable]
    others = [float(np.minimum(lengths[i + 1 :], stop).mean()) if i + 1 < n else 0.0 for i, stop in enumerate(stops)]
    accuracy = float(chances @ samples.correct[order][:usable])
    decided = float(chances @ stops)
    produced = decided + (k - 1) * float(chances @ np.array(others))
    if n - usable < k:
        return Outcome(accuracy, produced, decided, decided)
    rest = np.sort(lengths[usable:])[::-1]  # of none of these k does the end count: all run to it
    chance = math.comb(len(rest), k) / math.comb(n, k)
    longest = float(rank_weights(len(rest), k) @ rest)
    return Outcome(accuracy, produced + chance * k * float(rest.mean()), decided + chance * longest, decided)
