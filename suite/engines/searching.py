"""Draws the pieces that searches ask for through an engine: all rows of all searches are requests of one stream.

A row's request is the prompt and its trace's tokens, ended by the texts that end a step or the trace. The rules are
those of the native sampler, by the same look at the tokens; only the numbers that chance takes are the engine's own.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from uuid import uuid4

import numpy as np

from suite.engines.base import Chunk, Engine, Prompt
from suite.errors import UnitError
from suite.methods.search.asks import Sampling, Writing
from suite.methods.search.ledger import Ledger
from suite.methods.search.trace import Trace
from suite.methods.search.writing import Ends, Piece, call_off, text_of, without_end
from suite.models.language_model import TextModel


@dataclass(eq=False, kw_only=True)
class _Row(Piece):
    """A piece as requests. `made`: tokens of it that came; those behind its end are no part of it."""

    seed: int
    made: int = 0

    @property
    def before(self) -> tuple[int, ...]:
        """What stands before the piece."""
        return (*self.parent.problem.ids, *self.parent.all_ids)


class EngineSampler:
    """One batch of searches. They share the engine's prefix cache, where it has one, with nobody else."""

    def __init__(self, engine: Engine, model: TextModel) -> None:
        self._engine, self._model = engine, model
        self._ends = Ends(model)
        self._salt = uuid4().hex
        self._hits_before = self._hits()
        self._prompts: Counter[int] = Counter()
        self._requests: Counter[int] = Counter()

    def prefill(self, roots: Sequence[Trace]) -> None:
        """Nothing: the engine reads a prompt with what it draws behind it."""

    def settle(self, roots: Sequence[Trace], ledgers: Sequence[Ledger]) -> None:
        """The tokens of all prompts, without those that the engine says it had in its cache.

        It does not say whose they were: of searches side by side, or beside a judge that writes, nothing is known.
        """
        hits, alone = self._hits(), {*self._prompts} == {id(ledger) for ledger in ledgers} and len(ledgers) == 1
        known = alone and hits is not None and self._hits_before is not None
        for ledger in ledgers:
            found = round((hits or 0.0) - (self._hits_before or 0.0))
            computed = self._prompts[id(ledger)] - found if known else None
            ledger.prefill(computed)
            ledger.compute(None if computed is None else self._prompt_flops(ledger, computed))

    def draw(self, asked: Sequence[Sampling]) -> list[list[Trace]]:
        """The children of every ask. Of rows called off, what the engine had sent until then is theirs."""
        groups = [[self._row(ask, index) for index in range(len(ask.parents))] for ask in asked]
        rows = [row for group in groups for row in group]
        while waiting := [row for row in rows if row.open]:
            self._stream(waiting, {id(row): group for group in groups for row in group})
        for ask, group in zip(asked, groups, strict=True):
            lengths, contexts = [row.made for row in group], [len(row.before) for row in group]
            ask.ledger.sampled(lengths, contexts, sum(row.cancelled for row in group))
            pieces = zip(lengths, contexts, strict=True)
            ask.ledger.compute(sum(self._model.config.flops(max(0, length - 1), context) for length, context in pieces))
        return [[row.child(self._model) for row in group] for group in groups]

    def _prompt_flops(self, ledger: Ledger, computed: int) -> float:
        """The ends of prompts, as if all were equally long and found to the same part."""
        count, asked = self._requests[id(ledger)], self._prompts[id(ledger)]
        return count * self._model.config.flops(computed / count, (asked - computed) / count)

    def write(self, asked: Sequence[Writing]) -> list[Trace]:
        """Texts put behind traces: they are part of the next request's prompt, and counted with it."""
        children = []
        for ask in asked:
            parent, _ = without_end(self._model, ask.parent, ask.instead)
            ids = tuple(self._model.tokenizer.encode(ask.text))
            text = text_of(self._model, parent, ids)
            children.append(Trace(parent.problem, parent, ids, text, (0.0,) * len(ids), drawn=False))
        return children

    def _row(self, ask: Sampling, index: int) -> _Row:
        seed = int(np.random.SeedSequence(ask.seeds[index]).generate_state(1)[0]) >> 1
        return _Row.of(ask, index, seed=seed)

    def _hits(self) -> float | None:
        """Tokens that the engine has found in its prefix cache so far; None where it does not say."""
        return self._engine.metrics().get("prefix_cache_hits")

    def _stream(self, rows: Sequence[_Row], groups: dict[int, list[_Row]]) -> None:
        """One request for each row, to its end. One that stops at opening newlines is open still."""
        prompts, before = [self._prompt(row) for row in rows], [row.made for row in rows]
        for row, prompt in zip(rows, prompts, strict=True):
            self._prompts[id(row.asked.ledger)] += len(prompt.ids)
            self._requests[id(row.asked.ledger)] += 1
        for chunk in self._engine.stream(prompts):
            row = rows[chunk.index]
            row.made += len(chunk.token_ids)
            if row.open:
                self._take(row, chunk)
                for other in call_off(groups[id(row)]):
                    self._engine.cancel(rows.index(other))
        if any(row.open and row.made == made for row, made in zip(rows, before, strict=True)):
            raise UnitError(f"{self._engine.name} gave no more tokens for a text that was not at its end.")

    def _prompt(self, row: _Row) -> Prompt:
        ask, problem = row.asked, row.parent.problem
        return Prompt(
            ids=(*row.before, *row.ids),
            max_new_tokens=row.limit - len(row.ids),
            eos_ids=self._model.config.eos_ids,
            temperature=ask.temperature,
            top_p=ask.top_p,
            seed=row.seed + len(row.ids),
            stop=(*problem.stop, *([ask.until] if ask.until is not None else [])),
            logprobs=True,
            salt=self._salt,
        )

    def _take(self, row: _Row, chunk: Chunk) -> None:
        """The chunk's tokens, up to the one that ends the piece."""
        for place, token in enumerate(chunk.token_ids):
            row.ids.append(token)
            row.logprobs += chunk.logprobs[place : place + 1]
            self._ends.look(row)
            if not row.open:
                return
