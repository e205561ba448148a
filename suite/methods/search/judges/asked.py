"""Language models as judges: a fixed question about a solution, with a version id (`_verifiers.md`, section 1).

`llm_judge` reads the answer off the probabilities of "Yes" and "No", and writes nothing. The self-evaluations of
`bag_of_tricks` (axis 3) let the policy itself write a short verdict, through whatever draws its tokens. No question
holds a reference answer. The same solution is asked about once.
"""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Sequence
from statistics import fmean
from typing import ClassVar
from zlib import crc32

import torch
from pydantic import Field

from suite.errors import UnitError
from suite.methods.base import MethodConfig
from suite.methods.search.asks import Sampler, Sampling, Scoring
from suite.methods.search.ledger import Ledger
from suite.methods.search.trace import Problem, Trace
from suite.methods.search.verifier import Judge, Steps
from suite.models.branches import Forest
from suite.models.language_model import LanguageModel, TextModel
from suite.models.loaders import load_model
from workloads.answers import extract

YES_NO = """{question}

A proposed solution:
{solution}

Is the solution correct? Answer with one word, Yes or No."""
PROCESS = """{question}

A proposed solution:
{solution}

Check every step of the solution in a few words. End with one line that holds a single word: Sure if it is correct, \
Likely if it may be, Impossible if it is wrong."""
RESULT = """{question}

A proposed answer: {answer}

Check the answer in a few words. End with one line that holds a single word: Sure if it is correct, Likely if it may \
be, Impossible if it is wrong."""
PROMPTS = {"yes-no/1": YES_NO, "process/1": PROCESS, "result/1": RESULT}
"""By version id: a prompt that changes gets a new one."""

VERDICTS = {"sure": 1.0, "likely": 0.5, "impossible": 0.0}
_VERDICT = re.compile(r"^\W*(?:(?:final )?verdict\W+)?(sure|likely|impossible)\W*$", re.IGNORECASE | re.MULTILINE)
_YES, _NO = ("Yes", " Yes", "yes", " yes"), ("No", " No", "no", " no")


def verdict(text: str) -> float | None:
    """1, 0.5 or 0 by the last line that is a verdict; words inside the reasoning are none."""
    found = _VERDICT.findall(text)
    return VERDICTS[found[-1].lower()] if found else None


class AskedJudge(Judge):
    """Asks one question about each solution; its score is that of the whole trace."""

    version: ClassVar[str]

    def begin(self, policy: TextModel) -> None:
        self._policy = policy
        self._known: dict[tuple[str, str], float] = {}

    def score(self, asked: Sequence[Scoring]) -> list[list[Steps]]:
        new: dict[tuple[str, str], tuple[Trace, Ledger]] = {}
        for ask in asked:
            for trace in ask.traces:
                if (trace.problem.id, trace.text) not in self._known:
                    new.setdefault((trace.problem.id, trace.text), (trace, ask.ledger))
        if new:
            self._known.update(zip(new, self._judge(list(new.values())), strict=True))
        return [[(self._known[trace.problem.id, trace.text],) for trace in ask.traces] for ask in asked]

    @abstractmethod
    def _judge(self, wanted: Sequence[tuple[Trace, Ledger]]) -> list[float]:
        """The scores of traces, all of different texts; what it costs goes to the ledgers."""

    def _question(self, model: TextModel, trace: Trace, room: int) -> tuple[int, ...]:
        """The prompt's tokens; `UnitError` if the model has no window for it and `room` more."""
        said = {"solution": trace.text.strip(), "answer": extract(trace.problem.answer, trace.text)}
        text = PROMPTS[self.version].format(question=trace.problem.prompt.strip(), **said)
        ids = tuple(model.tokenizer.prompt(text, chat=True))
        if len(ids) + room > model.window:
            raise UnitError(
                f"a judge's prompt of {len(ids)} tokens does not fit into the {model.window} of {model.name}."
            )
        return ids


class YesNoOptions(MethodConfig):
    """`model`: who judges; "" is the policy."""

    model: str = ""


class YesNoJudge(AskedJudge):
    """P(Yes) / (P(Yes) + P(No)) as the first token of an answer: a prompt is read, nothing is written."""

    version: ClassVar[str] = "yes-no/1"
    Options = YesNoOptions
    options: YesNoOptions
    _model: LanguageModel

    def refusal(self, policy: TextModel) -> str | None:
        """By the policy's tokenizer, where it judges itself."""
        if self.options.model or all(_tokens(policy, *words) for words in ((_YES, _NO), (_NO, _YES))):
            return None
        return f"{policy.name} has no tokens for Yes and No: name another judge, as llm_judge:model=smollm2-135m"

    def prepare(self, policy: TextModel) -> None:
        """An engine shows no probabilities of tokens it does not draw: the model is then loaded here too."""
        own = not self.options.model and isinstance(policy, LanguageModel)
        self._model = policy if own else load_model(self.options.model or policy.name, policy.dtype)  # type: ignore[assignment]
        self._sides = [_tokens(self._model, *words) for words in ((_YES, _NO), (_NO, _YES))]

    def _judge(self, wanted: Sequence[tuple[Trace, Ledger]]) -> list[float]:
        forest = Forest(self._model.decoder)
        scores = []
        for trace, ledger in wanted:
            ids = self._question(self._model, trace, 1)
            ledger.judged(len(ids), self._model.config.flops(len(ids), 0), calls=1)
            said = forest.feed([forest.root()], [ids])[0].log_softmax(dim=-1)
            yes, no = (said[side].logsumexp(dim=0) for side in self._sides)
            scores.append(float(torch.sigmoid(yes - no)))
        return scores


def _tokens(model: TextModel, words: Sequence[str], others: Sequence[str]) -> list[int]:
    """The first tokens of the words that are no first tokens of the others."""
    first, other = (
        {encoded[0] for word in side if (encoded := model.tokenizer.encode(word))} for side in (words, others)
    )
    return sorted(first - other)


class EvaluationOptions(MethodConfig):
    """`outputs`: evaluations written for each solution, of `tokens` tokens at most."""

    outputs: int = Field(default=3, ge=1, le=32)
    tokens: int = Field(default=128, ge=1, le=4096)
    temperature: float = Field(default=0.7, ge=0, le=2)


class ProcessEvaluation(AskedJudge):
    """The policy judges the whole solution: the mean of the verdicts of its outputs, 0 where none has one."""

    version: ClassVar[str] = "process/1"
    Options = EvaluationOptions
    options: EvaluationOptions
    _sampler: Sampler

    def lend(self, sampler: Sampler) -> None:
        self._sampler = sampler

    def _judge(self, wanted: Sequence[tuple[Trace, Ledger]]) -> list[float]:
        roots = [self._root(trace) for trace, _ in wanted]
        self._sampler.prefill(roots)
        written = self._sampler.draw([self._ask(root) for root in roots])
        flops = self._policy.config.flops
        for (_, ledger), root, outputs in zip(wanted, roots, written, strict=True):
            asked, lengths = len(root.problem.ids), [output.length for output in outputs]
            work = flops(asked - 1, 0) + sum(flops(length, asked - 1) for length in lengths)
            ledger.judged(asked + sum(lengths), work, calls=len(outputs))
        return [self._mean([output.text for output in outputs]) for outputs in written]

    def _root(self, trace: Trace) -> Trace:
        ids = self._question(self._policy, trace, self.options.tokens)
        return Trace(Problem(f"{trace.problem.id}/judge", "", ids, self.options.tokens, trace.problem.seed))

    def _ask(self, root: Trace) -> Sampling:
        """On an account of its own: what a judge writes is no sample of the search."""
        o, seed = self.options, crc32(repr(root.problem.ids).encode())
        seeds = [(root.problem.seed, seed, number) for number in range(o.outputs)]
        return Sampling([root] * o.outputs, seeds, None, o.tokens, o.temperature, 1.0, 0, Ledger())

    @staticmethod
    def _mean(texts: Sequence[str]) -> float:
        found = [value for text in texts if (value := verdict(text)) is not None]
        return fmean(found) if found else 0.0


class ResultEvaluation(ProcessEvaluation):
    """The policy judges the final answer alone; a solution without one is not asked about."""

    version: ClassVar[str] = "result/1"

    def _judge(self, wanted: Sequence[tuple[Trace, Ledger]]) -> list[float]:
        asked = [pair for pair in wanted if extract(pair[0].problem.answer, pair[0].text) is not None]
        scores = iter(super()._judge(asked) if asked else ())
        return [next(scores) if pair in asked else 0.0 for pair in wanted]
