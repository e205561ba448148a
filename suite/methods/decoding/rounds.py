"""The family's loop: draft, verify, emit, commit, and the figures of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from time import perf_counter_ns
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor

from suite.methods.decoding.acceptance import Verdict, follow
from suite.methods.decoding.context import Context, Round
from suite.methods.decoding.selected import verifier
from suite.methods.decoding.tree import EMPTY, MOST_DRAFTED, ROOT, TokenTree
from suite.methods.decoding.verification import commit
from suite.models.attention import Step
from suite.models.generation import Meter, Slot, completion, give, padded, prefill, score_target
from suite.models.language_model import LanguageModel
from suite.models.sampling import RequestSampler
from workloads.schema import Completion, CostLedger, DraftFigures, Request

if TYPE_CHECKING:
    from suite.methods.decoding.base import DecodingMethod


@dataclass
class Tally:
    """Counts of one request, by the definitions of `_speculative.md` section 1."""

    rounds: int = 0
    emitted: int = 0
    drafted: int = 0
    accepted: int = 0
    steps: int = 0
    offered_at: list[int] = field(default_factory=list)
    accepted_at: list[int] = field(default_factory=list)
    draft_ns: int = 0
    decode_ns: int = 0

    def add(self, outcome: Round) -> None:
        """One round. Position k was offered if the ones before it were accepted and a token stood there."""
        self.rounds += 1
        self.emitted += len(outcome.tokens)
        self.drafted += len(outcome.tree)
        self.accepted += len(outcome.path)
        self.steps += outcome.tree.steps
        ended = len(outcome.tokens) == len(outcome.path)
        next_one = bool(outcome.tree.children.get(outcome.path[-1] if outcome.path else ROOT)) and not ended
        missing = len(outcome.path) + next_one - len(self.offered_at)
        for column in (self.offered_at, self.accepted_at):
            column += [0] * missing
        for place in range(len(outcome.path)):
            self.accepted_at[place] += 1
        for place in range(len(outcome.path) + next_one):
            self.offered_at[place] += 1

    def figures(self) -> DraftFigures:
        """As a completion carries them."""
        return DraftFigures(
            rounds=self.rounds,
            emitted=self.emitted,
            drafted=self.drafted,
            accepted=self.accepted,
            offered_at=tuple(self.offered_at),
            accepted_at=tuple(self.accepted_at),
            draft_ns=self.draft_ns,
            decode_ns=self.decode_ns,
        )


@dataclass
class Row:
    """One request of the batch: what it has produced, as a drafter sees it, and its counts."""

    slot: Slot
    context: Context
    tally: Tally = field(default_factory=Tally)

    @property
    def running(self) -> bool:
        """Not ended."""
        return self.slot.stop_reason is None

    def forced(self, tree: TokenTree) -> Verdict:
        """Teacher forcing: the target's text decides, whatever the logits say."""
        said = len(self.slot.tokens)
        return follow(tree, [self.slot.prompt.target_ids[said + depth] for depth in (0, *tree.depths)])

    def emit(self, model: LanguageModel, verdict: Verdict, logits: Tensor, meter: Meter) -> int:
        """Hands over the tokens one by one, until the request ends; returns how many."""
        for index, (node, token) in enumerate(zip((ROOT, *verdict.path), verdict.tokens, strict=True)):
            if self.slot.prompt.target_ids:
                score_target(self.slot, logits[node + 1])
            give(model, self.slot, token, meter)
            self.context.tokens.append(token)
            if not self.running:
                return index + 1
        return len(verdict.tokens)

    def completion(self, model: LanguageModel, meter: Meter) -> Completion:
        """What it came to."""
        tally, slot = self.tally, self.slot
        cost = CostLedger(
            prompt_tokens=len(slot.prompt.ids),
            generated_tokens=len(slot.tokens),
            discarded_tokens=tally.drafted - tally.accepted,
            verifier_passes=tally.rounds,
            sequential_depth=1 + tally.rounds + tally.steps,
        )
        return completion(model, slot, meter, cost, tally.figures())


def run_batch(
    model: LanguageModel, method: DecodingMethod, requests: Sequence[Request], meter: Meter
) -> Iterator[Completion]:
    """Runs one batch to its end; completions come in the order of the requests.

    Requests with a `target` are teacher-forced: drafts are accepted where they agree with the target.
    """
    batch = Batch(model, method, requests, meter)
    with torch.inference_mode():
        meter.phase("prefill")
        batch.prefill()
        meter.phase("decode")
        while any(row.running for row in batch.rows):
            batch.round()
    if meter.counting:
        meter.resident(batch.cache.live_bytes(), method.held_bytes())
    yield from (row.completion(model, meter) for row in batch.rows)


class Batch:
    """The state of one batch while it runs. `cache` holds, of every running row, all tokens but the root."""

    def __init__(self, model: LanguageModel, method: DecodingMethod, requests: Sequence[Request], meter: Meter) -> None:
        self._model, self._method, self._meter = model, method, meter
        self.rows = [_row(model, request, index, len(requests)) for index, request in enumerate(requests)]
        watch = self._watch if method.sees_hidden else None
        self._attention = verifier(model.config, len(requests), method.attention, meter, watch)
        self._hidden: Tensor | None = None
        longest = max(len(row.context.tokens) + row.slot.limit for row in self.rows)
        self.cache = model.decoder.new_cache(len(self.rows), self._attention.capacity(longest) + MOST_DRAFTED)

    def prefill(self) -> None:
        """Prompts, and the first token of each."""
        for row in self.rows:
            self._meter.start(row.slot.request.id, row.context.prompt_tokens)
        self._method.start([row.context for row in self.rows])
        prompts = [row.slot.prompt.ids for row in self.rows]
        chunk = self._attention.prefill_chunk
        logits = prefill(self._model.decoder, self._attention, self.cache, prompts, self._meter, chunk)
        self._hidden = None
        for row in self.rows:
            self._settle(row, EMPTY, logits[row.context.row, None])

    def round(self) -> None:
        """One draft and one pass for every running request."""
        running = [row for row in self.rows if row.running]
        began = perf_counter_ns()
        trees = self._drafts(running)
        drafted = perf_counter_ns()
        self._attention.plant(self.cache, trees)
        starts = list(self.cache.lengths)
        logits = self._verify(trees)
        paths: list[tuple[int, ...] | None] = [None] * len(self.rows)
        learning = 0
        for row in running:
            tree = trees[row.context.row]
            assert tree is not None
            outcome, took = self._settle(row, tree, logits[row.context.row, : 1 + len(tree)])
            paths[row.context.row] = outcome.path
            row.tally.add(outcome)
            learning += took
        commit(self.cache, starts, paths)
        ended = perf_counter_ns()
        for row in running:
            row.tally.draft_ns += drafted - began + learning
            row.tally.decode_ns += ended - began

    def _drafts(self, running: Sequence[Row]) -> list[TokenTree | None]:
        """By row of the batch; none for those that have ended, an empty one where a single token is left."""
        trees: list[TokenTree | None] = [EMPTY if row.running else None for row in self.rows]
        open_ended = [row.context for row in running if row.context.most_depth > 0]
        drafts = self._method.drafts(open_ended) if open_ended else ()
        for context, tree in zip(open_ended, drafts, strict=True):
            trees[context.row] = tree.within(context.most_depth)
        return trees

    def _verify(self, trees: Sequence[TokenTree | None]) -> Tensor:
        """Logits [B, T, vocab] of all roots and nodes."""
        pieces = [
            [0] if tree is None else [row.context.tokens[-1], *tree.tokens]
            for row, tree in zip(self.rows, trees, strict=True)
        ]
        counts = [0 if tree is None else 1 + len(tree) for tree in trees]
        self._meter.step(sum(counts), max(self.cache.seen) + max(counts))
        return cast(Tensor, self._model.decoder(padded(pieces), self.cache, self._attention, counts, logits="all"))

    def _settle(self, row: Row, tree: TokenTree, logits: Tensor) -> tuple[Round, int]:
        """Accepts and emits; tells the method. Returns the outcome, and the nanoseconds the method took to learn."""
        forced = bool(row.slot.prompt.target_ids)
        verdict = row.forced(tree) if forced else self._method.accept(tree, logits, row.context.sampler)
        emitted = row.emit(self._model, verdict, logits, self._meter)
        outcome = Round(tree, verdict.path[:emitted], verdict.tokens[:emitted])
        began = perf_counter_ns()
        if self._hidden is not None:
            states = self._hidden[row.context.row, [0, *(node + 1 for node in outcome.path)]]
            self._method.observe(row.context, self._model.decoder.norm(states))
        self._method.update(row.context, outcome)
        if not row.running:
            self._method.finish(row.context)
        return outcome, perf_counter_ns() - began

    def _watch(self, hidden: Tensor, step: Step) -> None:
        """Shows the method the prompt's states at once; those of a round wait until it is known which are kept."""
        self._hidden = hidden
        if self._prefilling:
            for row, count in zip(self.rows, step.counts, strict=True):
                if count:
                    self._method.observe(row.context, self._model.decoder.norm(hidden[row.context.row, :count]))

    @property
    def _prefilling(self) -> bool:
        return not any(row.slot.tokens for row in self.rows)


def _row(model: LanguageModel, request: Request, index: int, batch: int) -> Row:
    slot = Slot(request, model.encode(request), model.config.eos_ids)
    prompt = list(slot.prompt.ids)
    context = Context(index, batch, prompt, len(prompt), slot.limit, RequestSampler(request))
    return Row(slot, context)
