"""Chimera: a light drafter that sees what it has just drafted (arXiv 2402.15758)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal, cast

from torch import Tensor

from suite.cost import Drafter, MethodCost, Situation
from suite.methods.base import Card, Claim, MethodConfig, tunable
from suite.methods.decoding.base import DecodingMethod
from suite.methods.decoding.chimera_drafts import ChimeraDrafts, MedusaDrafts
from suite.methods.decoding.context import Context
from suite.methods.decoding.tree import TokenTree
from suite.methods.decoding.tree_shape import TreeShape
from suite.methods.decoding.trigrams import TrigramTable
from suite.models import adapters
from suite.models.chimera import HEADS, ChimeraDrafter, MedusaHeads
from suite.models.decoder import cast_weights
from suite.models.language_model import LanguageModel
from suite.models.recipes.drafts import VOCAB

SHAPES = {
    "card": "0 1 2 3 00 01 02 10 11 20 21 30 000 001 002 010 011 020 021 100 0000 0001 0002 00000 00001",
    "small": "0 1 2 00 01 10 000 001 0000",
    "chain": "0 00 000 0000",
}
"""Paths by the rank of each choice; of the card's 25 the 23 that four heads can reach."""

CLAIMS = (
    Claim("lossless", "the output is that of plain decoding", "title and abstract", "share of greedy tokens", 1.0),
    Claim("speed", "a light drafter on a frozen model makes decoding much faster",
          "2.7x mean, Vicuna and LLaMA-2 7B and 13B, multi-turn chat, batch 1", "speed-up over plain decoding", 1.3),
    Claim("medusa", "seeing the drafted tokens beats Medusa's heads", "faster than Medusa at similar quality",
          "ratio of tokens per pass on one tree"),
    Claim("later-heads", "heads that follow drafted tokens are right more often than Medusa's",
          "the paper's motivation", "ratio of mean top-1 accuracies of heads 2 to 4"),
    Claim("trigram", "the trigram encoder helps", "an ablation", "ratio of tokens per pass on one tree"),
    Claim("context", "the full-context encoder helps", "an ablation", "ratio of tokens per pass on one tree"),
)  # fmt: skip


class ChimeraConfig(MethodConfig):
    """`tree`: "card" is the paper's, "small" what a CPU has room for. Heads choose among the first `vocab` tokens.

    `drafter`: the recipe of the drafter: chimera, an ablation of it, or Medusa's heads.
    """

    tree: Literal["card", "small", "chain"] = tunable("small", choices=("card", "small", "chain"))
    vocab: int = tunable(VOCAB, low=1024, high=1048576, log=True)
    drafter: Literal["chimera", "chimera-no-trigram", "chimera-no-context", "medusa"] = "chimera"


class Chimera(DecodingMethod):
    """A trigram encoder, one decoder layer over the target's states and four heads draft a tree of fixed shape.

    The heads end in the target's own output matrix (`suite.models.chimera`). Children are the likeliest tokens, so the
    exact rule, greedy or sampled, emits what the target would.
    """

    card: ClassVar[Card] = Card(
        slug="chimera",
        family="decoding",
        title="Chimera: A Lossless Decoding Method for Accelerating LLM Inference by Fusing all Tokens",
        source="arXiv 2402.15758, github.com/kafkayu/Chimera",
        lossless=True,
        needs=("adapter",),
        claims=CLAIMS,
    )
    Config = ChimeraConfig
    sees_hidden: ClassVar[bool] = True

    @staticmethod
    def cost(config: Any, at: Situation) -> MethodCost:
        """One layer and a head for every level; Medusa's heads run once."""
        paths = SHAPES[config.tree].split()
        levels = 1 if config.drafter == "medusa" else max(map(len, paths))
        return MethodCost(drafted=len(paths), drafter=Drafter(min(levels, HEADS), vocab=config.vocab))

    def refusal(self, model: LanguageModel, config: Any) -> str | None:
        return super().refusal(model, config) or adapters.missing(config.drafter, model)

    def prepare(self, model: LanguageModel, config: Any) -> None:
        """Loads the drafter of this model in its dtype."""
        self.drafter = cast_weights(adapters.load(config.drafter, model), model.decoder.dtype)

    def begin(self, model: LanguageModel, config: ChimeraConfig) -> None:
        """An empty trigram table; it lasts as long as the method is attached."""
        self._config, self._target = config, model.decoder
        self.shape = TreeShape.of(SHAPES[config.tree], HEADS)
        if isinstance(self.drafter, ChimeraDrafter):
            self.table = TrigramTable(self._encode)

    def _encode(self, trigrams: Tensor) -> Tensor:
        return cast(ChimeraDrafter, self.drafter).encode(self._target.embed(trigrams))

    def start(self, contexts: Sequence[Context]) -> None:
        """The context encoder has read nothing of this batch yet."""
        vocab, drafter = self._config.vocab, self.drafter
        if isinstance(drafter, MedusaHeads):
            self.drafts_of_batch: ChimeraDrafts | MedusaDrafts = MedusaDrafts(
                drafter, self._target, self.shape, vocab, len(contexts)
            )
        else:
            known = cast(ChimeraDrafter, drafter)
            self.drafts_of_batch = ChimeraDrafts(known, self._target, self.table, self.shape, vocab, contexts)

    def observe(self, context: Context, hidden: Tensor) -> None:
        """The drafter keeps the target's states of verified tokens, and of nothing else."""
        self.drafts_of_batch.observe(context.row, hidden)

    def draft(self, context: Context) -> TokenTree:
        return self.drafts([context])[0]

    def drafts(self, contexts: Sequence[Context]) -> Sequence[TokenTree]:
        return self.drafts_of_batch.trees(contexts)

    def held_bytes(self) -> int:
        """The context encoder's cache and the trigram table."""
        table = self.table.held_bytes() if isinstance(self.drafter, ChimeraDrafter) else 0
        return table + self.drafts_of_batch.held_bytes()
