"""The weights family: a method turns a matrix into packed codes; the family calibrates, keeps, swaps and reports.

Quantised are the matrices of the decoder's layers (q|k|v, out, gate|up, down), never the embedding or the head. What a
method made is kept in the user's cache under the hash of all it depends on, so that it is made once.
Shapes: `in` and `out` features of a matrix.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from suite.methods.attention.base import AttentionGenerator, MeteredAttention
from suite.methods.base import Generator, Method, MethodConfig
from suite.methods.weights import calibration, packed
from suite.methods.weights.calibration import Statistics
from suite.methods.weights.linear import QuantisedLinear, parts, plain_linears, projections
from suite.methods.weights.packed import LayerError
from suite.models.decoder import Decoder
from suite.models.language_model import LanguageModel


@dataclass(frozen=True)
class Site:
    """Where a matrix stands: its bias, the output rows of the matrices stored in it as one, what calibration saw."""

    parts: tuple[int, ...]
    bias: Tensor | None = None
    statistics: Statistics | None = None


class WeightsMethod(Method):
    """A method fills in `quantize`, and names the kind of `linear` it makes.

    `calibrates`: it needs `Site.statistics`; its config then has a field `data`, a text of the user's or None.
    """

    linear: ClassVar[type[QuantisedLinear]]
    calibrates: ClassVar[bool] = False
    quality_nats = 1.0

    def __init__(self) -> None:
        self._modules: dict[str, QuantisedLinear] = {}
        self.report: list[LayerError] = []
        """What was lost, matrix by matrix; there after `prepare`."""

    @abstractmethod
    def quantize(self, name: str, weight: Tensor, site: Site, config: Any) -> QuantisedLinear:
        """The matrix `weight` [out, in], in the model's dtype, as packed codes."""

    def survey(self, model: LanguageModel, statistics: Mapping[str, Statistics], config: Any) -> None:
        """Before any matrix is quantised: what has to be settled for the model as a whole."""

    def refusal(self, model: LanguageModel, config: Any) -> str | None:
        """Weights are quantised once, and calibration needs a text."""
        if len(plain_linears(model.decoder)) < len(list(projections(model.decoder))):
            return f"the weights of {model.name} are quantised already; {self.card.slug} needs the original ones"
        return calibration.missing_text(model, config.data) if self.calibrates else None

    def prepare(self, model: LanguageModel, config: Any) -> None:
        """Loads what was made for this model and config, or makes and saves it: minutes, for a calibrating method."""
        path = packed.place(self.card.slug, self._depends_on(model, config))
        if not path.exists():
            modules = self._quantised(model, config)
            packed.save(path, modules, self.report)
        biases = {name: linear.bias for name, linear in plain_linears(model.decoder).items()}
        features = {name: linear.weight.shape[1] for name, linear in plain_linears(model.decoder).items()}
        tensors, self.report = packed.load(path)
        self._modules = {name: self.linear(features[name], tensors[name], biases[name]) for name in features}

    def _depends_on(self, model: LanguageModel, config: Any) -> dict[str, Any]:
        options = config.model_dump(mode="json", exclude={"data"})
        text = calibration.text_source(config.data) if self.calibrates else None
        return {"model": model.digest, "dtype": model.dtype, "options": options, "text": text}

    def _quantised(self, model: LanguageModel, config: Any) -> dict[str, QuantisedLinear]:
        statistics = calibration.statistics_for(model, config.data) if self.calibrates else {}
        self.survey(model, statistics, config)
        made: dict[str, QuantisedLinear] = {}
        self.report = []
        for name, linear in plain_linears(model.decoder).items():
            weight, bias = linear.weight.detach(), linear.bias
            site = Site(tuple(parts(name, linear, model.decoder)), bias, statistics.get(name))
            made[name] = self.quantize(name, weight, site, config)
            self.report.append(packed.layer_error(name, weight, made[name], site.statistics))
        return made

    @contextmanager
    def attach(self, model: LanguageModel, config: MethodConfig) -> Iterator[Generator]:
        """The packed matrices in place of the decoder's own, which come back as they were."""
        with swapped(model.decoder, self._modules):
            yield AttentionGenerator(model, lambda _, meter: MeteredAttention(model.config, meter))

    def weight_bytes(self) -> int:
        """Bytes of all packed matrices: what a step of one token reads of them."""
        return sum(module.weight_bytes() for module in self._modules.values())

    def model_bytes(self, model: LanguageModel, config: MethodConfig) -> int:
        own = sum(linear.weight.nbytes for linear in plain_linears(model.decoder).values())
        return model.model_bytes - own + self.weight_bytes()

    def average_bits(self, model: LanguageModel) -> float:
        """Stored bits per quantised weight: codes, tables or scales, and the sparse part."""
        weights = sum(linear.weight.numel() for linear in plain_linears(model.decoder).values())
        return 8 * self.weight_bytes() / weights


@contextmanager
def swapped(decoder: Decoder, modules: Mapping[str, QuantisedLinear]) -> Iterator[None]:
    """Puts these modules into the decoder's layers; the very same ones as before are there when the block ends."""
    places = [(owner, attribute, modules[name]) for name, owner, attribute in projections(decoder)]
    before = [getattr(owner, attribute) for owner, attribute, _ in places]
    try:
        for owner, attribute, module in places:
            setattr(owner, attribute, module)
        decoder.restack()
        yield
    finally:
        for (owner, attribute, _), original in zip(places, before, strict=True):
            setattr(owner, attribute, original)
        decoder.restack()


@torch.inference_mode()
def mean_nats(model: LanguageModel, windows: Tensor) -> list[float]:
    """Mean negative log-likelihood per predicted token, one value for each window of ids [n, T], each on its own."""
    from suite.models.attention import DenseAttention

    found = []
    for ids in windows:
        cache = model.decoder.new_cache(1, len(ids))
        logits = model.decoder(ids[None, :-1], cache, DenseAttention(model.config), logits="all")
        found.append(float(torch.nn.functional.cross_entropy(logits[0], ids[1:])))
    return found
