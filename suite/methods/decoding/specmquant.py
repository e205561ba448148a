"""HierSpec (arXiv 2505.22179): a small int4 model verifies tree drafts, and the target a chain of what came of them.

A pass over a tree costs little on 16-bit weights and much on int4 ones, where arithmetic soon bounds it. So trees are
verified by a middle model; the target sees a short chain in a plain causal pass, with `w4g128` around this method.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from time import perf_counter_ns
from typing import Any, ClassVar

import torch
from torch import Tensor

from suite.cost import MethodCost, Situation
from suite.methods.base import Card, Claim, MethodConfig, tunable
from suite.methods.decoding.acceptance import follow
from suite.methods.decoding.base import DecodingMethod
from suite.methods.decoding.context import Context, Round
from suite.methods.decoding.drafter import distilled, trained_drafter, widened
from suite.methods.decoding.tree import TokenTree
from suite.methods.decoding.tree_drafter import TreeDrafter, tree_head
from suite.methods.decoding.verification import TreeAttention, commit
from suite.models import adapters
from suite.models.attention import Step
from suite.models.decoder import Decoder
from suite.models.generation import PREFILL_CHUNK
from suite.models.language_model import LanguageModel

MIDDLE, HEAD = "distilled-w4", "eagle-w4"


class SpecMQuantConfig(MethodConfig):
    """Chains have `min_chain` tokens at least; trees `nodes`, root included, `depth` levels, of which `width` grow on.

    `draft_model_start`: the middle model's own next token begins a chain after a partial acceptance too, before the
    first tree. The defaults are the paper's for 70B and 8B models.
    """

    min_chain: int = tunable(6, low=1, high=16)
    depth: int = tunable(3, low=1, high=8)
    width: int = tunable(10, low=1, high=16)
    nodes: int = tunable(30, low=2, high=64, log=True)
    draft_model_start: bool = False


@dataclass
class MiddleFigures:
    """Passes of the middle model over trees, the tokens they gave, chains and their tokens, and nanoseconds."""

    rounds: int = 0
    emitted: int = 0
    chains: int = 0
    drafted: int = 0
    expand_ns: int = 0
    pass_ns: int = 0
    prefill_ns: int = 0


class MiddleModel:
    """One request's middle model and its tree drafter: they write chains of the middle model's own text."""

    def __init__(self, decoder: Decoder, head: Decoder, context: Context, config: SpecMQuantConfig) -> None:
        room = context.prompt_tokens + context.limit + config.nodes + config.width * config.depth
        self._decoder, self._context, self._config = decoder, context, config
        self._attention = TreeAttention(decoder.config, None, self._watch)
        self._cache, self._states = decoder.new_cache(1, room), torch.empty(0)
        self._trees = TreeDrafter(head, room)

    def prefill(self) -> None:
        """Both read the prompt."""
        tokens = self._context.tokens
        for first in range(0, len(tokens), PREFILL_CHUNK):
            self._decoder(torch.tensor([tokens[first : first + PREFILL_CHUNK]]), self._cache, self._attention)
            self._trees.learn(self._states)
        self._trees.read(tokens)

    def chain(self, figures: MiddleFigures) -> TokenTree:
        """`min_chain` tokens and up to `depth` more, with their laws q if they are drawn."""
        context, config = self._context, self._config
        text, laws, steps = list(context.tokens), list[Tensor](), 0
        owed = text[self._cache.lengths[0] :]
        if len(owed) > 1 or len(text) == context.prompt_tokens + 1 or config.draft_model_start:
            said, q = self._say(self._pass(owed[0], TokenTree.chain(owed[1:]))[-1:])
            self._trees.learn(self._states)
            text, laws, steps = [*text, *said], [*laws, *q], 1
        while (length := len(text) - len(context.tokens)) < min(config.min_chain, context.most_depth):
            steps += self._grow(text, laws, min(config.depth, context.most_depth - length), figures)
        figures.chains, figures.drafted = figures.chains + 1, figures.drafted + length
        return TokenTree.chain(text[len(context.tokens) :], torch.cat(laws) if laws else None, steps)

    def _grow(self, text: list[int], laws: list[Tensor], depth: int, figures: MiddleFigures) -> int:
        """One tree behind the text: accepted nodes and a token of the middle model; returns sequential passes."""
        began, start = perf_counter_ns(), self._cache.lengths[0]
        tree = self._trees.expand(text, depth, self._config.width, self._config.nodes - 1)
        expanded = perf_counter_ns()
        choices, q = self._say(self._pass(text[-1], tree))
        verdict = follow(tree, choices)
        commit(self._cache, [start], [verdict.path])
        text += verdict.tokens
        rows = [0, *(node + 1 for node in verdict.path)]
        laws += [law[rows] for law in q]
        self._trees.learn(self._states[rows])
        figures.rounds, figures.emitted = figures.rounds + 1, figures.emitted + len(verdict.tokens)
        figures.expand_ns += expanded - began
        figures.pass_ns += perf_counter_ns() - expanded
        return tree.steps + 1

    def _pass(self, root: int, tree: TokenTree) -> Tensor:
        """Logits [1 + N, vocab] of the middle model at a root and its tree."""
        self._attention.plant(self._cache, [tree])
        logits: Tensor = self._decoder(torch.tensor([[root, *tree.tokens]]), self._cache, self._attention, logits="all")
        return logits[0]

    def _say(self, logits: Tensor) -> tuple[list[int], list[Tensor]]:
        """The middle model's token behind each row of logits [n, vocab]; drawn ones with their laws [n, vocab]."""
        sampler = self._context.sampler
        if sampler.greedy:
            return sampler.choose(logits, [0] * len(logits)), []
        q = widened(sampler.probabilities(logits), self._decoder.embedding.num_embeddings)
        return [sampler.draw(law) for law in q], [q]

    def keep(self) -> None:
        """A round of the target is over: what it refused is forgotten."""
        self._cache.truncate(0, len(self._context.tokens) - 1)
        self._trees.keep(len(self._context.tokens))

    def held_bytes(self) -> int:
        """Bytes of both caches and of the features."""
        return self._cache.live_bytes() + self._trees.held_bytes()

    def _watch(self, hidden: Tensor, step: Step) -> None:
        self._states = self._decoder.norm(hidden[0])


class SpecMQuant(DecodingMethod):
    """Target, middle model and tree drafter; the chain is verified like any other draft, so the text is the target's.

    At temperature 0 the chain is the middle model's greedy text; else it is drawn from its law q, whatever the trees
    were, and accepted by the chain rule with q.
    """

    card: ClassVar[Card] = Card(
        slug="specmquant",
        family="decoding",
        title="Speculative Decoding Meets Quantization: Compatibility Evaluation and Hierarchical Framework Design",
        source="arXiv 2505.22179, github.com/AI9Stars/SpecMQuant",
        lossless=True,
        needs=("adapter",),
        claims=(
            Claim("lossless", "the output is that of plain decoding, up to floating-point effects",
                  "chains verified greedily", "share of greedy tokens", 1.0),
            Claim("tree-cost", "a tree costs more beside a one-token pass on int4 weights than on 16-bit ones",
                  "about 1.8 (W4A16) against under 1.2 (FP16)", "ratio of r(T), int4 / 16 bit"),
            Claim("acceptance", "acceptance barely changes with the precision of the target",
                  "mean accepted length nearly equal", "ratio of tokens per pass, int4 / 16 bit", 0.95),
            Claim("tree-gain", "trees speed up int4 targets less than 16-bit ones",
                  "EAGLE-2, Llama-3-8B: 2.3x on FP16, 1.3x on W4A16 (A100)", "gain on 16 bit / gain on int4"),
            Claim("hier-tree", "on int4 weights the hierarchy is faster than a tree draft verified by the target",
                  "1.31x, Llama-3-70B W4A16, Spec-Bench, A100", "tree draft time / HierSpec time", 1.15),
            Claim("hier-chain", "and faster than a chain of the same middle model",
                  "1.21x, Llama-3-70B W4A16 with the W4A16 8B, Spec-Bench, A100", "chain time / HierSpec time"),
        ),
    )  # fmt: skip
    Config = SpecMQuantConfig

    @staticmethod
    def cost(config: Any, at: Situation) -> MethodCost:
        """The shortest chain, in as few passes of the middle model as can give it; its trees are free."""
        passes = -(-config.min_chain // (config.depth + 1))
        return MethodCost(drafted=config.min_chain, drafter=trained_drafter(MIDDLE, passes))

    def refusal(self, model: LanguageModel, config: Any) -> str | None:
        missing = adapters.missing(MIDDLE, model) or adapters.missing(HEAD, model)
        return super().refusal(model, config) or missing

    def prepare(self, model: LanguageModel, config: Any) -> None:
        """Loads the middle model and the head that was trained on its features."""
        self._middle, digest = distilled(MIDDLE, model)
        self._head = tree_head(HEAD, model, self._middle, digest)

    def begin(self, model: LanguageModel, config: SpecMQuantConfig) -> None:
        """`figures` count from here on."""
        self._config, self.figures = config, MiddleFigures()

    def start(self, contexts: Sequence[Context]) -> None:
        """The middle model and its drafter read the prompts too; that time is noted by itself."""
        began = perf_counter_ns()
        self._rows = [MiddleModel(self._middle, self._head, context, self._config) for context in contexts]
        for row in self._rows:
            row.prefill()
        self.figures.prefill_ns += perf_counter_ns() - began

    def draft(self, context: Context) -> TokenTree:
        return self._rows[context.row].chain(self.figures)

    def update(self, context: Context, outcome: Round) -> None:
        """The drafters forget what the target refused."""
        self._rows[context.row].keep()

    def held_bytes(self) -> int:
        return sum(row.held_bytes() for row in self._rows)
