"""From the words of `suite run` to the harness's `Wishes`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from suite.errors import InputError
from suite.harness.options import named_options, pair
from suite.harness.plan import Wishes
from suite.registry import METHODS
from suite.spec import MethodSpec, Protocol, Sampling

ON_REQUEST = ("control", "weights", "search")
"""Families that nobody gets unasked: controls, what calibrates for minutes before it runs, and what spends a multiple
of the tokens on every request."""


@dataclass(frozen=True)
class RunOptions:
    """The options of `suite run`, as given."""

    workload: str
    methods: Sequence[str]
    model: str
    tasks: Sequence[str]
    limit: int | None
    budget: str | None
    kv_budget: int
    data: Path | None
    settings: Sequence[str]
    dtype: str
    engine: str
    threads: int
    batch: int
    repeats: int
    temperature: float
    top_k: int
    top_p: float
    seed: int

    def wishes(self) -> Wishes:
        """The same wishes in the harness's terms. Names and options are checked there."""
        return Wishes(
            workload=self.workload,
            model=self.model,
            methods=[method(text, self.kv_budget) for text in self.methods],
            default_methods=[method(n, self.kv_budget) for n, e in METHODS.items() if e.family not in ON_REQUEST],
            workload_options=workload_options(self.settings, self.data),
            tasks=self.tasks,
            dtype=self.dtype,
            engine=self.engine,
            threads=self.threads,
            batch_size=self.batch,
            limit=self.limit,
            budget=self.budget,
            seed=self.seed,
            sampling=_sampling(self.temperature, self.top_k, self.top_p),
            protocol=Protocol(repeats=self.repeats),
        )


def workload_options(settings: Sequence[str], data: Path | None) -> dict[str, Any]:
    """A workload's options from `--set name=value` and `--data`."""
    options: dict[str, Any] = dict(pair(text, "--set") for text in settings)
    if data is not None:
        options["data"] = data
    return options


def method(text: str, kv_budget: int) -> MethodSpec:
    """A method from `name` or `name:option=value,...`. One that selects gets the common budget, or its own options.

    `a+b` names several at once, `a+b:a.option=value` an option of one of them.
    """
    name, given = named_options(text)
    budgets: dict[str, Any] = {}
    for part in name.split("+"):
        prefix = f"{part}." if part != name else ""
        kind = METHODS.load(part)
        if hasattr(kind, "at_budget") and not any(option.startswith(prefix) for option in given):
            budgets |= {f"{prefix}{option}": value for option, value in kind.at_budget(kv_budget).items()}
    return MethodSpec(name=name, options={**budgets, **given})


def numbers(text: str, option: str) -> list[int]:
    """The whole numbers above 0 of a comma-separated list, each once."""
    try:
        found = [int(word) for word in text.split(",")]
    except ValueError:
        found = []
    if not found or min(found) < 1:
        raise InputError(f"{option} {text!r} is no list of whole numbers above 0; write for example 1,4,16.")
    return list(dict.fromkeys(found))


def _sampling(temperature: float, top_k: int, top_p: float) -> Sampling:
    if top_p <= 0:
        raise InputError(f"--top-p {top_p} keeps no token; give a share above 0, up to 1.")
    return Sampling(temperature=temperature, top_k=top_k, top_p=top_p)
