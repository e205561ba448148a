"""vLLM's `LLM` in this process, stepped by hand so that every token has its time. Runs in vLLM's own environment."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

from vllm import LLM, SamplingParams

Event = tuple[int, list[int], int, list[float]]


class VllmBackend:
    """All prompts are added at once; the engine's scheduler batches them."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self._llm = LLM(
            settings["directory"], dtype=settings["torch_dtype"], max_model_len=settings["window"],
            disable_log_stats=False, **settings["arguments"],
        )  # fmt: skip
        self._calls = 0
        self._names: list[str] = []

    def stream(self, prompts: list[dict[str, Any]]) -> Iterator[Event]:
        """One event per prompt and step."""
        engine, self._calls = self._llm.llm_engine, self._calls + 1
        self._names = [f"{self._calls}/{number}" for number in range(len(prompts))]
        for name, prompt in zip(self._names, prompts, strict=True):
            engine.add_request(name, inputs(prompt), sampling_parameters(prompt))
        try:
            yield from self._steps()
        finally:
            engine.abort_request(self._names)

    def _steps(self) -> Iterator[Event]:
        engine, done = self._llm.llm_engine, [0] * len(self._names)
        while engine.has_unfinished_requests():
            outputs = engine.step()
            now = time.perf_counter_ns()
            for output in outputs:
                number = int(output.request_id.split("/")[1].split("-")[0])
                ids, logprobs = list(output.outputs[0].token_ids), output.outputs[0].logprobs or []
                if len(ids) > done[number]:
                    new = range(done[number], len(ids))
                    yield number, ids[done[number] :], now, [logprobs[i][ids[i]].logprob for i in new if logprobs]
                    done[number] = len(ids)

    def cancel(self, number: int) -> None:
        """Ends one request of the stream that runs."""
        self._llm.llm_engine.abort_request([self._names[number]])

    def metrics(self) -> dict[str, float]:
        """Gauges and counters by their names without the `vllm:` prefix, summed over labels."""
        found: dict[str, float] = {}
        for metric in self._llm.get_metrics():
            if hasattr(metric, "value"):
                name = metric.name.removeprefix("vllm:")
                found[name] = found.get(name, 0.0) + float(metric.value)
        return found


def inputs(prompt: dict[str, Any]) -> Any:
    """The prompt in vLLM's words."""
    salt = {"cache_salt": prompt["salt"]} if prompt["salt"] else {}
    return {"prompt_token_ids": prompt["ids"], **salt}


def sampling_parameters(prompt: dict[str, Any]) -> SamplingParams:
    """The same sampling in vLLM's words; text is made only where one may end a prompt."""
    return SamplingParams(
        temperature=prompt["temperature"], top_k=prompt["top_k"], top_p=prompt["top_p"], seed=prompt["seed"],
        max_tokens=prompt["max_new_tokens"], stop_token_ids=prompt["eos_ids"], ignore_eos=True,
        stop=prompt["stop"], include_stop_str_in_output=True, detokenize=bool(prompt["stop"]),
        logprobs=0 if prompt["logprobs"] else None,
    )  # fmt: skip


def make(settings: dict[str, Any]) -> VllmBackend:
    """The engine, with the model loaded."""
    return VllmBackend(settings)
