"""Correctness gates, run before anything is timed (measurement rule 1). A method that fails one gets no speed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING

from suite.harness.contender import Contender
from suite.harness.measurement import Gate
from suite.harness.meter import RequestMeter
from workloads.schema import Completion, Request, truncate_middle

if TYPE_CHECKING:
    from suite.models.language_model import LanguageModel

GATE_PROMPT_TOKENS = 1024
GATE_NEW_TOKENS = 8
SHORT_WORDS, SHORT_NEW_TOKENS = 8, 4
TARGET_WORDS = 4
TEXT_WORDS = 64
WORD_CHARACTERS = 6  # of a mean word: what bounds text without spaces
TIE_NATS = {"bf16": 0.125, "fp32": 1e-3}
"""Two logits are a tie within this: one step of bf16 at logits of 16 to 32, which the order of a sum can turn."""
PROBABILITY_SLACK = 1e-3  # a log-probability may exceed 0 by rounding only


@dataclass(frozen=True)
class GateRequests:
    """Requests made from a block's first one: greedy, cut to a length that costs little, without stop strings."""

    long: Request
    short: Request
    forced: Request
    text: Request

    @classmethod
    def of(cls, request: Request, model: LanguageModel) -> GateRequests:
        """`long` is cut in the middle, `short` keeps the first words, `forced` scores the prompt's own last words.

        `text` scores the words that follow the short request's, a paragraph of them.
        """
        whole = " ".join(filter(None, (request.prompt, request.target)))  # a scored text may have no prompt to speak of
        text, _ = truncate_middle(whole, min(GATE_PROMPT_TOKENS, model.window // 2), model.tokenizer)
        plain = {"target": None, "stop": (), "temperature": 0.0, "truncation": "middle"}
        long = {**plain, "id": "gate/long", "prompt": text, "max_new_tokens": GATE_NEW_TOKENS}
        start = " ".join(whole.split()[:SHORT_WORDS])[: SHORT_WORDS * WORD_CHARACTERS] or "."
        short = {**plain, "id": "gate/short", "prompt": start, "chat": False, "max_new_tokens": SHORT_NEW_TOKENS}
        target = " " + " ".join(text.split()[-TARGET_WORDS:])[-TARGET_WORDS * WORD_CHARACTERS :]
        opening = {**short, "id": "gate/text", "target": " " + _opening(whole)}
        return cls(
            request.model_copy(update=long),
            request.model_copy(update=short),
            request.model_copy(update={**long, "id": "gate/forced", "target": target}),
            request.model_copy(update=opening),
        )


def _opening(text: str) -> str:
    """The words after the short request's; all there are, where it has them all."""
    words = text.split()
    following = words[SHORT_WORDS : SHORT_WORDS + TEXT_WORDS] or words or ["."]
    return " ".join(following)[: TEXT_WORDS * WORD_CHARACTERS]


class Gates:
    """Runs the gates of one method after another; what the baseline said is asked once."""

    def __init__(self, requests: GateRequests, baseline: Contender, name: str = "dense") -> None:
        self._requests = requests
        self._baseline, self._name = baseline, name
        self._expected: dict[str, tuple[int, ...]] = {}

    def run(self, contender: Contender) -> tuple[Gate, ...]:
        """All gates that apply to this method, passed or not. An exception of the method itself is not caught."""
        contender = contender.gated()
        first = _tokens(contender, self._requests.long)
        gates = [
            finite(_complete(contender, self._requests.forced)),
            same_tokens("deterministic", "its first run", _tokens(contender, self._requests.long), first),
        ]
        if contender is self._baseline:
            self._expected["gate/long"] = first
            return tuple(gates)
        gates.append(self._short(contender) if contender.method.quality_nats is None else self._text(contender))
        if contender.method.card.lossless:
            gates.append(self._lossless(contender, first))
        elif (plain := contender.undrafted()) is not None:
            rest = Gates(self._requests, plain, plain.method.card.slug)
            gates.append(rest._lossless(contender, first))
        return tuple(gates)

    def _short(self, contender: Contender) -> Gate:
        request = self._requests.short
        return self._alike("short", "dense on a short request", request, _tokens(contender, request), contender)

    def _lossless(self, contender: Contender, first: tuple[int, ...]) -> Gate:
        return self._alike("lossless", self._name, self._requests.long, first, contender)

    def _alike(self, name: str, other: str, request: Request, got: Sequence[int], contender: Contender) -> Gate:
        """The baseline's tokens; another one may stand where the baseline itself cannot tell the two apart.

        A pass over several tokens adds up in another order than one over a single token: even a lossless method may
        turn a tie (`_speculative.md` section 5).
        """
        expected = self._dense(request)
        gate = same_tokens(name, other, got, expected)
        if gate.passed:
            return gate
        index = _first_difference(got, expected)
        choices = [
            self._log_probability(request, (*expected[:index], *ids[index : index + 1])) for ids in (expected, got)
        ]
        gap = choices[0] - choices[1]
        if math.isfinite(gap) and gap <= TIE_NATS[contender.model.dtype]:
            tie = f"a tie, {gap:.3f} nats apart for {self._name}"
            return Gate(name=name, passed=True, detail=f"{gate.detail}: {tie}")
        return gate

    def _text(self, contender: Contender) -> Gate:
        """How much less a paragraph means to a method that changes the model itself."""
        request = self._requests.text
        got, dense = (_complete(c, request).target_logprobs for c in (contender, self._baseline))
        return perplexity(got, dense, contender.method.quality_nats or 0.0)

    def _log_probability(self, request: Request, ids: Sequence[int]) -> float:
        """What the baseline gives to the last of `ids` after the others; minus infinity if their text has other ids."""
        target = self._baseline.model.tokenizer.decode(ids)
        forced = _complete(self._baseline, request.model_copy(update={"id": "gate/tie", "target": target}))
        return forced.target_logprobs[-1] if forced.token_ids == tuple(ids) else -math.inf

    def _dense(self, request: Request) -> tuple[int, ...]:
        if request.id not in self._expected:
            self._expected[request.id] = _tokens(self._baseline, request)
        return self._expected[request.id]


def _complete(contender: Contender, request: Request) -> Completion:
    return contender.complete([request], RequestMeter())[0]


def _tokens(contender: Contender, request: Request) -> tuple[int, ...]:
    return _complete(contender, request).token_ids


def finite(completion: Completion) -> Gate:
    """The log-probabilities of a teacher-forced request are numbers, and none is above 0."""
    values = completion.target_logprobs
    bad = [i for i, value in enumerate(values) if not math.isfinite(value) or value > PROBABILITY_SLACK]
    if not values:
        detail = "no log-probabilities came back for a teacher-forced request"
    elif bad:
        detail = (
            f"the log-probability of token {bad[0]} is {values[bad[0]]} ({len(bad)} of {len(values)} are impossible)"
        )
    else:
        detail = f"{len(values)} log-probabilities, from {min(values):.3f} to {max(values):.3f}"
    return Gate(name="finite", passed=bool(values) and not bad, detail=detail)


def perplexity(got: Sequence[float], dense: Sequence[float], allowed: float) -> Gate:
    """The mean log-probability of plain text falls by `allowed` nats per token at most."""
    lost = fmean(dense) - fmean(got)
    factor = math.exp(lost) if lost < 100 else math.inf
    detail = f"perplexity x{factor:.3g} on {len(got)} tokens, {lost:.3f} nats each, of {allowed:g} allowed"
    return Gate(name="perplexity", passed=math.isfinite(lost) and lost <= allowed, detail=detail)


def same_tokens(name: str, other: str, got: Sequence[int], expected: Sequence[int]) -> Gate:
    """Two greedy runs give the same ids; `detail` names the first place where they differ."""
    if tuple(got) == tuple(expected):
        return Gate(name=name, passed=True, detail=f"{len(expected)} greedy tokens equal {other}")
    index = _first_difference(got, expected)
    pair = [str(ids[index]) if index < len(ids) else "nothing" for ids in (got, expected)]
    return Gate(
        name=name, passed=False, detail=f"token {index} of {len(expected)} is {pair[0]} where {other} gave {pair[1]}"
    )


def _first_difference(got: Sequence[int], expected: Sequence[int]) -> int:
    pairs = enumerate(zip(got, expected, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(got), len(expected)))


def resident(resident_bytes: int, stored_bytes: float, full_bytes: int) -> Gate:
    """The cache's real storages hold at least what the method says it stores; more than that is said, not punished.

    A figure of eviction without the memory given back is the commonest way to look good (`_kv_retention.md` section 1).
    """
    share = resident_bytes / full_bytes if full_bytes else 0.0
    claimed = stored_bytes / full_bytes if full_bytes else 0.0
    detail = f"stores {claimed:.3f} of the full cache in storages of {share:.3f} of it ({resident_bytes} bytes)"
    if share > 2 * claimed + 0.1:
        detail += "; the memory of evicted tokens is not given back"
    return Gate(name="resident", passed=resident_bytes >= 0.999 * stored_bytes, detail=detail)
