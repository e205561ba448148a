"""What a drafter knows of a running request, and what came of its draft."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from suite.methods.decoding.tree import TokenTree
from suite.models.sampling import RequestSampler


@dataclass
class Context:
    """One running request as a drafter sees it: prompt and emitted tokens, the root last. `row` of `batch` requests.

    `limit` is the number of tokens it may produce. Drawn drafts take their numbers from `sampler`.
    """

    row: int
    batch: int
    tokens: list[int]
    prompt_tokens: int
    limit: int
    sampler: RequestSampler

    @property
    def most_depth(self) -> int:
        """Drafted tokens in a row that can still be of use: one place is left for the target's own token."""
        return self.limit - (len(self.tokens) - self.prompt_tokens) - 1


class Round(NamedTuple):
    """What came of a draft: the accepted nodes in order, and the emitted tokens, which `Context.tokens` holds too.

    Both end where the request ended. The first token, which comes from the prompt, is a round without a draft.
    """

    tree: TokenTree
    path: tuple[int, ...]
    tokens: tuple[int, ...]
