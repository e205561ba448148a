"""The decoding family: a method drafts tokens, the family verifies a whole draft in one pass of the target.

A round: every running request gets a draft (a `TokenTree`); one pass over all roots and nodes gives the target's logits
at each of them; the accepted path and one token of the target are emitted; of the pass only the root and the accepted
nodes stay in the cache. The root is the last emitted token, which no pass has seen yet. What the text is, its seeds
and its ends included, is what the target alone would have written.

What the family's systems need beyond `draft` and `update`:

- a memory over requests (lookahead): `begin`, `start` and `finish` say when a request's tokens come and go;
- a model of their own, with a cache (draft model, the chain of specmquant, cosine): `suite.methods.decoding.drafter`;
- the target's hidden states (chimera): `sees_hidden` and `observe`;
- all requests of a batch at once (cosine's fusion, any drafting model): `drafts`;
- a lossy rule, named in the card (chimera's second mode): `accept`.

The target attends to everything unless a combination says otherwise: `suite.methods.decoding.selected`.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

from torch import Tensor

from suite.methods.base import Generator, Method, MethodConfig
from suite.methods.decoding.acceptance import Verdict, accept
from suite.methods.decoding.context import Context, Round
from suite.methods.decoding.rounds import run_batch
from suite.methods.decoding.selected import Under
from suite.methods.decoding.tree import TokenTree
from suite.models.generation import Meter
from suite.models.language_model import LanguageModel
from suite.models.sampling import RequestSampler
from workloads.schema import Completion, Request


class DecodingMethod(Method):
    """A method fills in `draft`, and `update` where it learns from the outcome; the other hooks do nothing by default.

    One instance runs one batch at a time. What it remembers from batch to batch `begin` forgets.
    """

    sees_hidden: ClassVar[bool] = False
    attention: Under | None = None
    """What the target attends with: set where this method is combined with an attention method that `verifies`."""

    def refusal(self, model: LanguageModel, config: Any) -> str | None:
        """Verification knows no sliding window."""
        if any(window is not None for window in model.config.windows):
            return f"{model.name} has layers with a sliding window, over which a draft tree cannot be verified yet"
        return None

    def begin(self, model: LanguageModel, config: Any) -> None:
        """The method has been attached: nothing of earlier requests is known."""

    def start(self, contexts: Sequence[Context]) -> None:
        """A batch of requests begins; their prompts are known, and not yet prefilled."""

    @abstractmethod
    def draft(self, context: Context) -> TokenTree:
        """What may follow; an empty tree makes an ordinary step. Nodes deeper than `most_depth` are cut off."""

    def drafts(self, contexts: Sequence[Context]) -> Sequence[TokenTree]:
        """The drafts of all running requests; a model that drafts for all in one pass overrides this."""
        return [self.draft(context) for context in contexts]

    def accept(self, tree: TokenTree, logits: Tensor, sampler: RequestSampler) -> Verdict:
        """The exact rule; logits [1 + N, vocab] of root and nodes. A method with another one is lossy and says so."""
        return accept(tree, logits, sampler)

    def observe(self, context: Context, hidden: Tensor) -> None:
        """If `sees_hidden`: the target's final-norm states [n, hidden] of the next n tokens that are in its cache.

        That is the prompt in pieces, then root and accepted nodes of each round, before `update` is told of it. The
        tensor is the method's own.
        """

    def update(self, context: Context, outcome: Round) -> None:
        """A round of a request is over; the first is the token that came from the prompt."""

    def finish(self, context: Context) -> None:
        """A request has ended, after its last `update`."""

    def held_bytes(self) -> int:
        """Bytes the method keeps beside the target's cache: tries, caches of drafters."""
        return 0

    @contextmanager
    def attach(self, model: LanguageModel, config: MethodConfig) -> Iterator[Generator]:
        """Nothing is installed on the model: a draft is another way of calling it."""
        self.begin(model, config)
        yield DraftGenerator(model, self)


class DraftGenerator:
    """Runs batches of requests through a decoding method; what the method has learnt stays from batch to batch."""

    def __init__(self, model: LanguageModel, method: DecodingMethod) -> None:
        self._model, self._method = model, method

    def generate(self, requests: Sequence[Request], meter: Meter) -> Iterator[Completion]:
        """One batch; completions in the order of the requests."""
        return run_batch(self._model, self._method, requests, meter)
