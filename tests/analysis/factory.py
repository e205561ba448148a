"""Units, calibrations and findings as the harness writes them: test data with known effects, never a measurement."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from analysis.roofline.fit import Fitted, Pricing
from analysis.roofline.model import total_bytes, total_flops
from analysis.roofline.operators import Precision
from analysis.roofline.parts import part_operators
from analysis.roofline.predict import model_cost
from analysis.roofline.shape import ModelShape
from suite.harness.measurement import (
    Calibration,
    Ceiling,
    Finding,
    Gate,
    KVSample,
    Memory,
    Noise,
    OpCount,
    Part,
    PassTimes,
    Phase,
    PhaseCount,
    Sample,
    Status,
    UnitResult,
    Validation,
)
from suite.harness.store import Store
from suite.spec import EngineSpec, MethodSpec, ModelSpec, Protocol, RunSpec, WorkloadSpec

MACHINE = "c0ffee0123456789"
SMOLLM2 = ModelShape(30, 576, 1536, 9, 3, 64, 49152, tied=True)
BF16 = Precision()
SCRIPT = "<script>alert(1)</script>"


def sample(
    request: str = "q0",
    repeat: int = 0,
    *,
    turn: int = 0,
    ttft: float = 100.0,
    gaps: Sequence[float] = (10.0, 10.0, 10.0),
    score: float | None = 50.0,
    text: str = "an answer",
    prompt_tokens: int = 1000,
    task: str = "qasper",
) -> Sample:
    """One timed request; its end-to-end time is the sum of its parts."""
    return Sample(
        request_id=request,
        task=task,
        repeat=repeat,
        turn=turn,
        prompt_tokens=prompt_tokens,
        token_ids=tuple(range(len(gaps) + 1)),
        text=text,
        stop_reason="length",
        ttft_ms=ttft,
        itl_ms=tuple(gaps),
        e2el_ms=ttft + sum(gaps),
        score=score,
    )


def kv_sample(selected: float = 1.0, stored: float = 1.0, tokens: int = 1000) -> KVSample:
    """Figures of one counted request of SmolLM2 in bf16."""
    full = int(SMOLLM2.kv_bytes_per_token(BF16)) * tokens
    return KVSample(
        stored_retention=stored,
        selected_retention=selected,
        selected_retention_per_query_head=selected * 0.8,
        selected_retention_last=selected,
        selected_retention_prompt=selected,
        resident_bytes=int(full * stored),
        index_bytes=0 if selected == 1.0 else full // 100,
        read_bytes_per_step=full * selected,
        full_bytes=full,
    )


def phase_count(phase: Phase, prompt: int = 1000, steps: int = 3, kept: float = 1.0) -> PhaseCount:
    """What counting one request gives: the analytic work, 3% more bytes, and one operator with all of it."""
    passes = [(prompt, prompt)] if phase == "prefill" else [(1, prompt + step + 1) for step in range(steps)]
    flops, modelled = model_cost(SMOLLM2, BF16)(phase, passes, [kv_sample(kept, tokens=prompt)])
    counted = 1.03 * modelled
    return PhaseCount(
        phase=phase,
        steps=len(passes),
        tokens=sum(new for new, _ in passes),
        context_tokens_mean=float(np.mean([context for _, context in passes])),
        flops=flops,
        counted_bytes=counted,
        modelled_flops=flops,
        modelled_bytes=modelled,
        ops=(OpCount(op="kernels.gemv", calls=200, flops=flops, read_bytes=counted, write_bytes=0.0),),
    )


def unit(
    method: str = "dense",
    samples: Sequence[Sample] = (),
    *,
    status: Status = "ok",
    task: str = "qasper",
    block: str = "block",
    workload: str = "longbench",
    counted: bool = True,
    selected: float = 1.0,
    stored: float = 1.0,
    engine: str = "native",
    gates: tuple[Gate, ...] = (),
    reasons: tuple[str, ...] = (),
    **changes: Any,
) -> UnitResult:
    """One unit of SmolLM2 in bf16 on two threads."""
    spec = RunSpec(
        workload=WorkloadSpec(name=workload, task=task, limit=4),
        method=MethodSpec(name=method, options=changes.pop("options", {})),
        model=ModelSpec(name="smollm2-135m"),
        engine=EngineSpec(name=engine, threads=2),
        protocol=Protocol(repeats=3, counted=1),
    )
    prompt = samples[0].prompt_tokens if samples else 1000
    phases = (phase_count("prefill", prompt), phase_count("decode", prompt, kept=selected))
    counts = phases if counted and samples else ()
    fields: dict[str, Any] = {
        "key": spec.key(block),
        "block": block,
        "spec": spec,
        "status": status,
        "gates": gates,
        "samples": tuple(samples),
        "counts": counts,
        "kv": (kv_sample(selected, stored, prompt),) if counts else (),
        "memory": Memory(process_peak_bytes=1_200_000_000, model_bytes=269_000_000),
        "noise": Noise(threads=2, pinned=True, steal_share=0.002, other_load=0.01, spread=0.03, reasons=reasons),
        "score_name": "score, 0-100",
        "family": "attention",
        "code_version": "0.1.0+abc",
        "machine_id": MACHINE,
    }
    return UnitResult(**(fields | changes))


SIZES = (256 << 10, 1 << 20, 4 << 20, 16 << 20, 64 << 20, 256 << 20)


def calibration(threads: Sequence[int] = (1, 2)) -> Calibration:
    """A plausible two-core machine: 32 GB/s from memory, 500 GFLOP/s in bf16, on two threads."""

    def ceiling(kind: Any, dtype: str, count: int, size: int, value: float) -> Ceiling:
        samples = tuple(value * factor for factor in (0.98, 1.0, 1.01))
        return Ceiling(kind=kind, dtype=dtype, threads=count, size=size, value=value, spread=0.015, samples=samples)

    ceilings = []
    for count in threads:
        for size, rate in zip(SIZES, (110.0, 105.0, 95.0, 80.0, 22.0, 16.0), strict=True):
            for kind, share in (("read", 1.0), ("copy", 1.2), ("triad", 0.95)):
                ceilings.append(ceiling(kind, "fp32", count, size, rate * share * count))
        for dtype, peak in (("fp32", 60.0), ("bf16", 250.0)):
            ceilings += [ceiling("gemm", dtype, count, edge, peak * count * edge / 2048) for edge in (512, 1024, 2048)]
            ceilings.append(ceiling("gemv", dtype, count, 2048, 15.0 * count))
    return Calibration(
        machine_id=MACHINE,
        measured_at="2026-01-02T03:04:05+00:00",
        ceilings=tuple(ceilings),
        call_overhead_us=1.5,
        conditions={"llc_bytes": 32 << 20, "refused": ["copy fp32 16 KiB, 1 thread: refused."]},
    )


PLANTED = {
    "prefill linear flop": 1 / 350e9,
    "prefill attention flop": 1 / 250e9,
    "prefill elementwise cache byte": 1 / 40e9,
    "prefill elementwise memory byte": 1 / 20e9,
    "decode linear flop": 1 / 250e9,
    "decode linear streamed byte": 1 / 28e9,
    "decode linear tiled byte": 1 / 24e9,
    "decode attention byte": 1 / 30e9,
    "decode attention sequence": 5e-6,
    "head byte": 1 / 25e9,
    "head flop": 1 / 200e9,
    "linear call": 12e-6,
    "elementwise call": 6e-6,
}
"""Seconds per unit of work: slower everywhere than the ceilings of `calibration`."""


def validation(noise: float = 0.01) -> Validation:
    """Passes and operator classes of SmolLM2 on a machine that keeps to `PLANTED`, three samples of each."""
    planted, pricing, rng = Fitted(PLANTED), Pricing(SMOLLM2, BF16, 32 << 20), np.random.default_rng(5)
    times = []
    for part, phase, batch, tokens in _pass_places():
        one = _pass_times(phase, part, batch, tokens)
        ms = 1e3 * planted.predict(pricing.terms(one)) * (1 + noise * rng.standard_normal(3))
        times.append(one.model_copy(update={"ms": tuple(ms.tolist())}))
    return Validation(
        machine_id=MACHINE,
        measured_at="2026-01-02T03:04:05+00:00",
        code_version="1",
        model="smollm2-135m",
        model_digest="d",
        shape=json.loads(json.dumps(asdict(SMOLLM2))),
        dtype="bf16",
        threads=2,
        times=tuple(times),
    )


def _pass_places() -> list[tuple[Part, Phase, int, int]]:
    parts: tuple[Part, ...] = ("pass", "linear", "attention", "elementwise", "head")
    phases: tuple[Phase, ...] = ("prefill", "decode")
    return list(product(parts, phases, (1, 2, 4, 8, 16), (128, 256, 512, 2048, 4096, 8192)))


def _pass_times(phase: Phase, part: Part, batch: int, tokens: int) -> PassTimes:
    new = 1 if phase == "decode" else min(tokens, 512)
    return PassTimes(phase=phase, part=part, batch=batch, tokens=tokens, new=new, threads=2, ms=(1.0,))


def perturbed(run: Validation, by_compute: Callable[[PassTimes], bool]) -> Validation:
    """The run with perturbed parts, whose times go with their FLOPs where `by_compute` says so, else with bytes."""
    found = []
    for one in run.times:
        if one.part not in ("linear", "attention") or one.batch > 8 or one.tokens not in (512, 8192):
            continue
        other = one.model_copy(update={"new": 2 if one.phase == "decode" else one.new // 2, "perturbed": True})
        flops, moved = (
            total(part_operators(SMOLLM2, BF16, other)) / total(part_operators(SMOLLM2, BF16, one))
            for total in (total_flops, total_bytes)
        )
        factor = float(flops if by_compute(one) else moved)
        found.append(other.model_copy(update={"ms": tuple(factor * ms for ms in one.ms)}))
    return run.model_copy(update={"times": (*run.times, *found)})


def seen(run: Validation, gb_per_s: float, gflop_per_s: float) -> Validation:
    """The run with one sample of both ceilings."""
    size, edge = 256 << 20, 2048
    usual = {"batch": 1, "threads": 2}
    read = PassTimes(phase="decode", part="read", tokens=size, new=1, ms=(size / gb_per_s / 1e6,), **usual)
    product = 2 * edge**3 / gflop_per_s / 1e6
    gemm = PassTimes(phase="prefill", part="multiply", tokens=edge, new=edge, ms=(product,), **usual)
    return run.model_copy(update={"times": (*run.times, read, gemm)})


def finding(**changes: Any) -> Finding:
    """One row of the claims ledger."""
    fields: dict[str, Any] = {
        "slug": "longheads",
        "claim": "accuracy at 8x the trained length against plain RoPE",
        "paper": "100 % passkey at 128k",
        "conditions": "lab-recall, 1024 tokens, 64 items",
        "measured": 1.86,
        "low": 1.71,
        "high": 2.02,
        "unit": "ratio",
        "verdict": "reproduced",
        "command": "python -m suite reproduce longheads",
        "machine_id": MACHINE,
    }
    return Finding(**(fields | changes))


TASKS = {"narrativeqa": 18.0, "qasper": 24.0, "hotpotqa": 30.0, "gov_report": 21.0, "trec": 45.0, "passage_count": 8.0}
METHODS = {"dense": (1.0, 1.0, 1.0, 0.0), "longheads": (1.22, 0.97, 0.38, -1.5), "streaming": (1.31, 1.0, 0.21, -7.0)}
"""Speed of decoding and of prefill against dense, selected retention, change of score."""


def _timed(method: str, task: str, level: float, rng: np.random.Generator) -> list[Sample]:
    decode, prefill, _, change = METHODS[method]
    samples = []
    for repeat in range(3):
        for item in range(4):
            tokens = 1500 + 400 * item
            gaps = (10.5 + tokens / 1500) / decode * rng.lognormal(0, 0.04, 31)
            ttft = tokens * 0.75 / prefill * rng.lognormal(0, 0.03)
            score = float(np.clip(level + change + 12 * np.sin(item * 7 + level), 0, 100))
            text = f"The answer is 42. {SCRIPT} & <b>bold</b>" if item == 0 else "Paris"
            name, turn = f"{task}-{item}", repeat * 4 + item
            shared: dict[str, Any] = {"turn": turn, "score": score, "text": text, "prompt_tokens": tokens, "task": task}
            samples.append(sample(name, repeat, ttft=float(ttft), gaps=[float(gap) for gap in gaps], **shared))
    return samples


def longbench_units() -> list[UnitResult]:
    """A small LongBench run of three methods, with one unstable and one gated unit, and one that failed."""
    rng = np.random.default_rng(7)
    units = []
    for task, level in TASKS.items():
        for method, (_, _, selected, _) in METHODS.items():
            stored = selected if method == "streaming" else 1.0
            samples = _timed(method, task, level, rng)
            changes: dict[str, Any] = {}
            if (method, task) == ("longheads", "trec"):
                reasons = ("the hypervisor took 4.2% of the CPU time (limit 1%); run again on a quieter machine.",)
                changes = {"status": "unstable", "reasons": reasons}
            if (method, task) == ("streaming", "gov_report"):
                gate = Gate(name="parity", passed=False, detail="max |Δlogit| 0.31 on <short> inputs, limit 0.05")
                changes, samples = {"status": "gated", "gates": (gate,)}, []
            if (method, task) == ("streaming", "passage_count"):
                changes, samples = {"status": "failed", "error": "IndexError: index out of range"}, []
            units.append(unit(method, samples, task=task, block=task, selected=selected, stored=stored, **changes))
    return units


def fill(path: Path) -> Store:
    """A store with a LongBench run, a calibration, a machine and a claims ledger."""
    store = Store(path)
    store.add_units(longbench_units(), "sweep")
    store.add_calibration(calibration())
    machine = {"cpu": "AMD EPYC (2 cores)", "cores": 2, "memory_gib": 24, "gpus": [], "packages": {"torch": "2.13.0"}}
    store.add_machine(MACHINE, json.dumps(machine))
    unmeasured = {"measured": None, "low": None, "high": None, "verdict": "not measurable here"}
    missed = {"measured": 0.97, "low": 0.93, "high": 1.02, "verdict": "not reproduced"}
    store.add_findings(
        (
            finding(),
            finding(claim="peak memory at 64k", reason="needs a 40 GB GPU", **unmeasured),
            finding(claim="cost per token constant in length", **missed),
        )
    )
    return store
