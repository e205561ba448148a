"""SqueezeLLM's claims: perplexity at 3 and 4 bits against round to nearest, and the speed of decoding.

Perplexity is exp of the mean negative log-likelihood per token over windows that share no stretch of text with the
calibration's; a gap is what it exceeds the 16-bit model's by. The default model's checkpoint was 4-bit (Q4_1) once,
which flatters no 4-bit codebook in particular but makes its weights few-valued: the main claim is also measured on
`lab-long`, trained here in fp32, on the answers of its own task.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from analysis.statistics import Estimate, paired_ratio
from suite.errors import UnitError
from suite.experiments import random_llama
from suite.experiments.base import Experiment, Workbench
from suite.experiments.clock import Stamps, stamps
from suite.experiments.dense import Generate, Times, prompt_ids, race, step_ms
from suite.experiments.texts import prose
from suite.harness.contender import Contender
from suite.harness.measurement import Finding
from suite.harness.meter import RequestMeter
from suite.harness.options import make_workload
from suite.methods.attention.dense import Dense
from suite.methods.base import Card, Claim
from suite.methods.weights.base import WeightsMethod, mean_nats
from suite.methods.weights.calibration import calibration_windows
from suite.methods.weights.rtn import RTN
from suite.methods.weights.squeezellm import SqueezeLLM
from suite.models.language_model import LanguageModel
from suite.models.loaders import load_model
from suite.spec import WorkloadSpec
from workloads.schema import Request

WINDOWS, TOKENS = 24, 512
ITEMS, BATCH, LAB_TEXTS = 1000, 100, 48
CONTEXT, NEW_TOKENS, LARGE_TOKENS = 128, 48, 12
SHARED = 16
"""A stretch of so many tokens in both texts means that one was calibrated on what is evaluated."""
RESAMPLES = 2000
CODEBOOKS = {"sensitive": 0.0, "outliers": 0.0}
ORIGIN = "the checkpoint was 4-bit (Q4_1) once, so its weights are few-valued"

Nats = dict[str, list[float]]
"""Mean nats per token by setting and window."""
Figure = Callable[[Mapping[str, float]], float]
"""From perplexities by setting."""
Score = Callable[[], list[float]]


class Unweighted(SqueezeLLM):
    """The ablation: every weight counts alike in k-means."""

    card: ClassVar[Card] = replace(SqueezeLLM.card, slug="squeezellm-unweighted")

    def importance(self, weight: Tensor, fisher: Tensor) -> Tensor:
        return torch.ones_like(fisher)


Settings = Mapping[str, tuple[type[WeightsMethod], dict[str, Any]]]
"""Methods and their options, by name."""
LADDER: Settings = {
    "rtn 3": (RTN, {"bits": 3}),
    "k-means 3": (Unweighted, {"bits": 3, **CODEBOOKS}),
    "codebooks 3": (SqueezeLLM, {"bits": 3, **CODEBOOKS}),
    "sensitive 3": (SqueezeLLM, {"bits": 3, "outliers": 0.0}),
    "full 3": (SqueezeLLM, {"bits": 3}),
    "rtn 4": (RTN, {"bits": 4}),
    "codebooks 4": (SqueezeLLM, {"bits": 4, **CODEBOOKS}),
    "full 4": (SqueezeLLM, {"bits": 4}),
}


class SqueezeLLMExperiment(Experiment):
    """SmolLM2 in bf16 on the suite's own prose, and `lab-long` on its task."""

    slug: ClassVar[str] = "squeezellm"

    def findings(self, bench: Workbench) -> Iterator[Finding]:
        torch.set_num_threads(bench.threads)
        gap, unquantised, dense, sensitivity, sparse, four, fast, faster, large = SqueezeLLM.card.claims
        model = load_model("smollm2-135m", "bf16")
        yield from self._ladder(bench, model, (gap, dense, sensitivity, sparse, four))
        yield self._lab(bench, load_model("lab-long", "fp32"), unquantised)
        yield from self._speed(bench, model, fast, faster)
        yield self._large(bench, large)

    def _ladder(self, bench: Workbench, model: LanguageModel, claims: Sequence[Claim]) -> Iterator[Finding]:
        windows = prose(model, WINDOWS * TOKENS).view(WINDOWS, TOKENS)
        require_disjoint(calibration_windows(model, None), windows)
        nats, bits = measure(bench, model, LADDER, partial(mean_nats, model, windows))
        conditions = (
            f"{model.name} bf16 ({ORIGIN}), {WINDOWS} windows of {TOKENS} tokens of generated prose, calibrated on "
            f"text the model wrote; perplexity: {table(nats, bits)}"
        )
        rtn = float(np.exp(fmean(nats["rtn 4"])) / np.exp(fmean(nats["16 bit"])))
        figures: list[tuple[Figure, dict[str, Any]]] = [
            (closed("full 3", "rtn 3"), {"null": 0.0}),
            (times_less("codebooks 3", "rtn 3"), {}),
            (times_less("codebooks 3", "k-means 3"), {}),
            (closed("full 3", "codebooks 3"), {"null": 0.0}),
            (lambda p: p["full 4"] / p["16 bit"], {"direction": "at most", "null": rtn}),
        ]
        for claim, (figure, judged) in zip(claims, figures, strict=True):
            details = {"nats": nats, "average bits": bits}
            yield self.finding(claim, estimated(nats, figure), conditions, details=details, **judged)

    def _lab(self, bench: Workbench, model: LanguageModel, claim: Claim) -> Finding:
        with tempfile.TemporaryDirectory() as directory:
            data = Path(directory) / "calibration.txt"
            texts = [f"{r.prompt} {r.references[0]}" for r in lab_items(1, LAB_TEXTS)]
            data.write_text("\n".join(texts), encoding="utf-8")
            items = lab_items(2, ITEMS)
            read = [torch.tensor([model.encode(item).ids for item in items[:LAB_TEXTS]])]
            require_disjoint(calibration_windows(model, data), *read)
            settings: Settings = {"rtn 3": (RTN, {"bits": 3}), "full 3": (SqueezeLLM, {"bits": 3, "data": data})}
            nats, bits = measure(bench, model, settings, partial(answer_nats, model, items))
        conditions = (
            f"{model.name} fp32 (its weights never were quantised before), answers of {ITEMS} items of 512 tokens, "
            f"calibrated on {LAB_TEXTS} others; perplexity of the answers: {table(nats, bits)} "
            "(tables of fp32 over 64 inputs)"
        )
        return self.finding(
            claim, estimated(nats, closed("full 3", "rtn 3")), conditions, null=0.0, details={"nats": nats}
        )

    def _speed(self, bench: Workbench, model: LanguageModel, fast: Claim, faster: Claim) -> Iterator[Finding]:
        contenders = {"dense": Contender(Dense(), Dense.Config(), model)}
        for bits in (4, 3):
            config = SqueezeLLM.Config.model_validate({"bits": bits})
            contenders[f"{bits} bits"] = Contender(SqueezeLLM(), config, model)
        for contender in contenders.values():
            contender.prepare()
        engines: dict[str, Generate] = {name: partial(generate, one) for name, one in contenders.items()}
        ids = prompt_ids(model, CONTEXT)
        times = race(bench, "decode", engines, lambda engine: step_ms(engine(ids, NEW_TOKENS)))
        bytes_read = {name: one.model_bytes() for name, one in contenders.items()}
        bound = bytes_read["dense"] / bytes_read["4 bits"]
        conditions = (
            f"{model.name} bf16, batch 1, {CONTEXT} tokens of context, {bench.threads} threads, interleaved; a token: "
            f"{told(times, bytes_read)}; embedding and head stay 16-bit, so {bound:.2f}x fewer bytes at 4 bits are the "
            "bound"
        )
        details: dict[str, Any] = {"ms": {name: list(ms.values()) for name, ms in times.items()}, "bytes": bytes_read}
        yield self.finding(fast, paired_ratio(times["dense"], times["4 bits"]), conditions, details=details)
        ratio = paired_ratio(times["4 bits"], times["3 bits"])
        yield self.finding(faster, ratio, conditions, null=0.95, details=details)

    def _large(self, bench: Workbench, claim: Claim) -> Finding:
        """Timing only: nobody reads what random weights say."""
        decoder = random_llama.random_decoder()
        kinds = {"dense": {}, **{f"{bits} bits": random_llama.random_codes(decoder, bits) for bits in (4, 3)}}
        engines: dict[str, Generate] = {
            name: partial(random_llama.decode, decoder, packed) for name, packed in kinds.items()
        }
        ids = list(range(CONTEXT))
        times = race(bench, "decode, random weights", engines, lambda engine: step_ms(engine(ids, LARGE_TOKENS)))
        bytes_read = {name: random_llama.bytes_read(decoder, packed) for name, packed in kinds.items()}
        conditions = (
            f"random weights and codes in the shape of TinyLlama 1.1B, timing only; batch 1, {CONTEXT} tokens of "
            f"context, {bench.threads} threads, interleaved; a token: {told(times, bytes_read)}"
        )
        details: dict[str, Any] = {"ms": {name: list(ms.values()) for name, ms in times.items()}, "bytes": bytes_read}
        return self.finding(claim, paired_ratio(times["dense"], times["4 bits"]), conditions, details=details)


def told(times: Times, bytes_read: Mapping[str, int]) -> str:
    """Time and bytes of a token, by setting."""
    return ", ".join(
        f"{name} {fmean(ms.values()):.3g} ms and {bytes_read[name] / 1e6:.0f} MB of weights"
        for name, ms in times.items()
    )


def measure(
    bench: Workbench,
    model: LanguageModel,
    settings: Settings,
    score: Score,
) -> tuple[Nats, dict[str, float]]:
    """Nats by setting, those of the model as it is among them, and average bits per quantised weight."""
    nats, bits = {"16 bit": score()}, {"16 bit": 8.0 * model.decoder.embedding.weight.element_size()}
    for name, (kind, options) in settings.items():
        bench.tick(f"{model.name}: {name} bits")
        method, config = kind(), kind.Config.model_validate(options)
        method.prepare(model, config)
        with method.attach(model, config):
            nats[name] = score()
        bits[name] = method.average_bits(model)
    return nats, bits


def table(nats: Nats, bits: Mapping[str, float]) -> str:
    """Perplexities in the order of their average bits: what costs less stands before what costs more."""
    return ", ".join(
        f"{name} ({bits[name]:.2f} bits) {math.exp(fmean(nats[name])):.4g}"
        for name in sorted(bits, key=bits.__getitem__)
    )


def closed(ours: str, other: str) -> Figure:
    """The share of another setting's gap that ours has not."""
    return lambda p: 1 - (p[ours] - p["16 bit"]) / (p[other] - p["16 bit"])


def times_less(ours: str, other: str) -> Figure:
    """How many times smaller our gap is; infinite where we have none."""

    def figure(p: Mapping[str, float]) -> float:
        gap = p[ours] - p["16 bit"]
        return (p[other] - p["16 bit"]) / gap if gap > 0 else math.inf

    return figure


def estimated(nats: Nats, figure: Figure) -> Estimate | None:
    """The figure over all windows, with a 95% percentile bootstrap over windows, the same ones for all settings."""
    values = {name: np.asarray(row) for name, row in nats.items()}
    count = len(next(iter(values.values())))
    rng = np.random.default_rng(0)

    def of(chosen: Any) -> float:
        return figure({name: float(np.exp(row[chosen].mean())) for name, row in values.items()})

    value = of(slice(None))
    if not math.isfinite(value):
        return None
    drawn = np.sort([of(rng.integers(count, size=count)) for _ in range(RESAMPLES)])
    low, high = (float(drawn[round(q * (RESAMPLES - 1))]) for q in (0.025, 0.975))
    return Estimate(value, low, high if math.isfinite(high) else None, count)


def require_disjoint(calibration: Tensor, *evaluated: Tensor) -> None:
    """`UnitError` if windows [n, T] of the two texts share a stretch of SHARED tokens."""
    known = {gram for window in calibration for gram in stretches(window)}
    common = sum(gram in known for windows in evaluated for window in windows for gram in stretches(window))
    if common:
        raise UnitError(f"{common} stretches of {SHARED} tokens are in the calibration text and in the evaluated one.")


def stretches(window: Tensor) -> set[tuple[int, ...]]:
    """All runs of SHARED tokens of a window [T]."""
    ids = window.tolist()
    return {tuple(ids[start : start + SHARED]) for start in range(len(ids) - SHARED + 1)}


def lab_items(seed: int, count: int) -> list[Request]:
    """Questions of 512 tokens of both tasks."""
    workload = make_workload(WorkloadSpec(name="lab-longbench", task="qa-512", limit=count))
    tasks = ("qa-512", "passage_retrieval-512")
    return [request for task in tasks for request in workload.requests(task, count // 2, seed)]


def answer_nats(model: LanguageModel, items: Sequence[Request]) -> list[float]:
    """Mean nats per token of each right answer, on the model as it is now."""
    contender = Contender(Dense(), Dense.Config(), model)
    forced = [item.model_copy(update={"target": item.references[0]}) for item in items]
    batches = [forced[start : start + BATCH] for start in range(0, len(forced), BATCH)]
    done = [completion for batch in batches for completion in contender.complete(batch, RequestMeter())]
    return [-fmean(completion.target_logprobs) for completion in done]


def generate(contender: Contender, ids: list[int], count: int) -> Stamps:
    """Times of `count` forced tokens after a prompt."""
    text = contender.model.tokenizer.decode
    request = Request(
        id="r", task="t", prompt=text(ids), metric="none", max_new_tokens=1, target=text(ids[:count])
    )  # fmt: skip
    return stamps(contender, request)
