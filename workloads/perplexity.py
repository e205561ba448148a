"""Perplexity by teacher forcing: a sliding window over any text, every word scored once, in nats per token."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import fmean

from pydantic import Field

from workloads.generators.seeding import item_rng
from workloads.generators.world import LEXICON_FILES, World
from workloads.lengths import estimate_tokens
from workloads.loading import read_text
from workloads.schema import Completion, DataError, Request, Workload, WorkloadConfig

_WORD = re.compile(r"\s*\S+")
"""A word with the blanks before it: the prompt then ends, and the target starts, where tokenizers cut anyway."""


class PerplexityConfig(WorkloadConfig):
    """`data`: any UTF-8 text file. A request's prompt has `context_words` words and its target the `stride_words` next.

    Words are what blanks separate; English has about 1.3 tokens a word.
    """

    context_words: int = Field(default=384, ge=1, le=1_000_000)
    stride_words: int = Field(default=64, ge=1, le=100_000)


class Perplexity(Workload):
    """Windows start `stride_words` apart, so that no word is scored twice, and are visited in a seeded order."""

    name = "perplexity"
    version = "1"
    tasks = ("text",)
    score_name = "nats per token"
    higher_is_better = False
    Config = PerplexityConfig
    config: PerplexityConfig

    def __init__(self, config: PerplexityConfig | None = None) -> None:
        super().__init__(config)
        self._words = _WORD.findall(read_text(self.config.data)) if self.config.data else []
        if self.config.data and len(self._words) < self._window:
            raise DataError(
                f"{self.config.data}: has {len(self._words)} words; one window of context_words and stride_words "
                f"needs {self._window}."
            )

    @property
    def _window(self) -> int:
        return self.config.context_words + self.config.stride_words

    def data_files(self) -> Sequence[Path]:
        return (self.config.data or LEXICON_FILES["en"],)

    def requests(self, task: str, limit: int, seed: int) -> Iterator[Request]:
        self.check_task(task)
        if self._words:
            count = 1 + (len(self._words) - self._window) // self.config.stride_words
            order = random.Random(seed).sample(range(count), count)
            for index, window in enumerate(order[:limit]):
                first = window * self.config.stride_words
                yield self._request(index, self._words[first : first + self._window], first, seed)
            return
        for index in range(limit):
            yield self._request(index, _prose(index, seed, self._window), 0, seed)

    def _request(self, index: int, words: list[str], first: int, seed: int) -> Request:
        target = "".join(words[self.config.context_words :])
        return Request(
            id=f"perplexity/text/{index}",
            task="text",
            prompt="".join(words[: self.config.context_words]),
            metric="negative_log_likelihood",
            max_new_tokens=max(1, estimate_tokens(target)),
            seed=seed,
            target=target,
            metadata={"first_word": first, "target_bytes": len(target.encode())},
        )

    def score(self, completion: Completion, request: Request) -> float:
        """Mean negative log-likelihood of the target's tokens, in nats."""
        if not completion.target_logprobs:
            raise DataError(
                f"request {request.id} was not scored; the engine must return the target's log-probabilities."
            )
        return -fmean(completion.target_logprobs)


def _prose(index: int, seed: int, words: int) -> list[str]:
    """The first `words` words of a text of generated paragraphs, an entity's fact in each."""
    world = World(item_rng("perplexity", seed, index), "en")
    facts = [chain["facts"][0] for chain in world.lexicon["facts"]["multifieldqa_en"]]
    found: list[str] = []
    while len(found) < words:
        sentences = [*world.paragraph(4), world.bind(world.rng.choice(facts), {})]
        world.rng.shuffle(sentences)
        found += _WORD.findall(("\n\n" if found else "") + " ".join(sentences))
    return found[:words]
