"""When is the first chain to finish a good one? The normal model of First Finish Search (card, section 3: "Theory").

For one question, or questions of one difficulty, lengths of right and of wrong chains are taken as two normal
distributions. Lengths are rarely normal: `predicted` stands beside the measured accuracy, not for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import integrate, stats

from analysis.search import FloatArray, Samples

GRID = 4001
REACH = 8.0
"""Standard deviations to each side that the integrals cover."""


@dataclass(frozen=True)
class LengthModel:
    """Share of right chains `p`, and mean and standard deviation of the length (tokens) of right and of wrong ones."""

    p: float
    right_mean: float
    right_sd: float
    wrong_mean: float
    wrong_sd: float

    @property
    def shorter_is_better(self) -> bool:
        """Right chains are shorter on average: with equal spreads, exactly then P(right | length) falls everywhere."""
        return self.right_mean < self.wrong_mean

    def right_given(self, lengths: FloatArray) -> FloatArray:
        """P(right | length), same shape; from logarithms, as both densities may vanish."""
        right = np.log(self.p) + stats.norm.logpdf(lengths, self.right_mean, self.right_sd)
        wrong = np.log1p(-self.p) + stats.norm.logpdf(lengths, self.wrong_mean, self.wrong_sd)
        return np.asarray(1 / (1 + np.exp(np.clip(wrong - right, -700, 700))))

    def accuracy(self, n: int) -> float:
        """Predicted accuracy of the first of n chains to finish."""
        lengths, right, _, later = self._parts()
        return float(integrate.simpson(n * right * later ** (n - 1), x=lengths))

    def sequential_tokens(self, n: int) -> float:
        """Expected length of the shortest of n chains, which falls with n."""
        lengths, right, wrong, later = self._parts()
        return float(integrate.simpson(n * lengths * (right + wrong) * later ** (n - 1), x=lengths))

    def _parts(self) -> tuple[FloatArray, FloatArray, FloatArray, FloatArray]:
        """Lengths; densities of right and of wrong chains, which together make 1; the chance to be longer."""
        ends = [(self.right_mean, self.right_sd), (self.wrong_mean, self.wrong_sd)]
        lengths = np.linspace(
            min(mean - REACH * sd for mean, sd in ends), max(mean + REACH * sd for mean, sd in ends), GRID
        )
        right, wrong = (stats.norm(mean, sd) for mean, sd in ends)
        later = self.p * right.sf(lengths) + (1 - self.p) * wrong.sf(lengths)
        return lengths, self.p * right.pdf(lengths), (1 - self.p) * wrong.pdf(lengths), later


def fit(questions: Sequence[Samples]) -> LengthModel | None:
    """The model of all finished chains of these questions; None without two different lengths of either sort.

    Chains that the limit cut off have no length that could be fitted; they can never be first.
    """
    lengths = np.concatenate([one.lengths[one.finished] for one in questions]).astype(np.float64)
    right = np.concatenate([one.correct[one.finished] for one in questions])
    sorts = lengths[right], lengths[~right]
    if any(len(sort) < 2 or np.ptp(sort) == 0 for sort in sorts):
        return None
    means_and_sds = [figure for sort in sorts for figure in (float(sort.mean()), float(sort.std(ddof=1)))]
    return LengthModel(float(right.mean()), *means_and_sds)
