"""The baseline's own claim: dense decoding here is no straw man. It is raced against `transformers`."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import torch

from analysis.statistics import Estimate, median, paired_ratio
from suite.experiments.base import Experiment, Workbench
from suite.harness.contender import Contender
from suite.harness.heap import quiet_heap
from suite.harness.measurement import Finding
from suite.harness.meter import RequestMeter
from suite.methods.attention.dense import Dense
from suite.models.language_model import LanguageModel
from suite.models.loaders import load_model
from suite.models.loaders.pinned import ensure
from workloads.schema import Request

PROMPT_TOKENS, NEW_TOKENS, ROUNDS = 1024, 48, 6
RIVALS = {"transformers fp32": torch.float32, "transformers bf16": torch.bfloat16}


class DenseExperiment(Experiment):
    """Decode at batch 1 after 1K tokens, interleaved with `transformers` in both dtypes; its better one counts."""

    slug: ClassVar[str] = "dense"

    def findings(self, bench: Workbench) -> Iterator[Finding]:
        torch.set_num_threads(bench.threads)
        model = load_model("smollm2-135m", "bf16")
        ids = prompt_ids(model)
        rivals = {name: load_rival(ensure(), dtype) for name, dtype in RIVALS.items()}
        times: dict[str, dict[tuple[str, int], float]] = {name: {} for name in ("native bf16", *rivals)}
        for turn in range(ROUNDS + 1):
            bench.tick(f"round {turn} of {ROUNDS}")
            taken = {"native bf16": native_step_ms(model, ids), **{n: rival_step_ms(r, ids) for n, r in rivals.items()}}
            if turn:  # the first round warms up
                for name, value in taken.items():
                    times[name][("step", turn)] = value
        yield self._finding(bench, times)

    def _finding(self, bench: Workbench, times: dict[str, dict[tuple[str, int], float]]) -> Finding:
        ratios: dict[str, Estimate] = {}
        for name in RIVALS:
            ratio = paired_ratio(times[name], times["native bf16"])
            if ratio is not None:
                ratios[name] = ratio
        best = min(ratios, key=lambda name: ratios[name].value)
        per_second = {name: 1e3 / (median(list(values.values())) or 1.0) for name, values in times.items()}
        speeds = ", ".join(f"{name} {value:.0f}" for name, value in per_second.items())
        conditions = (
            f"smollm2-135m, batch 1, {PROMPT_TOKENS} tokens of context, {bench.threads} threads, interleaved; "
            f"tokens/s: {speeds}"
        )
        details: dict[str, Any] = {"step_ms": {name: list(values.values()) for name, values in times.items()}}
        return self.finding(Dense.card.claims[0], ratios[best], conditions, details=details)


def prompt_ids(model: LanguageModel) -> list[int]:
    """Some thousand characters of plain words, cut to the prompt's length."""
    words = " ".join(f"The {i}th sentence of this text says that number {i * 37 % 101} comes next." for i in range(200))
    return model.tokenizer.encode(words)[:PROMPT_TOKENS]


def native_step_ms(model: LanguageModel, ids: list[int]) -> float:
    """Mean time per decoded token of the suite's dense path, first token excluded."""
    target = model.tokenizer.decode(ids[:NEW_TOKENS])
    request = Request(
        id="r", task="t", prompt=model.tokenizer.decode(ids), metric="none", max_new_tokens=1, target=target
    )
    with quiet_heap():
        completion = Contender(Dense(), Dense.Config(), model).complete([request], RequestMeter())[0]
    stamps = completion.token_ns
    return (stamps[-1] - stamps[0]) / (len(stamps) - 1) / 1e6


def load_rival(folder: Path, dtype: torch.dtype) -> Any:
    """The same weights in `transformers`."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()


class Stamps:
    """A streamer that only looks at the clock; `generate` hands it the prompt first, then every token."""

    def __init__(self) -> None:
        self.ns: list[int] = []

    def put(self, value: object) -> None:
        self.ns.append(time.perf_counter_ns())

    def end(self) -> None:
        """Nothing is buffered."""


def rival_step_ms(model: Any, ids: list[int]) -> float:
    """Mean time per decoded token of `generate`, greedy, first token excluded."""
    stamps = Stamps()
    prompt = torch.tensor([ids])
    with quiet_heap(), torch.inference_mode():
        model.generate(
            prompt, attention_mask=torch.ones_like(prompt), streamer=stamps, do_sample=False,
            min_new_tokens=NEW_TOKENS, max_new_tokens=NEW_TOKENS, pad_token_id=0,
        )  # fmt: skip
    tokens = stamps.ns[1:]
    return (tokens[-1] - tokens[0]) / (len(tokens) - 1) / 1e6
