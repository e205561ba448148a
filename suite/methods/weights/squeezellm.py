"""SqueezeLLM: Dense-and-Sparse Quantization (arXiv 2306.07629, ICML 2024)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from kernels.lut_gemv import pack
from suite.cost import MethodCost, Situation
from suite.methods.base import Card, Claim, MethodConfig, tunable
from suite.methods.weights.base import Site, WeightsMethod
from suite.methods.weights.calibration import Statistics
from suite.methods.weights.kmeans import codebooks, nearest
from suite.methods.weights.linear import LutLinear, parts, plain_linears
from suite.models.language_model import LanguageModel

LEAST_FACTOR, MOST_FACTOR, HALVINGS = 1.0, 64.0, 30


class SqueezeLLMConfig(MethodConfig):
    """`bits` of a code; shares of the weights that stay exact: `sensitive` by Fisher information, `outliers` by size.

    `data`: a UTF-8 text to calibrate on; without one the model writes it.
    """

    bits: Literal[3, 4] = tunable(4, choices=(3, 4))
    sensitive: float = tunable(0.0005, low=0.0, high=0.01)
    outliers: float = tunable(0.004, low=0.0, high=0.02)
    data: Path | None = None


class SqueezeLLM(WeightsMethod):
    """A codebook per output row, found by k-means in which a weight counts by its Fisher information; the most
    sensitive weights and the outliers of a matrix stay exact in a sparse part.

    Shapes: weight and Fisher [out, in], K = 2^bits table entries of a row.
    """

    card: ClassVar[Card] = Card(
        slug="squeezellm",
        family="weights",
        title="SqueezeLLM: Dense-and-Sparse Quantization",
        source="arXiv 2306.07629",
        lossless=False,
        needs=("calibration",),
        claims=(
            Claim("gap-3", "3-bit dense-and-sparse closes at least half of round-to-nearest's perplexity gap",
                  "LLaMA-7B, WikiText-2: 25.61 to 6.13 of 5.68", "share of the gap closed", 0.5),
            Claim("gap-3-unquantised", "so it does on a model whose weights never were quantised before",
                  "LLaMA-7B was trained and released in 16 bits", "share of the gap closed", 0.5),
            Claim("dense-3", "3-bit codebooks alone leave a third of round-to-nearest's perplexity gap at most",
                  "LLaMA-7B, C4: 28.26 to 7.75 of 7.08", "times less gap", 3.0),
            Claim("sensitivity", "weighting k-means by Fisher information makes the gap smaller",
                  "LLaMA-7B, C4, 3 bits: 18.08 to 7.75 of 7.08", "times less gap"),
            Claim("sparse-3", "the sparse part closes at least 30% of the gap that 3-bit codebooks leave",
                  "LLaMA-7B, C4: 7.75 to 7.56 of 7.08; more on small models", "share of the gap closed", 0.3),
            Claim("four-bits", "4-bit dense-and-sparse stays within 25% of the original perplexity",
                  "LLaMA-7B, WikiText-2: 5.77 of 5.68", "x of the original perplexity", 1.25),
            Claim("decode-4", "decodes at 4 bits at least twice as fast as with 16-bit weights",
                  "LLaMA-7B, A6000, batch 1: 1.7-1.8x", "speed-up over dense", 2.0),
            Claim("decode-3", "3 bits are not slower than 4",
                  "LLaMA-7B, A6000, batch 1: 1.9-2.1x against 1.7-1.8x", "speed-up over 4 bits", 1.0),
            Claim("decode-4-large", "so it does, at 4 bits, where the 16-bit head is a small share of the bytes",
                  "LLaMA-7B, A6000, batch 1: 1.7-1.8x", "speed-up over dense", 2.0),
        ),
    )  # fmt: skip
    Config = SqueezeLLMConfig
    linear = LutLinear
    calibrates = True

    @staticmethod
    def cost(config: Any, at: Situation) -> MethodCost:
        """A table of 16-bit values per output row; a sparse weight has a value and a column, a row where it begins."""
        sparse = config.sensitive + config.outliers
        return MethodCost(
            weight_bits=config.bits + 8 * (2 + 4) * sparse, row_bytes=2 * 2**config.bits + 4 * (sparse > 0)
        )

    def survey(self, model: LanguageModel, statistics: Mapping[str, Statistics], config: Any) -> None:
        """The outliers' threshold of each original matrix, from one factor for the whole model."""
        pieces = {
            name: list(torch.split(linear.weight.detach(), parts(name, linear, model.decoder)))
            for name, linear in plain_linears(model.decoder).items()
        }
        self._thresholds = thresholds(pieces, config.outliers)

    def quantize(self, name: str, weight: Tensor, site: Site, config: Any) -> LutLinear:
        assert site.statistics is not None
        fisher, dtype = site.statistics.fisher, weight.dtype
        taken = self._extracted(name, weight, fisher, site, config)
        tables = codebooks(weight.float(), self.importance(weight, fisher).masked_fill(taken, 0), 2**config.bits)
        tables = tables.to(dtype)  # codes are nearest among the entries as they are stored
        codes = nearest(weight.float().masked_fill(taken, 0), tables)
        tensors = {"packed": pack(codes, config.bits), "tables": tables}
        if config.sensitive or config.outliers:
            tensors |= sparse_part(weight, taken, codes, tables)
        return LutLinear(weight.shape[1], tensors, site.bias)

    def importance(self, weight: Tensor, fisher: Tensor) -> Tensor:
        """What a weight counts in k-means [out, in]."""
        return fisher

    def _extracted(self, name: str, weight: Tensor, fisher: Tensor, site: Site, config: Any) -> Tensor:
        """Which weights go into the sparse part, bool [out, in]: each original matrix has thresholds of its own."""
        sizes = list(site.parts)
        rows = zip(torch.split(weight, sizes), torch.split(fisher, sizes), self._thresholds[name], strict=True)
        return torch.cat([most_sensitive(f, config.sensitive) | (w.float().abs() >= t) for w, f, t in rows])


def most_sensitive(fisher: Tensor, share: float) -> Tensor:
    """bool [out, in]: Fisher information strictly above the k-th largest, k being this share of the matrix."""
    k = round(share * fisher.numel())
    if not k:
        return torch.zeros_like(fisher, dtype=torch.bool)
    return fisher > fisher.flatten().topk(k).values[-1]


def sparse_part(weight: Tensor, taken: Tensor, codes: Tensor, tables: Tensor) -> dict[str, Tensor]:
    """Compressed rows of w - z, z being what the code of a taken place gives (the entry nearest to 0)."""
    rows, columns = taken.nonzero(as_tuple=True)
    given = tables[rows, codes[rows, columns].long()]
    starts = torch.nn.functional.pad(taken.sum(1).cumsum(0), (1, 0))
    values = weight[rows, columns].float() - given.float()
    return {"starts": starts.int(), "columns": columns.int(), "values": values.to(weight.dtype)}


def thresholds(matrices: Mapping[str, list[Tensor]], share: float) -> dict[str, list[float]]:
    """max(|q1 - r IQR|, |q3 + r IQR|) of each matrix [out, in], with the r at which `share` of all weights reach it."""
    if not share:
        return {name: [float("inf")] * len(pieces) for name, pieces in matrices.items()}
    profiles = {name: [_Profile(piece) for piece in pieces] for name, pieces in matrices.items()}
    flat = [profile for pieces in profiles.values() for profile in pieces]
    wanted = share * sum(piece.numel() for pieces in matrices.values() for piece in pieces)
    low, high = LEAST_FACTOR, MOST_FACTOR
    for _ in range(HALVINGS):
        factor = (low + high) / 2
        low, high = (factor, high) if sum(p.reaching(factor) for p in flat) > wanted else (low, factor)
    return {name: [profile.threshold(high) for profile in pieces] for name, pieces in profiles.items()}


class _Profile:
    """Quartiles of a matrix, and the magnitudes that can be outliers at any factor."""

    def __init__(self, weight: Tensor) -> None:
        values = weight.float().flatten()
        self._q1, self._q3 = (float(values.kthvalue(max(1, round(q * len(values)))).values) for q in (0.25, 0.75))
        magnitudes = values.abs()
        self._tail = magnitudes[magnitudes >= self.threshold(LEAST_FACTOR)].sort().values

    def threshold(self, factor: float) -> float:
        spread = self._q3 - self._q1
        return max(abs(self._q1 - factor * spread), abs(self._q3 + factor * spread))

    def reaching(self, factor: float) -> int:
        """Weights at or beyond the threshold."""
        return len(self._tail) - int(torch.searchsorted(self._tail, self.threshold(factor)))
