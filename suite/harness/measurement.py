"""What the harness writes into the store: one `UnitResult` per finished unit, with its raw samples.

Units are in the field names (`_ms`, `_bytes`, `_ns`). Nothing here is averaged: statistics are made downstream from
the samples, so that a reader can always redo them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from suite.spec import RunSpec
from workloads.schema import DraftFigures, SearchFigures

Status = Literal["ok", "unstable", "gated", "failed"]
Phase = Literal["prefill", "decode"]


class Record(BaseModel):
    """Frozen; unknown fields are refused, so that an old reader notices a new document."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Gate(Record):
    """A check passed or failed before timing; a unit with a failed gate gets no speed number."""

    name: str
    passed: bool
    detail: str


class KVSample(Record):
    """`workloads.schema.KVFigures` of one counted request, and the figures that only a counting pass has.

    `..._layer_min` and `..._layer_max` are the extreme layers' means over the decode steps; `padded_retention` is what
    a kernel padded to the largest head of each layer would read. `fetch_bytes_per_step` came from the host tier,
    `host_bytes` of the resident bytes are there. Choosing what the prompt reads took `prefill_index_bytes` of an index.
    """

    stored_retention: float
    selected_retention: float
    selected_retention_per_query_head: float
    selected_retention_last: float
    selected_retention_prompt: float
    resident_bytes: int
    index_bytes: int
    read_bytes_per_step: float
    full_bytes: int
    stored_retention_last: float | None = None
    selected_retention_layer_min: float | None = None
    selected_retention_layer_max: float | None = None
    padded_retention: float | None = None
    fetch_bytes_per_step: float = 0.0
    host_bytes: int = 0
    prefill_index_bytes: int = 0


class Sample(Record):
    """One timed request. `turn` is its place in the interleaved order of the block, for drift checks."""

    request_id: str
    task: str
    repeat: int
    turn: int
    prompt_tokens: int
    token_ids: tuple[int, ...]
    text: str
    stop_reason: str
    ttft_ms: float
    itl_ms: tuple[float, ...]
    e2el_ms: float
    score: float | None
    drafts: DraftFigures | None = None
    search: SearchFigures | None = None
    metadata: dict[str, Any] = Field(default_factory=dict)
    notes: tuple[str, ...] = ()


class OpCount(Record):
    """Calls, FLOPs and bytes of one operator in one phase, summed over the counted requests (multiply-add: 2 FLOPs)."""

    op: str
    calls: int
    flops: float
    read_bytes: float
    write_bytes: float


class PhaseCount(Record):
    """The untimed counting pass of one phase.

    `steps` forward passes over `tokens` tokens; `modelled_*` is the analytic roofline's figure for the same work (0
    when no model was given). `counted_bytes` is everything counted: torch operators by the dispatch counter, plus
    `kernel_bytes`, which the suite's own kernels report from their cost models. `attention_density` is the attention
    kernels' share of the FLOPs of full causal attention (`_kv_retention.md` section 4).
    """

    phase: Phase
    steps: int
    tokens: int
    context_tokens_mean: float
    flops: float
    counted_bytes: float
    kernel_bytes: float = 0.0
    modelled_flops: float
    modelled_bytes: float
    attention_density: float | None = None
    ops: tuple[OpCount, ...] = ()


class Memory(Record):
    """Peak figures in bytes; `None` where the machine has no such counter."""

    process_peak_bytes: int
    model_bytes: int
    device_peak_bytes: int | None = None


class Energy(Record):
    """Joules over the timed part, from a real counter only (`source` "nvml", "rapl"); else `None`, "not available"."""

    joules: float | None = None
    source: str = "not available"


class GpuTelemetry(Record):
    """Means (and one maximum) over the samples NVML gave during the timed turns of a unit."""

    index: int
    name: str
    samples: int
    utilisation_percent: float
    sm_clock_mhz: float
    power_w: float
    temperature_max_c: float


class Noise(Record):
    """What disturbed the timed part. `reasons` is empty when the unit is stable."""

    threads: int
    pinned: bool
    steal_share: float
    other_load: float
    spread: float
    reasons: tuple[str, ...] = ()


class UnitResult(Record):
    """One row of the store. `key` hashes spec, code version, workload revision, model digest and machine."""

    schema_version: Literal[1] = 1
    key: str
    block: str
    spec: RunSpec
    status: Status
    gates: tuple[Gate, ...] = ()
    samples: tuple[Sample, ...] = ()
    counts: tuple[PhaseCount, ...] = ()
    kv: tuple[KVSample, ...] = ()
    memory: Memory | None = None
    energy: Energy = Energy()
    gpus: tuple[GpuTelemetry, ...] = ()
    noise: Noise | None = None
    error: str | None = None
    score_name: str = ""
    higher_is_better: bool = True
    source: str = "synthetic"
    family: str = ""
    lossless: bool = False
    code_version: str = ""
    workload_revision: str = ""
    model_digest: str = ""
    machine_id: str = ""
    started_at: str = ""
    wall_s: float = 0.0


class Finding(Record):
    """What a claim's experiment measured: `measured` with its interval [`low`, `high`], in `unit`.

    `value` None means the claim cannot be measured on this machine; `reason` says why. `details` holds raw samples.
    """

    slug: str
    claim: str
    paper: str
    conditions: str
    measured: float | None
    low: float | None
    high: float | None
    unit: str
    verdict: Literal["reproduced", "partly", "not reproduced", "not measurable here"]
    reason: str = ""
    command: str
    details: dict[str, Any] = Field(default_factory=dict)
    machine_id: str = ""
    measured_at: str = ""


class Ceiling(Record):
    """One calibrated ceiling of this machine.

    `kind` is "read", "copy", "triad" (value in GB/s over a working set of `size` bytes) or "gemm", "gemv" (GFLOP/s;
    `size` is the matrix edge). `spread` is the coefficient of variation over `samples`.
    """

    kind: Literal["read", "copy", "triad", "gemm", "gemv"]
    dtype: str
    threads: int
    size: int
    value: float
    spread: float
    samples: tuple[float, ...]


class Calibration(Record):
    """The measured roofline of one machine, stored with its spread and conditions."""

    machine_id: str
    measured_at: str
    ceilings: tuple[Ceiling, ...]
    call_overhead_us: float
    conditions: dict[str, Any] = Field(default_factory=dict)


Part = Literal["pass", "linear", "attention", "elementwise", "head", "read", "multiply"]
"""A whole pass (of a prompt: all its passes), one class of its operators over all layers, or a ceiling: a read from
memory, a square product."""


class PassUnit(Record):
    """One part of a model's pass, as it is timed.

    A decode step attends to `tokens` tokens, its own included. Of a prompt of `tokens` tokens, "pass" is everything, in
    passes of `new` tokens as the engine reads it, and an operator class is its share of the last pass, which has `new`.
    A `perturbed` class has twice as many new tokens in a decode step, half as many of a prompt: other FLOPs for the
    same weights, keys and values. For a ceiling `tokens` are the bytes that are read, or the edge of the square.
    """

    phase: Phase
    part: Part
    batch: int
    tokens: int
    new: int
    threads: int
    perturbed: bool = False

    def times(self, ms: Sequence[float] = ()) -> PassTimes:
        """The record of these samples."""
        return PassTimes(**self.model_dump(), ms=tuple(ms))


class PassTimes(PassUnit):
    """Its raw times, one per call, in milliseconds."""

    ms: tuple[float, ...]

    @property
    def unit(self) -> PassUnit:
        """What was timed."""
        return PassUnit(**self.model_dump(exclude={"ms"}))


class Validation(Record):
    """One run of `suite roofline --validate`: `shape` has the fields of `analysis.roofline.shape.ModelShape`.

    Runs of one code version, model, data type, number of threads and machine belong together.
    """

    machine_id: str
    measured_at: str
    code_version: str
    model: str
    model_digest: str
    shape: dict[str, Any]
    dtype: str
    threads: int
    times: tuple[PassTimes, ...] = ()
    steal_share: float = 0.0
    other_load: float = 0.0

    @property
    def kind(self) -> tuple[str, str, str, int]:
        """What runs that belong together share, besides the machine."""
        return self.code_version, self.model_digest, self.dtype, self.threads
