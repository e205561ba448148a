"""Drafting methods raced with plain decoding, request by request, and the cost model of what comes out.

All runs are batch 1 and take turns: every request goes through every method before the next one. A method stays
attached, so that it knows the earlier requests, and sees each request once.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from statistics import fmean, median

import torch

from analysis.drafts import predicted_speedup
from analysis.statistics import Estimate, paired_ratio
from suite.experiments.base import Workbench
from suite.experiments.synthetic import filled_cache
from suite.harness.contender import Contender
from suite.harness.heap import quiet_heap
from suite.harness.meter import RequestMeter
from suite.methods.attention.dense import Dense
from suite.methods.base import Generator, Method, MethodConfig
from suite.methods.decoding.acceptance import accept
from suite.methods.decoding.tree import ROOT, TokenTree
from suite.methods.decoding.verification import TreeAttention, commit
from suite.models.attention import DenseAttention
from suite.models.language_model import LanguageModel
from suite.models.sampling import RequestSampler
from workloads.schema import Completion, Request

WIDTHS = (1, 2, 4, 8, 16, 32, 64)
CONTEXT = 384  # tokens in the cache while r(T) is measured: as many as a prompt of the workloads, and half an answer
ROUNDS = 15
TIE = 1e-3  # logits this close are a tie in fp32
FREE = 1.2  # a pass that costs at most so much more than one of a single token is called free

Racers = Mapping[str, tuple[Method, MethodConfig]]


@dataclass
class Record:
    """One method's runs: seconds to the last token and in all behind the first, and the completions, by request."""

    whole_s: dict[tuple[str, int], float] = field(default_factory=dict)
    decode_s: dict[tuple[str, int], float] = field(default_factory=dict)
    completions: list[Completion] = field(default_factory=list)

    def add(self, index: int, done: Completion) -> None:
        """Times count per token: texts in bf16 may part, and then differ in length."""
        tokens = len(done.token_ids)
        self.whole_s["request", index] = (done.token_ns[-1] - done.start_ns) / tokens / 1e9
        self.decode_s["request", index] = (done.token_ns[-1] - done.token_ns[0]) / max(1, tokens - 1) / 1e9
        self.completions.append(done)

    @property
    def passes_per_token(self) -> dict[tuple[str, int], float]:
        """1 / tau, by request."""
        drafts = [done.drafts for done in self.completions]
        return {("request", i): d.rounds / d.emitted for i, d in enumerate(drafts) if d is not None and d.emitted}

    def _sum(self, name: str) -> float:
        return float(sum(getattr(done.drafts, name) for done in self.completions if done.drafts is not None))

    @property
    def rounds(self) -> float:
        """Passes of the target over drafts, empty ones included."""
        return self._sum("rounds")

    @property
    def tau(self) -> float:
        """Tokens per pass over all rounds; 1 for plain decoding."""
        return self._sum("emitted") / self._sum("rounds") if self._sum("rounds") else 1.0

    @property
    def width(self) -> float:
        """Mean tokens of a pass, the root included."""
        return 1 + self._sum("drafted") / self._sum("rounds") if self._sum("rounds") else 1.0

    @property
    def draft_s(self) -> float:
        """Seconds of drafting per round."""
        return self._sum("draft_ns") / self._sum("rounds") / 1e9 if self._sum("rounds") else 0.0

    @property
    def figures(self) -> dict[str, float]:
        """For the ledger's details."""
        drafted, decoding = self._sum("drafted"), self._sum("decode_ns")
        return {
            "tokens_per_pass": self.tau,
            "tokens_fed_per_pass": self.width,
            "acceptance_rate": self._sum("accepted") / drafted if drafted else 0.0,
            "draft_time_share": self._sum("draft_ns") / decoding if decoding else 0.0,
            "ms_per_token": 1e3 * fmean(self.whole_s.values()),
            "decode_ms_per_token": 1e3 * fmean(self.decode_s.values()),
        }


def race(
    model: LanguageModel,
    racers: Racers,
    requests: Sequence[Request],
    bench: Workbench,
    attached: Callable[[str, Method], None] = lambda name, method: None,
) -> dict[str, Record]:
    """Every request through every method in turn. `attached` is told of each before the first request."""
    records = {name: Record() for name in racers}
    with ExitStack() as stack:
        generators: dict[str, Generator] = {}
        for name, (method, config) in racers.items():
            method.prepare(model, config)
            with method.attach(model, config) as generator:  # once, to have touched code and weights; then anew
                complete(generator, requests[0])
            generators[name] = stack.enter_context(method.attach(model, config))
            attached(name, method)
        for index, request in enumerate(requests):
            for name in _turned(list(racers), index):
                bench.tick(f"request {index + 1} of {len(requests)}: {name}")
                records[name].add(index, complete(generators[name], request))
    return records


def _turned(names: list[str], turn: int) -> list[str]:
    start = turn % len(names)
    return names[start:] + names[:start]


def complete(generator: Generator, request: Request) -> Completion:
    """One request on a quiet heap."""
    with quiet_heap():
        return next(iter(generator.generate([request], RequestMeter())))


def speedup(records: Mapping[str, Record], name: str, baseline: str = "dense") -> Estimate | None:
    """Time per token, prefill included, over plain decoding's; one pair per request."""
    return paired_ratio(records[baseline].whole_s, records[name].whole_s)


def decode_speedup(records: Mapping[str, Record], name: str, baseline: str = "dense") -> Estimate | None:
    """The same without prefill and first token."""
    return paired_ratio(records[baseline].decode_s, records[name].decode_s)


def further(records: Mapping[str, Record], better: str, worse: str) -> Estimate | None:
    """How many times more tokens per pass `better` emits; one pair per request."""
    return paired_ratio(records[worse].passes_per_token, records[better].passes_per_token)


@dataclass(frozen=True)
class VerifyCost:
    """Seconds of one pass by tokens in it, and of what follows it in a round (acceptance and commit)."""

    pass_s: dict[int, float]
    rest_s: dict[int, float]

    def ratio(self, width: float) -> float:
        """r(T), between measured widths by straight lines."""
        return self._between(self.pass_s, width) / self.pass_s[1]

    def predicted(self, record: Record) -> float:
        """The cost model's decode speed-up for a record's tau, width and drafting time."""
        return predicted_speedup(record.tau, record.draft_s / self.step_s, self.round_ratio(record.width))

    @property
    def step_s(self) -> float:
        """A plain step: a pass of one token, and what follows it."""
        return self.pass_s[1] + self.rest_s[1]

    def round_ratio(self, width: float) -> float:
        """A pass and what follows it, in plain steps."""
        return (self._between(self.pass_s, width) + self._between(self.rest_s, width)) / self.step_s

    @property
    def free_width(self) -> int:
        """The critical decoding length: the most tokens of a pass that costs about as much as one."""
        return max(width for width in self.pass_s if self.ratio(width) <= FREE)

    @staticmethod
    def _between(seconds: Mapping[int, float], width: float) -> float:
        above = min((w for w in seconds if w >= width), default=max(seconds))
        below = max((w for w in seconds if w <= width), default=min(seconds))
        share = (width - below) / (above - below) if above > below else 0.0
        return seconds[below] + share * (seconds[above] - seconds[below])


@dataclass
class Passes:
    """Timed passes over binary trees of all widths, behind CONTEXT tokens: seconds by width and round."""

    model: LanguageModel
    pass_s: dict[int, list[float]] = field(default_factory=lambda: {width: [] for width in WIDTHS})
    rest_s: dict[int, list[float]] = field(default_factory=lambda: {width: [] for width in WIDTHS})

    def __post_init__(self) -> None:
        self._cache = filled_cache(self.model, CONTEXT, max(WIDTHS), lambda step, layer, generator: None)
        self._attention = TreeAttention(self.model.config)
        self._sampler = RequestSampler(Request(id="r", task="t", prompt="p", metric="none", max_new_tokens=1))

    def round(self, kept: bool) -> None:
        """One pass of every width; a round that only warms up is not `kept`."""
        with torch.inference_mode():
            for width in WIDTHS:
                passed, rest = self._timed(_binary(width - 1), width)
                if kept:
                    self.pass_s[width].append(passed)
                    self.rest_s[width].append(rest)

    def _timed(self, tree: TokenTree, width: int) -> tuple[float, float]:
        start = time.perf_counter()
        self._attention.plant(self._cache, [tree])
        tokens = torch.ones(1, width, dtype=torch.long)
        logits = self.model.decoder(tokens, self._cache, self._attention, [width], logits="all")
        passed = time.perf_counter()
        accept(tree, logits[0], self._sampler)
        commit(self._cache, [CONTEXT], [tree.path(len(tree) - 1)])
        ended = time.perf_counter()
        self._cache.truncate(0, CONTEXT)
        return passed - start, ended - passed

    def cost(self) -> VerifyCost:
        """Medians over the rounds."""
        return VerifyCost(*({w: median(s) for w, s in times.items()} for times in (self.pass_s, self.rest_s)))


def verify_cost(model: LanguageModel, bench: Workbench) -> VerifyCost:
    """Of the model as it is now."""
    bench.tick("timing passes over trees")
    passes = Passes(model)
    for turn in range(ROUNDS + 1):
        passes.round(kept=turn > 0)
    return passes.cost()


def _binary(nodes: int) -> TokenTree:
    return TokenTree(tuple(range(nodes)), tuple(ROOT if node < 2 else node // 2 - 1 for node in range(nodes)))


@dataclass(frozen=True)
class Agreement:
    """By request: the share of its tokens that are plain decoding's before the first that differs.

    Also the gaps between the target's two best logits where texts part, and the number of tokens compared.
    """

    shares: list[float]
    gaps: list[float]
    tokens: int

    def __add__(self, other: Agreement) -> Agreement:
        """Both."""
        return Agreement(self.shares + other.shares, self.gaps + other.gaps, self.tokens + other.tokens)

    @property
    def told(self) -> str:
        """How many texts part, and how many of them at a tie."""
        tied = sum(gap < TIE for gap in self.gaps)
        return f"{len(self.gaps)} texts part, {tied} of them where the two best logits are less than {TIE} apart"

    @property
    def reason(self) -> str:
        """What is wrong, if anything is."""
        broken = sum(gap >= TIE for gap in self.gaps)
        return f"{broken} texts part where the target does not hesitate" if broken else ""


def agreement(
    model: LanguageModel, ours: Sequence[Contender], requests: Sequence[Request], bench: Workbench
) -> Agreement:
    """Greedy texts of `ours` in turn, a request each, beside plain decoding's."""
    dense = Contender(Dense(), Dense.Config(), model)
    shares, gaps, tokens = list[float](), list[float](), 0
    for contender in ours:
        contender.prepare()
    for index, request in enumerate(requests):
        bench.tick(f"losslessness, request {index + 1} of {len(requests)}")
        plain = dense.complete([request], RequestMeter())[0].token_ids
        mine = ours[index % len(ours)].complete([request], RequestMeter())[0].token_ids
        same = agreeing(mine, plain)
        shares.append(same / len(plain))
        tokens += len(plain)
        if mine != plain:
            gaps.append(top_two_gap(model, [*model.encode(request).ids, *plain[:same]]))
    return Agreement(shares, gaps, tokens)


def figure_table(records: Mapping[str, Record], cost: VerifyCost) -> dict[str, dict[str, float]]:
    """Measured and predicted figures of every racer."""
    rows = {}
    for name, record in records.items():
        measured = decode_speedup(records, name)
        rows[name] = {
            **record.figures,
            "decode_speedup": measured.value if measured else 1.0,
            "predicted_decode_speedup": cost.predicted(record),
            "mean_tokens": fmean(len(done.token_ids) for done in record.completions),
        }
    return rows


def with_interval(ratio: Estimate | None) -> str:
    """A ratio for a sentence."""
    if ratio is None or ratio.low is None or ratio.high is None:
        return "unknown" if ratio is None else f"{ratio.value:.2f}"
    return f"{ratio.value:.2f} [{ratio.low:.2f}, {ratio.high:.2f}]"


def agreeing(mine: Sequence[int], theirs: Sequence[int]) -> int:
    """Tokens before the first that differs."""
    pairs = zip(mine, theirs, strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(mine), len(theirs)))


def top_two_gap(model: LanguageModel, ids: Sequence[int]) -> float:
    """Between the two largest logits behind these tokens, on the dense path."""
    with torch.inference_mode():
        cache = model.decoder.new_cache(1, len(ids))
        logits = model.decoder(torch.tensor([ids]), cache, DenseAttention(model.config))[0]
    best = logits.topk(2).values
    return float(best[0] - best[1])
