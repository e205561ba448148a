"""LLM-Viewer's figures beside the corrected ones, quantity by quantity and operator by operator."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from analysis.roofline.estimate import Setup, memory, seconds
from analysis.roofline.llm_viewer import Analysis, Stage, Viewer
from analysis.roofline.model import OperatorTime, total_flops
from analysis.roofline.operators import Operator

STAGES: tuple[Stage, ...] = ("prefill", "decode")
PAIRS = {
    "q_proj": (("q_proj",), ("q_proj",)),
    "k_proj": (("k_proj",), ("k_proj",)),
    "v_proj": (("v_proj",), ("v_proj",)),
    "o_proj": (("out_proj",), ("o_proj",)),
    "attention": (("fused_attention", "qk_matmul", "sv_matmul", "softmax"), ("attention", "softmax")),
    "gate_proj": (("gate_proj",), ("gate_proj",)),
    "up_proj": (("up_proj",), ("up_proj",)),
    "down_proj": (("down_proj",), ("down_proj",)),
    "activation": (("mlp_act",), ("swiglu", "activation")),
    "norms and additions": (("attn_norm", "mlp_norm", "attn_add", "mlp_add"), ("rms_norm", "residual_rms_norm")),
    "rope, embedding, cache": ((), ("rope", "embedding", "kv_append")),
    "communication": ((), ("all_reduce", "all_gather")),
    "lm_head": (("lm_head",), ("lm_head",)),
}
"""LLM-Viewer's operators and ours, by what they do."""


Quantity = tuple[str, str, float, float]


def comparison_rows(viewer: Viewer, setup: Setup, batch: int, seqlen: int, generate: int = 0) -> list[dict[str, Any]]:
    """Rows of stage, quantity, unit and the two values; `error` is compat / corrected - 1, None without a base.

    With `generate` also an answer of so many tokens behind the prompt, as the library and as the web page add it up.
    """
    phases = setup.phases(batch, seqlen)
    rows = []
    for stage in STAGES:
        held = memory(setup, phases, batch, seqlen, stage)
        theirs = viewer.analyze(stage, batch, seqlen)
        found = [*_times(viewer, theirs, phases[stage]), *_work(theirs, phases[stage])]
        found.append(("memory", "GB", theirs.memory / 1e9, float(held.total) / 1e9))
        rows += [_row(stage, quantity) for quantity in found]
    if generate:
        ours = float(setup.chat_seconds(batch, seqlen, generate))
        for what, seconds_of in (("generation", viewer.generate_seconds), ("the page's chat", viewer.chat_seconds)):
            rows.append(_row("chat", (what, "s", seconds_of(batch, seqlen, generate), ours)))
    return rows


def _row(stage: str, quantity: Quantity) -> dict[str, Any]:
    what, unit, compat, right = quantity
    error = compat / right - 1 if right else None
    return {"stage": stage, "quantity": what, "unit": unit, "compat": compat, "corrected": right, "error": error}


def _times(viewer: Viewer, theirs: Analysis, ours: Sequence[OperatorTime]) -> Iterator[Quantity]:
    layers = viewer.shape.layers
    spent = {
        name: work.seconds(viewer.device, viewer.precision) * (1 if name == "lm_head" else layers)
        for name, work in theirs.operators.items()
    }
    for what, (compat, corrected) in PAIRS.items():
        values = (
            1e3 * sum(spent.get(name, 0.0) for name in compat),
            1e3 * sum(float(time.seconds) for time in ours if time.operator.name in corrected),
        )
        if any(values):
            yield what, "ms", *values
    yield "time", "ms", 1e3 * theirs.seconds, 1e3 * float(seconds(ours))


def _work(theirs: Analysis, ours: Sequence[OperatorTime]) -> Iterator[Quantity]:
    work, operators = theirs.total, [time.operator for time in ours]
    yield "operations", "GFLOP", work.ops / 1e9, float(total_flops(operators)) / 1e9
    traffic = {
        "weight_bytes": ("weights", work.load_weight),
        "activation_bytes": ("activations", work.load_act + work.store_act),
        "kv_bytes": ("keys and values", work.load_kv + work.store_kv),
        "bytes": ("all traffic", work.bytes),
    }
    for field, (what, compat) in traffic.items():
        yield what, "MB", compat / 1e6, _sum(operators, field) / 1e6


def _sum(operators: Sequence[Operator], field: str) -> float:
    return sum(float(getattr(operator, field)) for operator in operators)
