"""Lookahead: drafts from tries of the prompts at hand and of all that has been generated (Alipay, 2312.12728)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar, Literal

from pydantic import Field

from suite.cost import MethodCost, Situation
from suite.methods.base import Card, Claim, MethodConfig, tunable
from suite.methods.decoding.base import DecodingMethod
from suite.methods.decoding.context import Context, Round
from suite.methods.decoding.tree import TokenTree
from suite.methods.decoding.trie import Branches, Node, Score, Trie
from suite.models.language_model import LanguageModel

ANSWER_WEIGHT = 1e-4  # of generated text beside prompts: among what the prompt says too, it breaks ties
NO_START = (",", ".", " ", "\n", "，")
"""As generated text they begin no branch, and alone they are no query: what follows them may be anything."""


class LookaheadConfig(MethodConfig):
    """`decoding_length` D: tokens per pass of all requests together, roots included. `branch_length` L: the deepest.

    The paper's D is 64, for GPUs, on which a pass over 64 tokens costs one over a single token; on a CPU 8 to 16 is
    best. `mode`: a tree, its branches side by side, or one branch. `compat_pruning`: of more live nodes than fit, only
    those among the D / 2 most frequent in generated text, as in the published code.
    """

    decoding_length: int = tunable(16, low=2, high=64, log=True)
    branch_length: int = tunable(12, low=1, high=32)
    query_length: int = tunable(2, low=1, high=8)
    mode: Literal["hier", "par", "one"] = "hier"
    source: Literal["mix", "input", "output"] = "mix"
    max_nodes: int = Field(65536, ge=1)
    max_output_nodes: int = Field(512, ge=1)
    compat_pruning: bool = False


class Lookahead(DecodingMethod):
    """The newest tokens are looked up in tries of prompts and answers; the best branches behind them are the draft.

    Answers go into the tries as they are written and stay for later requests, as long as the method is attached;
    a prompt counts for its own request, until that ends.
    """

    card: ClassVar[Card] = Card(
        slug="lookahead",
        family="decoding",
        title="Lookahead: An Inference Acceleration Framework with Lossless Generation Accuracy",
        source="arXiv 2312.12728, github.com/alipay/PainlessInferenceAcceleration",
        lossless=True,
        claims=(
            Claim("lossless", "the output is that of plain decoding, up to floating-point effects",
                  "identical, all models and GPUs", "share of greedy tokens", 1.0),
            Claim("rag-speed", "several times faster where answers copy from the prompt",
                  "5.36x, AntGLM-10B, AntRAG, A100, batch 1", "speed-up over plain decoding", 2.0),
            Claim("chat-speed", "faster on open chat too, with tries filled with the model's own answers",
                  "2.12x, Llama2-7B-chat, Dolly-15k, A100, batch 1", "speed-up over plain decoding", 0.95),
            Claim("several-branches", "a tree of branches is accepted further than one branch of as many tokens",
                  "hierarchical > parallel > single branch at equal budget", "ratio of tokens per pass", 1.15),
            Claim("warm", "tries that know earlier answers are better than empty ones",
                  "tables are with tries filled from the train split", "ratio of tokens per pass"),
            Claim("both-sources", "prompt and answers together are better than either alone",
                  "sources are mixed by default", "ratio of tokens per pass"),
            Claim("free-rows", "up to a critical length a pass over many tokens costs about as much as one",
                  "AntGLM-10B, A100, context 256: flat from 16 to 128 tokens", "tokens", 16.0),
        ),
    )  # fmt: skip
    Config = LookaheadConfig

    @staticmethod
    def cost(config: Any, at: Situation) -> MethodCost:
        """One request has all of D."""
        return MethodCost(drafted=config.decoding_length - 1)

    def begin(self, model: LanguageModel, config: LookaheadConfig) -> None:
        """Empty tries. `hits` counts drafts by the length of the query that found the first of them, 0: none did."""
        self._config = config
        self._eos = set(model.config.eos_ids)
        self._no_start = {ids[0] for mark in NO_START if len(ids := model.tokenizer.encode(mark)) == 1}
        self.trie = Trie(config.max_nodes, config.max_output_nodes)
        self.hits: Counter[int] = Counter()
        self._requests = 0

    def teach(self, answer: Sequence[int]) -> None:
        """Learns what the model once said, as if it had said it to an earlier request: the paper's warm tries."""
        for piece in self._pieces(answer):
            self._learn(piece, 0, 1)

    def start(self, contexts: Sequence[Context]) -> None:
        """Prompts go into the tries at once, without their first token."""
        self._sources = [self._requests + row for row in range(len(contexts))]
        self._requests += len(contexts)
        self._streamed = [context.prompt_tokens for context in contexts]
        for context in contexts:
            for piece in self._pieces(context.tokens[1:]):
                for first in range(len(piece) - 1):
                    tail = piece[first + 1 : first + 2 + self._config.branch_length]
                    self.trie.insert_prompt(self._sources[context.row], piece[first], tail)

    def _pieces(self, tokens: Sequence[int]) -> Iterator[Sequence[int]]:
        """Nothing is learnt across an end of text. A chat template has several: each part of it is a text."""
        begin = 0
        for place, token in enumerate(tokens):
            if token in self._eos:
                yield tokens[begin:place]
                begin = place + 1
        yield tokens[begin:]

    def draft(self, context: Context) -> TokenTree:
        """Longer queries first; a shorter one fills up what they leave of the budget, if they found too little."""
        config, tokens = self._config, context.tokens
        depth = min(config.branch_length, context.most_depth)
        budget = max(1, config.decoding_length // context.batch) - 1
        branches, score, found = Branches(budget), self._score(self._sources[context.row]), 0
        for size in range(min(config.query_length, len(tokens)), 0, -1):
            if size == 1 and tokens[-1] in self._no_start:
                continue
            start = self.trie.find(tokens[-size:])
            if start is not None:
                branches = self._extended(branches, start, score, depth)
                found = found or (size if len(branches) else 0)
            if 1 + len(branches) >= config.branch_length:
                break
        self.hits[found] += 1
        tokens, parents = branches.side_by_side() if config.mode == "par" else branches.depth_first()
        return TokenTree(tuple(tokens), tuple(parents))

    def _extended(self, branches: Branches, start: Node, score: Score, depth: int) -> Branches:
        """A tree is merged with what a longer query found before; of single branches the longer one is kept."""
        if self._config.mode == "one":
            other = Branches(branches.budget)
            other.add_one(start, score, depth)
            return max(branches, other, key=len)
        if self._config.compat_pruning:
            score = self._published(start, score, depth)
        branches.add_best(start, score, depth)
        return branches

    def _score(self, source: int) -> Score:
        """(1 - w) x frequency in the request's own prompt + w x frequency in what was generated."""
        kind = self._config.source
        prompt, answer = {"mix": (1 - ANSWER_WEIGHT, ANSWER_WEIGHT), "input": (1.0, 0.0), "output": (0.0, 1.0)}[kind]

        def score(node: Node) -> float:
            own = node.prompts.get(source, 0.0) if node.prompts else 0.0
            return prompt * own + answer * node.answers

        return score

    def _published(self, start: Node, score: Score, depth: int) -> Score:
        """The published code's rule for more live nodes than fit, which forgets about prompts."""
        live = [node.answers for node in _descendants(start, depth) if score(node) > 0.0]
        if self._config.source != "mix" or len(live) < self._config.decoding_length:
            return score
        least = sorted(live, reverse=True)[self._config.decoding_length // 2 - 1]
        return lambda node: score(node) if node.answers >= least else 0.0

    def update(self, context: Context, outcome: Round) -> None:
        """Streams what was generated into the tries: every place that has a full branch behind it."""
        self._stream(context, 1 + self._config.branch_length)

    def finish(self, context: Context) -> None:
        """The answer's last places go in as they are, the prompt goes out."""
        self._stream(context, 1)
        self.trie.forget_prompt(self._sources[context.row])
        self.trie.clean_up()

    def _stream(self, context: Context, least: int) -> None:
        said = context.tokens
        if said[-1] in self._eos:  # it ends the request: it stands nowhere else
            said = said[:-1]
        self._streamed[context.row] = self._learn(said, self._streamed[context.row], least)

    def _learn(self, said: Sequence[int], first: int, least: int) -> int:
        """Inserts all places from `first` on that have `least` tokens behind them; returns the next one."""
        while first + least < len(said):
            if said[first] not in self._no_start:
                self.trie.insert_answer(said[first], said[first + 1 : first + 2 + self._config.branch_length])
            first += 1
        return first

    def held_bytes(self) -> int:
        return self.trie.held_bytes()


def _descendants(node: Node, depth: int) -> Iterator[Node]:
    for child in node.children.values() if depth else ():
        yield child
        yield from _descendants(child, depth - 1)
