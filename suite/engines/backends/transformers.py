"""transformers' `generate` with its KV cache, for a worker process."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterator
from typing import Any

import torch
from transformers import AutoModelForCausalLM
from transformers.generation.streamers import BaseStreamer


class Stamps(BaseStreamer):  # type: ignore[misc]  # transformers is untyped
    """Puts each step's tokens with their time into a queue; the first `put` is the prompt."""

    def __init__(self) -> None:
        self.steps: queue.Queue[tuple[list[int], int] | BaseException | None] = queue.Queue()
        self._prompt = True
        self.given_up = False

    def put(self, value: torch.Tensor) -> None:
        """`value` [B]: the batch's next tokens. Nobody wants more: raising ends `generate`."""
        if self.given_up:
            raise RuntimeError("the rest is not wanted")
        if not self._prompt:
            self.steps.put((value.tolist(), time.perf_counter_ns()))
        self._prompt = False

    def end(self) -> None:
        """The batch is done; `None` is put by the thread that generates."""


class TransformersBackend:
    """All prompts as one left-padded batch. Sampling is the batch's: prompts that differ in it are refused."""

    def __init__(self, settings: dict[str, Any]) -> None:
        torch.set_num_threads(settings["threads"])
        directory, dtype = settings["directory"], getattr(torch, settings["torch_dtype"])
        self._model = AutoModelForCausalLM.from_pretrained(directory, dtype=dtype, local_files_only=True).eval()

    def stream(self, prompts: list[dict[str, Any]]) -> Iterator[tuple[int, list[int], int, list[float]]]:
        """One event per token that a prompt still wanted."""
        if any(prompt["stop"] or prompt["logprobs"] for prompt in prompts):
            raise ValueError("transformers' generate has no stop texts and log-probabilities of one prompt of a batch")
        stamps = Stamps()
        thread = threading.Thread(target=self._run, args=(prompts, stamps), daemon=True)
        thread.start()
        left = [prompt["max_new_tokens"] for prompt in prompts]
        try:
            while (step := stamps.steps.get()) is not None:
                if isinstance(step, BaseException):
                    raise step
                tokens, now = step
                for number, token in enumerate(tokens):
                    if left[number]:
                        left[number] = 0 if token in prompts[number]["eos_ids"] else left[number] - 1
                        yield number, [token], now, []
        finally:
            stamps.given_up = True
            thread.join()

    def cancel(self, number: int) -> None:
        """The batch goes on until its last prompt ends."""
        raise ValueError("transformers' generate cannot call off one prompt of a batch")

    def metrics(self) -> dict[str, float]:
        """transformers keeps none."""
        return {}

    def _run(self, prompts: list[dict[str, Any]], stamps: Stamps) -> None:
        try:
            with torch.inference_mode():
                self._generate(prompts, stamps)
            stamps.steps.put(None)
        except BaseException as error:  # handed to the thread that reads
            stamps.steps.put(error)

    def _generate(self, prompts: list[dict[str, Any]], stamps: Stamps) -> None:
        ids, mask = left_padded([prompt["ids"] for prompt in prompts])
        self._model.generate(ids, attention_mask=mask, streamer=stamps, use_cache=True, **arguments(prompts))


def left_padded(prompts: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and mask [B, T]."""
    longest = max(map(len, prompts))
    ids = torch.zeros(len(prompts), longest, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, longest - len(prompt) :] = torch.tensor(prompt)
        mask[row, longest - len(prompt) :] = 1
    return ids, mask


def arguments(prompts: list[dict[str, Any]]) -> dict[str, Any]:
    """`generate`'s arguments for a batch that agrees on its sampling."""
    first = prompts[0]
    shared = ("temperature", "top_k", "top_p", "eos_ids")
    if any(prompt[name] != first[name] for prompt in prompts for name in shared):
        raise ValueError(
            "transformers samples a whole batch alike: temperature, top_k, top_p and end tokens must agree"
        )
    torch.manual_seed(first["seed"])
    sampled = first["temperature"] > 0
    chosen = {name: first[name] for name in ("temperature", "top_k", "top_p")} if sampled else {}
    return {
        **chosen,
        "do_sample": sampled,
        "max_new_tokens": max(prompt["max_new_tokens"] for prompt in prompts),
        "eos_token_id": first["eos_ids"] or -1,  # no token has this id: none ends a prompt
        "pad_token_id": 0,
    }


def make(settings: dict[str, Any]) -> TransformersBackend:
    """The model, loaded."""
    return TransformersBackend(settings)
