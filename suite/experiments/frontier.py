"""One frontier for all selection methods: quality against the KV bytes a token reads, at equal budgets, on equal items.

Items are passkeys and the continuation of texts the model wrote itself (scored token by token on the decode path).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any

from suite.experiments.base import Workbench
from suite.experiments.texts import passkeys
from suite.harness.contender import Contender
from suite.harness.meter import CountingMeter
from suite.methods.attention.base import AttentionMethod
from suite.methods.base import Method, MethodConfig
from suite.models.language_model import LanguageModel
from suite.models.recipes.activations import written_by
from suite.registry import METHODS
from workloads.schema import Request, Workload

SHARES = (0.125, 0.25, 0.5)
KEYS, TEXTS, TOKENS, SCORED = 6, 4, 1024, 48
HELD_OUT_SEED = 991  # recipes write their training text with other seeds


@dataclass(frozen=True)
class Point:
    """One method at one budget: passkeys found and nats per token by item, KV bytes read per token, retention."""

    method: str
    share: float
    keys: list[float]
    nats: list[float]
    read_bytes: float
    retention: float


def frontier(
    bench: Workbench,
    model: LanguageModel,
    names: Sequence[str],
    variants: Mapping[str, type[AttentionMethod]] | None = None,
) -> list[Point]:
    """Dense first, then every method at every budget; `variants` are classes that no registry knows."""
    judge, items = passkeys(TOKENS, KEYS)
    items += continuations(model, bench)
    columns: dict[tuple[str, float], tuple[Method, MethodConfig]] = {}
    kinds = {name: METHODS.load(name) for name in ("dense", *names)} | dict(variants or {})
    for name, kind in kinds.items():
        for share in (1.0,) if name == "dense" else SHARES:
            options = {} if name == "dense" else kind.at_budget(round(share * TOKENS))
            columns[name, share] = kind(), kind.Config(**options)
    return [_measure(bench, model, *key, *columns[key], judge, items) for key in columns]


def _measure(
    bench: Workbench,
    model: LanguageModel,
    name: str,
    share: float,
    method: Method,
    config: MethodConfig,
    judge: Workload,
    items: Sequence[Request],
) -> Point:
    contender, meter = Contender(method, config, model), CountingMeter(model.config.kv_bytes_per_token(2))
    contender.prepare()
    keys: list[float] = []
    nats: list[float] = []
    for index, item in enumerate(items):
        bench.tick(f"{name} at {share:.1%}: item {index + 1} of {len(items)}")
        completion = contender.complete([item], meter)[0]
        if item.target is None:
            keys.append(judge.score(completion, item) / 100)
        else:
            nats.append(-fmean(completion.target_logprobs))
    samples = meter.kv_samples()
    return Point(
        name, share, keys, nats, fmean(s.read_bytes_per_step for s in samples),
        fmean(s.selected_retention for s in samples),
    )  # fmt: skip


def continuations(model: LanguageModel, bench: Workbench) -> list[Request]:
    """Held-out texts: TOKENS - SCORED tokens to read, SCORED to be scored."""
    windows = written_by(model, TEXTS, TOKENS, HELD_OUT_SEED, bench.tick).windows.tolist()
    decode = model.tokenizer.decode
    return [
        Request(
            id=f"text/{i}",
            task="text",
            prompt=decode(ids[:-SCORED]),
            target=decode(ids[-SCORED:]),
            metric="none",
            max_new_tokens=1,
        )
        for i, ids in enumerate(windows)
    ]


def table(points: Sequence[Point]) -> list[dict[str, Any]]:
    """Rows of the frontier with their means."""
    return [{**asdict(p), "passkeys": fmean(p.keys), "nats_per_token": fmean(p.nats)} for p in points]


def at(points: Sequence[Point], share: float) -> Mapping[str, Point]:
    """The methods at one budget, and dense."""
    return {p.method: p for p in points if p.share in (share, 1.0)}
