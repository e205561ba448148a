"""Drafters that know what the target will say, and a small random model, for tests of draft and verify."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar

import torch

from suite.harness.meter import RequestMeter
from suite.methods.attention.dense import Dense
from suite.methods.base import Card, Method
from suite.methods.decoding.base import DecodingMethod
from suite.methods.decoding.context import Context
from suite.methods.decoding.tree import ROOT, TokenTree
from suite.models.language_model import LanguageModel
from suite.models.sampling import RequestSampler
from tests.methods.support import CONFIG, tiny_model
from workloads.schema import Completion, Request

VOCAB = 40


def small_model(seed: int = 0, vocab: int = VOCAB, eos: Sequence[int] = (), **fields: Any) -> LanguageModel:
    """The tiny model with few tokens: its greedy text soon repeats itself."""
    return tiny_model(replace(CONFIG, vocab=vocab, eos_ids=tuple(eos), **fields), seed=seed)


def request(name: str = "r", length: int = 30, new: int = 24, **fields: Any) -> Request:
    text = "".join(chr((i * i * 7 + 3 * len(name) + sum(map(ord, name)) * i) % VOCAB) for i in range(length))
    return Request(**{"id": name, "task": "t", "prompt": text, "metric": "none", "max_new_tokens": new} | fields)


def run(
    method: Method, model: LanguageModel, requests: Sequence[Request], meter: Any = None, **options: Any
) -> list[Completion]:
    config = method.Config(**options)
    method.prepare(model, config)
    with method.attach(model, config) as generator:
        return list(generator.generate(requests, meter or RequestMeter()))


def dense(model: LanguageModel, *requests: Request) -> list[Completion]:
    return run(Dense(), model, requests)


def context(
    tokens: Sequence[int], new: int = 50, row: int = 0, batch: int = 1, said: int = 0, **fields: Any
) -> Context:
    """A running request whose last `said` tokens are emitted ones."""
    sampler = RequestSampler(request(**fields))
    return Context(row, batch, list(tokens), len(tokens) - said, new, sampler)


class Knowing(DecodingMethod):
    """Drafts the target's own text, `length` tokens of it, with a wrong node before each right one if `decoys`.

    So drafts are accepted, and the accepted nodes do not lie where they belong. Every third draft goes wrong at its
    third token.
    """

    card: ClassVar[Card] = Card("knowing", "test", "t", "s", lossless=True)

    def __init__(self, texts: Sequence[Sequence[int]], length: int = 4, decoys: bool = True) -> None:
        self._texts, self._length, self._decoys, self._turn = texts, length, decoys, 0

    def draft(self, context: Context) -> TokenTree:
        self._turn += 1
        said = len(context.tokens) - context.prompt_tokens
        right = list(self._texts[context.row][said : said + self._length])
        if self._turn % 3 == 0 and len(right) > 2:
            right[2] = (right[2] + 1) % VOCAB
        tokens, parents, last = list[int](), list[int](), ROOT
        for token in right:
            if self._decoys:
                tokens.append((token + 3) % VOCAB)
                parents.append(last)
            tokens.append(token)
            parents.append(last)
            last = len(tokens) - 1
        return TokenTree(tuple(tokens), tuple(parents))


def top_two_gap(model: LanguageModel, prompt: Sequence[int]) -> float:
    """Between the two largest logits behind these tokens, on the dense path."""
    from suite.models.attention import DenseAttention

    with torch.inference_mode():
        logits = model.decoder(
            torch.tensor([prompt]), model.decoder.new_cache(1, len(prompt)), DenseAttention(model.config)
        )
    best = logits[0].topk(2).values
    return float(best[0] - best[1])


def ties(
    model: LanguageModel, requests: Sequence[Request], ours: Sequence[Completion], plain: Sequence[Completion]
) -> int:
    """Requests whose greedy texts part; each of them must do so where the target itself hesitates."""
    found = 0
    for one, mine, theirs in zip(requests, ours, plain, strict=True):
        if mine.token_ids != theirs.token_ids:
            pairs = zip(mine.token_ids, theirs.token_ids, strict=False)
            same = next(i for i, (a, b) in enumerate(pairs) if a != b)
            gap = top_two_gap(model, [*model.encode(one).ids, *theirs.token_ids[:same]])
            assert gap < 1e-3, f"{one.id} parts from dense at token {same}, where the two best are {gap} apart"
            found += 1
    return found
