"""The baseline's own claims: dense inference here is no straw man. It is raced against `transformers`."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import torch

from analysis.statistics import Estimate, median, paired_ratio
from suite.experiments.base import Experiment, Workbench
from suite.experiments.clock import Stamps, first_token_s, stamps
from suite.harness.contender import Contender
from suite.harness.heap import quiet_heap
from suite.harness.measurement import Finding
from suite.methods.attention.dense import Dense
from suite.methods.base import Claim
from suite.models.language_model import LanguageModel
from suite.models.loaders import load_model
from suite.models.loaders.pinned import ensure
from workloads.schema import Request

PROMPT_TOKENS, NEW_TOKENS, ROUNDS = 1024, 48, 6
LONG_PROMPT = 4096
RIVALS = {"transformers fp32": torch.float32, "transformers bf16": torch.bfloat16}
NATIVE = "native bf16"

Generate = Callable[[list[int], int], Stamps]
"""Continues a prompt greedily by a number of tokens."""
Times = dict[str, dict[tuple[str, int], float]]
"""Milliseconds by engine and round."""


class DenseExperiment(Experiment):
    """Batch 1, interleaved with `transformers` in both dtypes, whose better one counts: decode, then a long prompt."""

    slug: ClassVar[str] = "dense"

    def findings(self, bench: Workbench) -> Iterator[Finding]:
        torch.set_num_threads(bench.threads)
        model = load_model("smollm2-135m", "bf16")
        engines: dict[str, Generate] = {NATIVE: partial(generate, model)}
        engines |= {name: partial(generate_rival, load_rival(ensure(), dtype)) for name, dtype in RIVALS.items()}
        decode, prompt = Dense.card.claims
        ids = prompt_ids(model, PROMPT_TOKENS)
        steps = race(bench, "decode", engines, lambda engine: step_ms(engine(ids, NEW_TOKENS)))
        yield self._finding(bench, decode, steps, f"{PROMPT_TOKENS} tokens of context; ms a token")
        ids = prompt_ids(model, LONG_PROMPT)
        firsts = race(bench, "prefill", engines, lambda engine: 1e3 * first_token_s(engine(ids, 1)))
        yield self._finding(bench, prompt, firsts, f"a prompt of {LONG_PROMPT} tokens; ms to the first token")

    def _finding(self, bench: Workbench, claim: Claim, times: Times, what: str) -> Finding:
        ratios: dict[str, Estimate] = {}
        for name in RIVALS:
            ratio = paired_ratio(times[name], times[NATIVE])
            if ratio is not None:
                ratios[name] = ratio
        best = min(ratios, key=lambda name: ratios[name].value)
        speeds = ", ".join(f"{name} {median(list(values.values())) or 0.0:.4g}" for name, values in times.items())
        conditions = f"smollm2-135m, batch 1, {bench.threads} threads, interleaved, {what}: {speeds}"
        details: dict[str, Any] = {"ms": {name: list(values.values()) for name, values in times.items()}}
        return self.finding(claim, ratios[best], conditions, details=details)


def race(bench: Workbench, what: str, engines: dict[str, Generate], measure: Callable[[Generate], float]) -> Times:
    """Every engine in turn, round by round; the first round warms up and does not count."""
    times: Times = {name: {} for name in engines}
    for turn in range(ROUNDS + 1):
        bench.tick(f"{what}, round {turn} of {ROUNDS}")
        for name, engine in engines.items():
            taken = measure(engine)
            if turn:
                times[name][what, turn] = taken
    return times


def step_ms(times: Stamps) -> float:
    """Mean time per decoded token, first token excluded."""
    tokens = times[1:]
    return (tokens[-1] - tokens[0]) / (len(tokens) - 1) / 1e6


def prompt_ids(model: LanguageModel, count: int = PROMPT_TOKENS) -> list[int]:
    """Plain words, cut to `count` tokens."""
    words = " ".join(
        f"The {i}th sentence of this text says that number {i * 37 % 101} comes next." for i in range(count)
    )
    return model.tokenizer.encode(words)[:count]


def generate(model: LanguageModel, ids: list[int], count: int) -> Stamps:
    """The suite's dense path."""
    text = model.tokenizer.decode
    request = Request(
        id="r", task="t", prompt=text(ids), metric="none", max_new_tokens=1, target=text(ids[:count])
    )  # fmt: skip
    return stamps(Contender(Dense(), Dense.Config(), model), request)


def load_rival(folder: Path, dtype: torch.dtype) -> Any:
    """The same weights in `transformers`."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()


class Clock:
    """A streamer that only looks at the clock; `generate` hands it the prompt first, then every token."""

    def __init__(self) -> None:
        self.ns: list[int] = []

    def put(self, value: object) -> None:
        self.ns.append(time.perf_counter_ns())

    def end(self) -> None:
        """Nothing is buffered."""


def generate_rival(model: Any, ids: list[int], count: int) -> Stamps:
    """`generate` of `transformers`, greedy."""
    clock, prompt = Clock(), torch.tensor([ids])
    with quiet_heap(), torch.inference_mode():
        start = time.perf_counter_ns()
        model.generate(
            prompt, attention_mask=torch.ones_like(prompt), streamer=clock, do_sample=False,
            min_new_tokens=count, max_new_tokens=count, pad_token_id=0,
        )  # fmt: skip
    return [start, *clock.ns[1:]]
