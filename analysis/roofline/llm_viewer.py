"""LLM-Viewer's cost model (arXiv 2402.16363) as two of its releases compute it, mistakes included.

`methods/llm_viewer.md` section 3 has the formulas and the list of what is wrong; nothing is corrected here, but in
`analysis.roofline.model`. Symbols: B batch, S sequence length, q new tokens (1 in decode, S in prefill), h hidden,
n and k query and KV heads, d = h // n, m FFN width, V vocab; w, a, c bytes per weight, activation, KV element.
"""

from __future__ import annotations

import functools
import math
import tomllib
from collections.abc import Iterator
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Literal

from analysis.roofline.operators import Precision
from analysis.roofline.shape import ModelShape
from suite.errors import InputError

DEVICES_FILE = Path(__file__).with_name("llm_viewer.toml")
CHAT_SAMPLES = 10

Stage = Literal["prefill", "decode"]


@dataclass(frozen=True)
class Release:
    """In what releases differ: flash attention's KV traffic (issue 12) and output (issue 26), peaks, parallelism."""

    year: int
    flash_reads_query_heads: bool
    flash_writes_scores: bool
    knows_int4: bool
    divides_linears: bool
    generates_with_flash: bool


RELEASES = {
    "llm-viewer-2024": Release(2024, True, True, False, False, False),
    "llm-viewer-2026": Release(2026, False, False, True, True, True),
}


@dataclass(frozen=True)
class Device:
    """One device of a release; OP/s and bytes/s. A rate it does not list is None."""

    name: str
    bytes_per_s: float
    fp16: float
    int8: float | None
    int4: float | None
    onchip_bytes: float

    def peak(self, precision: Precision) -> float:
        """The narrowest listed type that weights, activations and KV all fit. 2024 failed on a device without INT8."""
        widest = max(precision.weight, precision.activation, precision.kv)
        if widest <= 0.5 and self.int4 is not None:
            return self.int4
        return self.fp16 if widest > 1 or self.int8 is None else self.int8


@dataclass(frozen=True)
class Work:
    """OPs, and bytes of the five kinds of traffic."""

    ops: float = 0.0
    load_weight: float = 0.0
    load_act: float = 0.0
    store_act: float = 0.0
    load_kv: float = 0.0
    store_kv: float = 0.0

    @property
    def bytes(self) -> float:
        """All traffic."""
        return self.load_weight + self.load_act + self.store_act + self.load_kv + self.store_kv

    def __add__(self, other: Work) -> Work:
        return Work(*(mine + its for mine, its in zip(astuple(self), astuple(other), strict=True)))

    def __mul__(self, times: float) -> Work:
        return Work(*(times * value for value in astuple(self)))

    def seconds(self, device: Device, precision: Precision) -> float:
        """OPs over min(peak, intensity x bandwidth)."""
        return max(self.ops / device.peak(precision), self.bytes / device.bytes_per_s)


@dataclass(frozen=True)
class Analysis:
    """A stage: the operators of one layer and `lm_head`, the network's totals, and what lies in memory (bytes)."""

    operators: dict[str, Work]
    total: Work
    seconds: float
    weights: float
    kv_cache: float
    activations: float

    @property
    def memory(self) -> float:
        """Weights without head and embedding, the cache, and all outputs of one layer at once."""
        return self.weights + self.kv_cache + self.activations


@dataclass(frozen=True)
class Viewer:
    """A release looking at one model on one device; `tensor` devices share the linear layers from 2026 on."""

    release: Release
    shape: ModelShape
    device: Device
    precision: Precision
    flash: bool = False
    tensor: int = 1

    def __post_init__(self) -> None:
        if self.shape.experts or self.shape.latent:
            raise InputError("LLM-Viewer's formulas know neither experts nor latent attention; leave --compat out.")
        if self.tensor > 1 and not self.release.divides_linears:
            raise InputError("LLM-Viewer of 2024 knows no tensor parallelism; leave --tensor out.")
        if self.release.year == 2024 and self.device.int8 is None and self._bits_fit(1):
            raise InputError(f"LLM-Viewer of 2024 fails on {self.device.name}, which lists no INT8 rate (KeyError).")

    def _bits_fit(self, most: float) -> bool:
        return max(self.precision.weight, self.precision.activation, self.precision.kv) <= most

    def analyze(self, stage: Stage, batch: int, seqlen: float) -> Analysis:
        """Prefill of `seqlen` tokens, or the decode step over that many."""
        layer = dict(self._layer(stage, batch, seqlen))
        prefilled = dict(self._linears(batch, seqlen))
        head = self._head(batch)
        one = sum(layer.values(), Work())
        layers = self.shape.layers
        times = (work.seconds(self.device, self.precision) for work in layer.values())
        return Analysis(
            operators={**layer, "lm_head": head},
            total=one * layers + head,
            seconds=layers * sum(times) + head.seconds(self.device, self.precision),
            weights=layers * one.load_weight,
            kv_cache=layers * sum(work.store_kv for work in prefilled.values()),
            activations=one.store_act,
        )

    def generate_seconds(self, batch: int, prompt: int, tokens: int) -> float:
        """A prompt and the steps over prompt, ..., prompt + tokens - 1; before 2026 always without flash attention."""
        viewer = self if self.release.generates_with_flash else self._unfused()
        steps = (viewer.analyze("decode", batch, prompt + step).seconds for step in range(tokens))
        return viewer.analyze("prefill", batch, prompt).seconds + sum(steps)

    def chat_seconds(self, batch: int, prompt: int, tokens: int) -> float:
        """The web page's chat: at most ten lengths on a line from prompt + 1 to prompt + tokens stand for all steps."""
        samples = min(CHAT_SAMPLES, tokens)
        gap = (tokens - 1) / max(1, samples - 1)
        lengths = (prompt + 1 + index * gap for index in range(samples))
        decoded = sum(self.analyze("decode", batch, length).seconds for length in lengths)
        return self.analyze("prefill", batch, prompt).seconds + decoded * tokens / samples

    def _unfused(self) -> Viewer:
        return Viewer(self.release, self.shape, self.device, self.precision, False, self.tensor)

    def _layer(self, stage: Stage, batch: int, seqlen: float) -> Iterator[tuple[str, Work]]:
        new = 1 if stage == "decode" else seqlen
        yield from self._linears(batch, new)
        yield from self._fused(batch, new, seqlen) if self.flash else self._unfused_attention(batch, new, seqlen)
        yield from self._elementwise(batch * new)

    def _linears(self, batch: int, new: float) -> Iterator[tuple[str, Work]]:
        """A gate is charged to every model; an MLP has the width its config says."""
        h, m, share = self.shape.hidden, self.shape.intermediate, self.tensor
        kept = h * self.shape.kv_heads / self.shape.heads
        sizes = {
            "q_proj": (h, h / share), "k_proj": (h, kept / share), "v_proj": (h, kept / share),
            "out_proj": (h / share, h), "gate_proj": (h, m / share), "up_proj": (h, m / share),
            "down_proj": (m / share, h),
        }  # fmt: skip
        w, a, c = self.precision.weight, self.precision.activation, self.precision.kv
        T = batch * new
        for name, (inputs, outputs) in sizes.items():
            out = {"store_kv": outputs * T * c} if name in ("k_proj", "v_proj") else {"store_act": outputs * T * a}
            yield name, Work(2 * inputs * outputs * T, inputs * outputs * w, inputs * T * a, **out)

    def _unfused_attention(self, B: int, q: float, S: float) -> Iterator[tuple[str, Work]]:
        """No causal halving; in prefill the queries are read as if there were k heads of them."""
        n, k, d = self.shape.heads, self.shape.kv_heads, self.shape.hidden // self.shape.heads
        a, cache = self.precision.activation, S * d * B * k * self.precision.kv
        scores, ops = q * S * B * n * a, 2 * q * S * d * n * B
        queries = q * d * B * a * (n if q == 1 else k)
        yield "qk_matmul", Work(ops, 0, queries, scores, cache)
        yield "sv_matmul", Work(ops, 0, scores, q * d * B * n * a, cache)
        yield "softmax", Work(5 * B * n * S * q, 0, scores, scores)

    def _fused(self, B: int, q: float, S: float) -> Iterator[tuple[str, Work]]:
        """K and V are read again for every block of queries, as if there were no cache."""
        n, k, d = self.shape.heads, self.shape.kv_heads, self.shape.hidden // self.shape.heads
        a, c = self.precision.activation, self.precision.kv
        blocks = math.ceil(q / min(math.ceil(self.device.onchip_bytes / (c * d)), d))
        stored = S if self.release.flash_writes_scores else d
        read = n if self.release.flash_reads_query_heads else k
        ops = 4 * q * S * d * n * B + 5 * B * n * S * q
        yield (
            "fused_attention",
            Work(ops, 0, q * d * B * n * a, 2 * q * stored * B * n * a, 2 * blocks * S * d * B * read * c),
        )

    def _elementwise(self, T: float) -> Iterator[tuple[str, Work]]:
        """The activation function has the hidden width, and an addition reads one operand."""
        h, row = self.shape.hidden, T * self.shape.hidden * self.precision.activation
        for name in ("attn_norm", "mlp_norm"):
            yield name, Work(7 * T * h, 0, row, row)
        for name in ("attn_add", "mlp_add"):
            yield name, Work(T * h, 0, row, row)
        yield "mlp_act", Work(2 * T * h, 0, 2 * row, row)

    def _head(self, B: int) -> Work:
        """A multiply-add counts once, activations for one sequence; never divided among devices."""
        h, V, a = self.shape.hidden, self.shape.vocab, self.precision.activation
        return Work(B * h * V, h * V * self.precision.weight, h * a, V * a)


@functools.cache
def _devices() -> dict[str, dict[str, float]]:
    return tomllib.loads(DEVICES_FILE.read_text())


def load_device(name: str, release: Release) -> Device:
    """A device as the release lists it; `InputError` names those it knows."""
    known = {key: row for key, row in _devices().items() if row.get("since", 0) <= release.year}
    if name not in known:
        raise InputError(f"LLM-Viewer of {release.year} does not list {name!r}; known: {', '.join(known)}.")
    row = known[name]
    int8, int4 = row.get("int8"), row.get("int4") if release.knows_int4 else None
    return Device(
        name=name,
        bytes_per_s=row["gb_per_s"] * 1e9,
        fp16=row.get(f"fp16_{release.year}", row["fp16"]) * 1e12,
        int8=None if int8 is None else int8 * 1e12,
        int4=None if int4 is None else int4 * 1e12,
        onchip_bytes=row["onchip_kb"] * 1e3,
    )
