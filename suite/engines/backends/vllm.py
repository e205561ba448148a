"""vLLM's `LLM` in this process, stepped by hand so that every token has its time. Runs in vLLM's own environment."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

from vllm import LLM, SamplingParams


class VllmBackend:
    """All prompts are added at once; the engine's scheduler batches them."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self._llm = LLM(
            settings["directory"], dtype=settings["torch_dtype"], max_model_len=settings["window"],
            disable_log_stats=False, skip_tokenizer_init=True, **settings["arguments"],
        )  # fmt: skip
        self._calls = 0

    def stream(self, prompts: list[dict[str, Any]]) -> Iterator[tuple[int, list[int], int]]:
        """One event per prompt and step."""
        engine, self._calls = self._llm.llm_engine, self._calls + 1
        names = [f"{self._calls}/{number}" for number in range(len(prompts))]
        for name, prompt in zip(names, prompts, strict=True):
            engine.add_request(name, {"prompt_token_ids": prompt["ids"]}, sampling_parameters(prompt))
        try:
            yield from self._steps(len(prompts))
        finally:
            engine.abort_request(names)

    def _steps(self, count: int) -> Iterator[tuple[int, list[int], int]]:
        engine, done = self._llm.llm_engine, [0] * count
        while engine.has_unfinished_requests():
            outputs = engine.step()
            now = time.perf_counter_ns()
            for output in outputs:
                number = int(output.request_id.split("/")[1].split("-")[0])
                ids = list(output.outputs[0].token_ids)
                if len(ids) > done[number]:
                    yield number, ids[done[number] :], now
                    done[number] = len(ids)

    def metrics(self) -> dict[str, float]:
        """Gauges and counters by their names without the `vllm:` prefix, summed over labels."""
        found: dict[str, float] = {}
        for metric in self._llm.get_metrics():
            if hasattr(metric, "value"):
                name = metric.name.removeprefix("vllm:")
                found[name] = found.get(name, 0.0) + float(metric.value)
        return found


def sampling_parameters(prompt: dict[str, Any]) -> SamplingParams:
    """The same sampling in vLLM's words; text is never made, so ids alone end a prompt."""
    return SamplingParams(
        temperature=prompt["temperature"], top_k=prompt["top_k"], top_p=prompt["top_p"], seed=prompt["seed"],
        max_tokens=prompt["max_new_tokens"], stop_token_ids=prompt["eos_ids"], ignore_eos=True, detokenize=False,
    )  # fmt: skip


def make(settings: dict[str, Any]) -> VllmBackend:
    """The engine, with the model loaded."""
    return VllmBackend(settings)
