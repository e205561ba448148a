"""Runs one block: gates, warm-up, interleaved timed turns, the untimed counting pass, and one result per method."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from suite.errors import SuiteError
from suite.harness import machine
from suite.harness.contender import Contender
from suite.harness.gates import WORD_CHARACTERS, GateRequests, Gates, resident
from suite.harness.gpu import GpuSampler
from suite.harness.heap import quiet_heap
from suite.harness.measurement import Gate, KVSample, Noise, Phase, PhaseCount, Sample, Status, UnitResult
from suite.harness.meter import RequestMeter, Step
from suite.harness.noise import judge
from suite.harness.store import now
from suite.harness.telemetry import EnergyCounter, UnitTelemetry
from suite.spec import RunSpec
from workloads.schema import Completion, Request, Workload

if TYPE_CHECKING:
    from suite.harness.counting import ModelCost
    from suite.models.language_model import LanguageModel


@dataclass
class Entrant:
    """One method in the run: its contender, and what is settled once for all blocks (gates, warm-up, or why not)."""

    contender: Contender
    ready: bool = False
    gates: tuple[Gate, ...] = ()
    error: str | None = None


@dataclass
class Unit:
    """One unit while it is being measured."""

    spec: RunSpec
    key: str
    entrant: Entrant
    telemetry: UnitTelemetry
    gates: list[Gate] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)
    completions: list[Completion] = field(default_factory=list)
    counts: tuple[PhaseCount, ...] = ()
    kv: tuple[KVSample, ...] = ()
    error: str | None = None
    wall_s: float = 0.0

    @property
    def alive(self) -> bool:
        """Neither failed nor gated so far."""
        return self.error is None and all(gate.passed for gate in self.gates)


@dataclass(frozen=True)
class Setting:
    """What all blocks of a run share."""

    model: LanguageModel
    threads: int
    energy: EnergyCounter | None
    gpus: GpuSampler
    model_cost: ModelCost | None = None
    tick: Callable[[str], None] = lambda activity: None


def turns(
    requests: Sequence[Request], units: Sequence[Unit], repeats: int, batch: int
) -> Iterator[tuple[int, Unit, list[Request]]]:
    """(repeat, unit, requests) in interleaved order: A B C, B C A, C A B, ... so that drift hits all methods alike."""
    turn = 0
    for repeat in range(repeats):
        for start in range(0, len(requests), batch):
            for place in range(len(units)):
                yield repeat, units[(turn + place) % len(units)], list(requests[start : start + batch])
            turn += 1


class BlockRun:
    """Measures the units of one block. An exception of one method fails its unit; the others go on."""

    def __init__(
        self, block: str, units: Sequence[Unit], workload: Workload, requests: Sequence[Request], setting: Setting
    ) -> None:
        self._block = block
        self._units = units
        self._workload = workload
        self._requests = requests
        self._setting = setting
        self._spec = units[0].spec
        self._turn = 0
        self.ready_s = 0.0
        self._started_at = now()

    def results(self) -> list[UnitResult]:
        """Everything, in order; the first unit is the baseline."""
        self._make_ready()
        self._time()
        for unit in self._units:
            self._guarded(unit, self._score)
            self._guarded(unit, self._count)
        return [self._result(unit) for unit in self._units]

    @staticmethod
    def _guarded(unit: Unit, work: Callable[..., None], *arguments: object) -> None:
        """Does one part of a unit's work unless the unit has failed; what it raises becomes the unit's error."""
        if not unit.alive:
            return
        start = time.perf_counter()
        try:
            work(unit, *arguments)
        except Exception as error:  # one method's bug must not end the run
            unit.error = describe(error)
        unit.wall_s += time.perf_counter() - start

    def _make_ready(self) -> None:
        """Preparation, gates and warm-up, once per method and run: they depend on method and model, not on the task."""
        start = time.perf_counter()
        gate_requests = GateRequests.of(self._requests[0], self._setting.model)
        gates = Gates(gate_requests, self._units[0].entrant.contender)
        for unit in self._units:
            self._setting.tick(f"gates of {unit.spec.method.name}")
            self._guarded(unit, _ready, gates, gate_requests.long)
            unit.gates += unit.entrant.gates
            unit.error = unit.error or unit.entrant.error
        self.ready_s = time.perf_counter() - start

    def _time(self) -> None:
        protocol, batch = self._spec.protocol, self._spec.engine.batch_size
        for repeat, unit, requests in turns(self._requests, self._units, protocol.repeats, batch):
            self._setting.tick(f"{self._spec.workload.task}: timing {unit.spec.method.name}")
            self._guarded(unit, self._timed_turn, repeat, requests)
            self._turn += 1

    def _timed_turn(self, unit: Unit, repeat: int, requests: list[Request]) -> None:
        meter = RequestMeter()
        with self._setting.gpus.turn(unit.key), quiet_heap(), unit.telemetry.turn():
            completions = unit.entrant.contender.complete(requests, meter)
        for request, completion in zip(requests, completions, strict=True):
            unit.samples.append(sample(request, completion, meter, repeat, self._turn))
        unit.completions += completions

    def _score(self, unit: Unit) -> None:
        """Scoring may be slow, so it waits until nothing is timed any more."""
        requests = {request.id: request for request in self._requests}
        scores = [self._workload.score(done, requests[done.request_id]) for done in unit.completions]
        unit.samples = [
            one.model_copy(update={"score": score}) for one, score in zip(unit.samples, scores, strict=True)
        ]

    def _count(self, unit: Unit) -> None:
        from suite.harness.counting import CountingPass

        protocol = self._spec.protocol
        counted = [shortened(request, protocol.counted_steps) for request in self._requests[: protocol.counted]]
        if not counted:
            return
        self._setting.tick(f"{self._spec.workload.task}: counting {unit.spec.method.name}")
        model = self._setting.model
        per_token = model.config.kv_bytes_per_token(2 if model.dtype == "bf16" else 4)
        with CountingPass(per_token, model.config.attention_flops_per_pair) as counting:
            for request in counted:
                unit.entrant.contender.complete([request], counting.meter)
        saved = model.model_bytes - unit.entrant.contender.model_bytes()
        unit.counts, unit.kv = counting.phases(lighter(self._setting.model_cost, saved)), counting.meter.kv_samples()
        unit.gates += [_resident_gate(one) for one in unit.kv]

    def _result(self, unit: Unit) -> UnitResult:
        samples = tuple(unit.samples) if unit.alive else ()
        noise = judge(unit.telemetry.disturbance, samples, self._setting.threads) if samples else None
        card, model = unit.entrant.contender.method.card, self._setting.model
        return UnitResult(
            key=unit.key,
            block=self._block,
            spec=unit.spec,
            status=_status(unit, noise),
            gates=tuple(unit.gates),
            samples=samples,
            counts=unit.counts,
            kv=unit.kv,
            memory=unit.telemetry.memory(unit.entrant.contender.model_bytes()) if samples else None,
            energy=unit.telemetry.energy(),
            gpus=self._setting.gpus.summary(unit.key),
            noise=noise,
            error=unit.error,
            score_name=self._workload.score_name,
            higher_is_better=self._workload.higher_is_better,
            source=self._workload.source,
            family=card.family,
            lossless=card.lossless,
            code_version=machine.code_version(),
            workload_revision=self._workload.revision(unit.spec.workload.seed),
            model_digest=model.digest,
            machine_id=machine.machine_id(),
            started_at=self._started_at,
            wall_s=unit.wall_s,
        )


def lighter(cost: ModelCost | None, saved: int) -> ModelCost | None:
    """The same passes over weights that take `saved` bytes less; a pass reads them once."""
    if cost is None or not saved:
        return cost

    def cheaper(phase: Phase, steps: Sequence[Step], kv: Sequence[KVSample]) -> tuple[float, float]:
        flops, moved = cost(phase, steps, kv)
        return flops, moved - saved * len(steps)

    return cheaper


def shortened(request: Request, steps: int) -> Request:
    """The request with at most `steps` decode steps: counting is slow, and a step costs like the one before it."""
    target = request.target and request.target[: (steps + 1) * WORD_CHARACTERS]
    return request.model_copy(update={"max_new_tokens": min(request.max_new_tokens, steps + 1), "target": target})


def _ready(unit: Unit, gates: Gates, warm_up: Request) -> None:
    """Brings a method to the start line; what went wrong there is remembered for the blocks that follow."""
    entrant = unit.entrant
    if entrant.ready:
        return
    entrant.ready = True
    try:
        entrant.contender.prepare()
        entrant.gates = gates.run(entrant.contender)
        for _ in range(unit.spec.protocol.warmup):
            entrant.contender.complete([warm_up], RequestMeter())
    except Exception as error:  # see `BlockRun._guarded`
        entrant.error = describe(error)


def _status(unit: Unit, noise: Noise | None) -> Status:
    if unit.error is not None:
        return "failed"
    if not unit.alive:
        return "gated"
    return "unstable" if noise is not None and noise.reasons else "ok"


def _resident_gate(kv: KVSample) -> Gate:
    stored = kv.stored_retention_last if kv.stored_retention_last is not None else kv.stored_retention
    return resident(kv.resident_bytes, stored * kv.full_bytes, kv.full_bytes)


def describe(error: Exception) -> str:
    """One line about an exception: a known failure's own sentence, else its type and message."""
    return str(error) if isinstance(error, SuiteError) else f"{type(error).__name__}: {error}"


def sample(request: Request, completion: Completion, meter: RequestMeter, repeat: int, turn: int) -> Sample:
    """The raw record of one timed request, by the meter's clock; it has no score yet."""
    start_ns, stamps = meter.times(request.id)
    return Sample(
        request_id=request.id,
        task=request.task,
        repeat=repeat,
        turn=turn,
        prompt_tokens=meter.prompt_tokens(request.id),
        token_ids=completion.token_ids,
        text=completion.text,
        stop_reason=completion.stop_reason,
        ttft_ms=(stamps[0] - start_ns) / 1e6,
        itl_ms=tuple((b - a) / 1e6 for a, b in itertools.pairwise(stamps)),
        e2el_ms=(stamps[-1] - start_ns) / 1e6,
        score=None,
        drafts=completion.drafts,
        search=completion.search,
        metadata=request.metadata,
        notes=completion.notes,
    )
