"""Runs a plan: skips what is settled, measures the other blocks, stores each one whole, and can be continued."""

from __future__ import annotations

import hashlib
import json
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from suite.errors import InputError, StoppedError
from suite.harness import machine
from suite.harness.block import BlockRun, Entrant, Setting, Unit
from suite.harness.contender import Contender
from suite.harness.gpu import GpuSampler
from suite.harness.heap import frozen_heap
from suite.harness.measurement import UnitResult
from suite.harness.options import make_workload, read_requests
from suite.harness.plan import Block, Plan, contender_id
from suite.harness.progress import Listener, Tracker
from suite.harness.store import Store
from suite.harness.telemetry import Elsewhere, UnitTelemetry, energy_counter
from suite.spec import RunSpec
from workloads.schema import Request, Workload

if TYPE_CHECKING:
    from suite.harness.counting import ModelCost
    from suite.models.language_model import TextModel


@dataclass(frozen=True)
class Bench:
    """What a plan runs on. `contenders` come from `plan.load_contenders`; `threads` is what the engine was given.

    `elsewhere`: the engine, where the model is not in this process.
    """

    model: TextModel
    contenders: Mapping[str, Contender]
    store: Store
    threads: int
    model_cost: ModelCost | None = None
    listener: Listener | None = None
    elsewhere: Elsewhere | None = None


@dataclass
class Outcome:
    """The units of a run in the order of its plan, those taken over from the store included."""

    units: list[UnitResult] = field(default_factory=list)
    taken_over: int = 0
    notes: list[str] = field(default_factory=list)

    @property
    def measured(self) -> list[UnitResult]:
        """The units that have figures."""
        return [unit for unit in self.units if unit.status in ("ok", "unstable")]


def start_sweep(store: Store, plan: Plan) -> str:
    """Writes the plan into the store, so that `resume` can continue it, and returns the sweep's id."""
    sweep = uuid.uuid4().hex[:16]
    store.save_sweep(sweep, plan.model_dump_json())
    return sweep


def pending(store: Store) -> tuple[str, Plan]:
    """The id and the plan of the sweep that `resume` continues."""
    sweep = store.pending_sweep()
    if sweep is None:
        raise InputError(f"there is nothing to resume in {store.path}: every run in it has finished.")
    return sweep.id, Plan.model_validate_json(sweep.plan)


def run_blocks(plan: Plan, sweep: str, bench: Bench) -> Outcome:
    """Measures what is not settled yet. A failing unit is recorded and the run goes on; a failing store ends it."""
    bench.store.add_machine(machine.machine_id(), json.dumps(machine.fingerprint()))
    run = _Run(plan, sweep, bench)
    try:
        with GpuSampler() as gpus, frozen_heap():
            outcome = run.execute(gpus)
    except KeyboardInterrupt:
        raise StoppedError(
            f"interrupted after {run.done} of {len(plan.blocks)} blocks, which are safe in {bench.store.path}; "
            "`python -m suite resume` measures the rest."
        ) from None
    bench.store.finish_sweep(sweep)
    return outcome


class _Run:
    """The state of one `run_blocks`."""

    def __init__(self, plan: Plan, sweep: str, bench: Bench) -> None:
        self._plan, self._sweep, self._bench = plan, sweep, bench
        self._entrants = {name: Entrant(contender) for name, contender in bench.contenders.items()}
        self._tracker = Tracker(plan.blocks, bench.listener)
        self._outcome = Outcome(notes=list(plan.notes))
        self._spent_s = self._paced_s = self._estimated_s = 0.0
        self.done = 0

    def execute(self, gpus: GpuSampler) -> Outcome:
        """All blocks in order, until the budget is used up."""
        bench = self._bench
        setting = Setting(bench.model, bench.threads, energy_counter(), gpus, bench.model_cost, self._tracker.tick)
        for block in self._plan.blocks:
            if self._over_budget(block):
                left = len(self._plan.blocks) - self.done
                self._outcome.notes.append(
                    f"the budget was used up: {left} of {len(self._plan.blocks)} tasks left out."
                )
                break
            self._execute(block, setting)
            self.done += 1
        return self._outcome

    def _over_budget(self, block: Block) -> bool:
        """True when this block would end beyond the budget, judging by how the estimates did so far.

        What the gates took belongs to what is spent, but says nothing about the blocks to come.
        """
        if self._plan.budget_s is None or self._estimated_s == 0:
            return False
        predicted_s = block.estimate_s * self._paced_s / self._estimated_s
        return self._spent_s + predicted_s > self._plan.budget_s

    def _execute(self, block: Block, setting: Setting) -> None:
        workload = make_workload(block.workload)
        name, keys = block_keys(block, workload, self._bench)
        if self._bench.store.settled(keys, self._sweep, fresh=self._plan.fresh):
            found = [self._bench.store.unit(key) for key in keys]
            self._outcome.units += [unit for unit in found if unit is not None]
            self._outcome.taken_over += len(found)
            self._tracker.end(block, measured=False)
            return
        start = time.perf_counter()
        self._tracker.begin(block)
        elsewhere = self._bench.elsewhere
        units = [
            Unit(spec, key, self._entrants[contender_id(spec.method)], UnitTelemetry(setting.energy, elsewhere))
            for spec, key in zip(block.units, keys, strict=True)
        ]
        run = BlockRun(name, units, workload, _requests(workload, block.units[0]), setting)
        results = run.results()
        self._bench.store.add_units(results, self._sweep)
        self._outcome.units += results
        taken_s = time.perf_counter() - start
        self._spent_s += taken_s
        self._paced_s += taken_s - run.ready_s
        self._estimated_s += block.estimate_s
        self._tracker.end(block, measured=True)


def _requests(workload: Workload, spec: RunSpec) -> list[Request]:
    """The block's requests with the spec's sampling."""
    sampling = spec.sampling.model_dump()
    return [request.model_copy(update=sampling) for request in read_requests(workload, spec.workload)]


def block_keys(block: Block, workload: Workload, bench: Bench) -> tuple[str, list[str]]:
    """The block's id and its units' keys.

    A unit's key contains the block it was timed in: a ratio is only sound between units of one interleaved run, so
    dense beside A and dense beside B are two results.
    """
    context = (
        machine.code_version(),
        workload.revision(block.workload.seed),
        bench.model.digest,
        machine.machine_id(),
        *(
            "+".join(map(machine.plugin_version, bench.contenders[contender_id(unit.method)].method.classes()))
            for unit in block.units
        ),
    )
    together = "\n".join(spec.key(*context) for spec in block.units)
    name = hashlib.sha256(together.encode()).hexdigest()[:24]
    return name, [spec.key(*context, name) for spec in block.units]
