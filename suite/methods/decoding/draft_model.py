"""Plain speculation with a draft model: a smaller model, or the target itself with layers left out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from suite.cost import Drafter, MethodCost, Situation
from suite.errors import UnitError
from suite.methods.base import Card, MethodConfig, tunable
from suite.methods.decoding.base import DecodingMethod
from suite.methods.decoding.context import Context, Round
from suite.methods.decoding.drafter import DraftModel, distilled, layer_subset, trained_drafter
from suite.methods.decoding.tree import TokenTree
from suite.models import adapters
from suite.models.decoder import Decoder
from suite.models.language_model import LanguageModel
from suite.models.loaders import load_model

DISTILLED = ("distilled", "distilled-w4")
PROBE = "The quick brown fox, 1234: déjà vu?\n"


class DraftModelConfig(MethodConfig):
    """`length` tokens per draft. `drafter`: name or path of a smaller model; without one the target drafts itself.

    `distilled` and `distilled-w4` name draft models trained for this target (`suite train`). A target that drafts for
    itself leaves out the share `skipped` of its layers, spread evenly over those between the first and the last.
    """

    length: int = tunable(4, low=1, high=16)
    drafter: str = ""
    skipped: float = tunable(0.2, low=0.05, high=0.95)


class DraftModelSpeculation(DecodingMethod):
    """A chain of tokens from a cheaper model, verified in one pass: speculative decoding in its first form.

    At temperature 0 the draft is greedy; else it is drawn, and accepted by the chain rule.
    """

    card: ClassVar[Card] = Card(
        slug="draft_model",
        family="control",
        title="Fast Inference from Transformers via Speculative Decoding",
        source="arXiv 2211.17192 and 2302.01318; skipped layers as in Draft & Verify, arXiv 2309.08168",
        lossless=True,
    )
    Config = DraftModelConfig

    @staticmethod
    def cost(config: Any, at: Situation) -> MethodCost:
        n, kept = config.length, len(kept_layers(at.layers, config.skipped))
        if config.drafter in DISTILLED:
            return MethodCost(drafted=n, drafter=trained_drafter(config.drafter, n))
        return MethodCost(drafted=n, drafter=Drafter(n, config.drafter, layers=kept, shared=not config.drafter))

    def __init__(self) -> None:
        self._loaded: Decoder | None = None

    def refusal(self, model: LanguageModel, config: Any) -> str | None:
        """A model of so few layers that none can be left out cannot draft for itself."""
        if not config.drafter and len(kept_layers(model.config.layers, config.skipped)) == model.config.layers:
            return f"{model.name} has {model.config.layers} layers, too few to leave some out; name a `drafter`"
        untrained = adapters.missing(config.drafter, model) if config.drafter in DISTILLED else None
        return super().refusal(model, config) or untrained

    def prepare(self, model: LanguageModel, config: Any) -> None:
        """Loads the drafter."""
        if config.drafter in DISTILLED:
            self._loaded, _ = distilled(config.drafter, model)
        elif config.drafter:
            loaded = load_model(config.drafter, model.dtype)
            check_tokenizers(model, loaded)
            self._loaded = loaded.decoder

    def begin(self, model: LanguageModel, config: DraftModelConfig) -> None:
        """The drafter as it is now: what has been done to the target's modules is done to its own layers too."""
        self._length = config.length
        self._drafter = DraftModel(self._decoder(model, config))

    def _decoder(self, model: LanguageModel, config: DraftModelConfig) -> Decoder:
        if self._loaded is not None:
            return self._loaded
        return layer_subset(model.decoder, kept_layers(model.config.layers, config.skipped))

    def start(self, contexts: Sequence[Context]) -> None:
        """The drafter reads the prompts too."""
        self._drafter.start(contexts)

    def draft(self, context: Context) -> TokenTree:
        return self._drafter.chains([context], self._length)[0]

    def drafts(self, contexts: Sequence[Context]) -> Sequence[TokenTree]:
        return self._drafter.chains(contexts, self._length)

    def update(self, context: Context, outcome: Round) -> None:
        """The drafter forgets what was refused."""
        self._drafter.keep(context)

    def held_bytes(self) -> int:
        return self._drafter.held_bytes()


def kept_layers(layers: int, skipped: float) -> list[int]:
    """Layers that stay: the first, the last, and of those between them all but a share of all layers, spread evenly."""
    between = list(range(1, layers - 1))
    gone = min(round(skipped * layers), len(between))
    out = {between[(2 * index + 1) * len(between) // (2 * gone)] for index in range(gone)}
    return [layer for layer in range(layers) if layer not in out]


def check_tokenizers(model: LanguageModel, drafter: LanguageModel) -> None:
    """One sentence for models that do not speak the same tokens."""
    same = model.config.vocab == drafter.config.vocab
    if not same or model.tokenizer.encode(PROBE) != drafter.tokenizer.encode(PROBE):
        raise UnitError(f"{drafter.name} cannot draft for {model.name}: their tokenizers differ.")
