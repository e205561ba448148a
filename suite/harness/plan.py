"""From what a user asks for to blocks of units. Everything a user can get wrong is found here, before a model loads."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from suite.errors import InputError
from suite.harness.contender import Contender
from suite.harness.options import check_model, cleaned, make_workload, normalised, validated
from suite.registry import ENGINES
from suite.spec import EngineSpec, MethodSpec, ModelSpec, Protocol, RunSpec, Sampling, Spec, WorkloadSpec
from workloads.schema import DataError, Workload

if TYPE_CHECKING:
    from suite.engines.base import Engine
    from suite.models.language_model import LanguageModel

BASELINE = "dense"
DEFAULT_BUDGET_S = 180.0  # when neither a limit nor a budget is given
MAX_ITEMS = 200  # per task, when only a budget limits a run

_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*(s|m|h)?")
_SECONDS = {"s": 1.0, "m": 60.0, "h": 3600.0}


@dataclass(frozen=True)
class Wishes:
    """What a user asks for, unchecked. No tasks means all of them.

    `default_methods` are compared when no methods are named: those that cannot run on the model are left out.
    """

    workload: str
    model: str
    methods: Sequence[MethodSpec] = ()
    default_methods: Sequence[MethodSpec] = ()
    workload_options: dict[str, Any] = field(default_factory=dict)
    tasks: Sequence[str] = ()
    dtype: str = "bf16"
    engine: str = "native"
    threads: int = 0
    batch_size: int = 1
    limit: int | None = None
    budget: str | float | None = None
    seed: int = 0
    sampling: Sampling = field(default_factory=Sampling)
    protocol: Protocol = field(default_factory=Protocol)


class Block(Spec):
    """One task under all methods, dense first: timed interleaved, stored together, and measured again together."""

    units: tuple[RunSpec, ...]
    estimate_s: float = 0.0

    @property
    def workload(self) -> WorkloadSpec:
        """The workload, task and number of items all units share."""
        return self.units[0].workload

    @property
    def protocol(self) -> Protocol:
        """The timing protocol all units share."""
        return self.units[0].protocol

    def limited(self, limit: int, estimate_s: float) -> Block:
        """The same block with another number of items."""
        workload = self.workload.model_copy(update={"limit": limit})
        units = tuple(unit.model_copy(update={"workload": workload}) for unit in self.units)
        return Block(units=units, estimate_s=estimate_s)


class Plan(Spec):
    """The blocks of one run on one model in one engine. `explicit` means that the user named the methods.

    A `fresh` plan measures again what an earlier run has settled.
    """

    blocks: tuple[Block, ...]
    explicit: bool
    fresh: bool = False
    limit: int | None = None
    budget_s: float | None = None
    notes: tuple[str, ...] = ()

    @property
    def methods(self) -> tuple[MethodSpec, ...]:
        """The methods every block compares."""
        return tuple(unit.method for unit in self.blocks[0].units)

    @property
    def model(self) -> ModelSpec:
        """The model every block runs on."""
        return self.blocks[0].units[0].model

    @property
    def engine(self) -> EngineSpec:
        """The engine every block runs in."""
        return self.blocks[0].units[0].engine


def plan(wishes: Wishes) -> Plan:
    """The validated plan. With a budget its limits are upper bounds until `budget.fit` has chosen them."""
    _check_engine(wishes)
    check_model(wishes.model)
    limit, budget_s = _limit(wishes.limit), parse_budget(wishes.budget)
    if limit is None and budget_s is None:
        budget_s = DEFAULT_BUDGET_S
    workload_spec, workload = _workload(wishes, limit if limit is not None else MAX_ITEMS)
    common: dict[str, Any] = {
        "model": validated(ModelSpec, {"name": wishes.model, "dtype": wishes.dtype}, "the model"),
        "engine": _engine(wishes),
        "sampling": wishes.sampling,
        "protocol": wishes.protocol,
    }
    methods = _methods(wishes.methods or wishes.default_methods)
    tasks = [workload_spec.model_copy(update={"task": task}) for task in _tasks(workload, wishes.tasks)]
    _check_items(workload, tasks)
    return Plan(
        blocks=tuple(
            Block(units=tuple(RunSpec(workload=task, method=method, **common) for method in methods)) for task in tasks
        ),
        explicit=bool(wishes.methods),
        limit=limit,
        budget_s=budget_s,
    )


def _check_engine(wishes: Wishes) -> None:
    """Through an engine run the baseline and what only draws tokens: `served.ServedContender` refuses the rest."""
    if wishes.engine == "native":
        return
    kind: type[Engine] = ENGINES.load(wishes.engine)  # raises with a suggestion, as the look-ups of other names do
    if not kind.draws or wishes.engine == "openai":
        raise InputError(
            f"`run` does not measure methods through engine {wishes.engine}, but in native, vllm and vllm-server; "
            f"`python -m suite engines compare --engines native,{wishes.engine}` sets that one beside the native one."
        )
    if not wishes.methods:
        raise InputError(f"--engine {wishes.engine} runs search methods: name one with --method, as best_of_n.")
    if wishes.limit is None or wishes.budget is not None:
        raise InputError(f"--engine {wishes.engine} knows no --budget: say how many items with --limit.")


def parse_budget(budget: str | float | None) -> float | None:
    """Seconds from "90s", "3m", "1.5h" or a plain number of seconds; `None` stays `None`."""
    if budget is None:
        return None
    match = _DURATION.fullmatch(str(budget).strip())
    seconds = float(match[1]) * _SECONDS[match[2] or "s"] if match else 0.0
    if seconds <= 0:
        raise InputError(f"--budget {budget} is not a time span; give a positive one, such as 90s, 3m or 1h.")
    return seconds


def _limit(limit: int | None) -> int | None:
    if limit is not None and limit < 1:
        raise InputError(f"--limit {limit} measures nothing; give at least 1 item per task.")
    return limit


def _engine(wishes: Wishes) -> EngineSpec:
    given: dict[str, Any] = {"name": wishes.engine, "threads": wishes.threads, "batch_size": wishes.batch_size}
    return validated(EngineSpec, given, f"engine {wishes.engine}")


def _workload(wishes: Wishes, limit: int) -> tuple[WorkloadSpec, Workload]:
    given: dict[str, Any] = {"name": wishes.workload, "task": "", "limit": limit, "seed": wishes.seed}
    spec = validated(WorkloadSpec, {**given, "options": wishes.workload_options}, f"workload {wishes.workload}")
    workload = make_workload(spec)
    return spec.model_copy(update={"options": normalised(workload.config, spec.options)}), workload


def _tasks(workload: Workload, wished: Sequence[str]) -> Sequence[str]:
    for task in wished:
        if task not in workload.tasks:
            near = difflib.get_close_matches(task, workload.tasks, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(workload.tasks)}."
            raise InputError(f"workload {workload.name} has no task {task!r}; {hint}")
    return tuple(dict.fromkeys(wished)) or workload.tasks


def _check_items(workload: Workload, tasks: Sequence[WorkloadSpec]) -> None:
    """Reads the first item of every task, so that a malformed data file is found before a model is loaded."""
    for task in tasks:
        try:
            next(iter(workload.requests(task.task, 1, task.seed)), None)
        except DataError as error:
            raise InputError(str(error)) from error


def _methods(wished: Sequence[MethodSpec]) -> tuple[MethodSpec, ...]:
    """The validated methods, each once, the baseline first (every ratio is against it)."""
    baseline = [spec for spec in wished if spec.name == BASELINE] or [MethodSpec(name=BASELINE)]
    checked: list[MethodSpec] = []
    for spec in (*baseline, *wished):
        clean = cleaned(spec)
        if clean not in checked:
            checked.append(clean)
    return tuple(checked)


def load_contenders(
    plan: Plan, model: LanguageModel, load: Callable[[MethodSpec], Contender] | None = None
) -> tuple[Plan, dict[str, Contender]]:
    """The methods on the loaded model, by `contender_id`, and the plan without those that do not apply.

    A method the user named and that cannot run on this model is an `InputError`; otherwise it is left out with a note.
    """
    contenders: dict[str, Contender] = {}
    notes = list(plan.notes)
    for spec in plan.methods:
        contender = load(spec) if load is not None else Contender.load(spec, model)
        reason = contender.refusal()
        if reason is None:
            contenders[contender_id(spec)] = contender
        elif plan.explicit or spec.name == BASELINE:
            raise InputError(f"method {spec.name} cannot run on {model.name}: {reason}")
        else:
            notes.append(f"{spec.name} is left out: {reason}")
    blocks = (_without(block, contenders) for block in plan.blocks)
    return plan.model_copy(update={"blocks": tuple(blocks), "notes": tuple(notes)}), contenders


def _without(block: Block, contenders: dict[str, Contender]) -> Block:
    kept = tuple(unit for unit in block.units if contender_id(unit.method) in contenders)
    return block.model_copy(update={"units": kept})


def contender_id(spec: MethodSpec) -> str:
    """A name for a method with its options, unique within a plan."""
    return spec.model_dump_json()
