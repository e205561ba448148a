"""An OpenAI-compatible server as an engine: prompts go to `/v1/completions` as token ids, tokens come as events."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar

import aiohttp
import uvloop
from prometheus_client.parser import text_string_to_metric_families

from suite.engines.base import Chunk, Engine, EngineError, EngineModel, FaultKind, Limits, Output, Prompt, changes
from suite.engines.load.client import open_session
from suite.engines.load.sse import Answer, StreamError
from suite.engines.load.target import Target, probe, root
from suite.errors import InputError
from suite.models.tokenizer import HFTokenizer

_ASK_S = 10.0  # for a question that a living server answers at once
_WATCH_S = 0.1  # between two looks at the gauges in a watched call


class OpenAIEngine(Engine):
    """A server that runs already, at `base_url`; it is asked, never started or ended.

    Its token ids are taken where it gives them (`return_token_ids`, vLLM). Otherwise its text is tokenised again, with
    the tokenizer in the model's directory, and `token_source` becomes "text": counts and ids are then the tokenizer's.
    """

    name: ClassVar[str] = "openai"
    alive_path: ClassVar[str] = "/v1/models"
    served = ""

    def __init__(self, model: EngineModel, threads: int, limits: Limits | None = None, base_url: str = "") -> None:
        super().__init__(model, threads, limits)
        self.base_url = base_url
        self._answers: list[Answer] = []
        self._talk: _Talk | None = None

    def start(self) -> None:
        if not self.base_url:
            raise InputError("engine openai talks to a server that runs already: say where with --base-url URL.")
        try:
            self.served = probe(Target(self.base_url)).model
        except InputError as error:
            raise self._fault("did not start", str(error)) from error

    def ready(self) -> bool:
        return self._get(self.alive_path) is not None

    def stream(self, prompts: Sequence[Prompt]) -> Iterator[Chunk]:
        yield from self._stream(prompts, None)

    def watched(self, prompts: Sequence[Prompt]) -> Mapping[str, float]:
        before, largest = self.metrics(), dict[str, float]()
        for _ in self._stream(prompts, largest):
            pass
        _keep_largest(largest, self.metrics())
        return changes(before, largest)

    def metrics(self) -> Mapping[str, float]:
        return parsed(self._get("/metrics") or "")

    def peak_memory_bytes(self) -> int | None:
        return None

    def stop(self) -> None:
        """The server is somebody else's."""

    def _stream(self, prompts: Sequence[Prompt], largest: dict[str, float] | None) -> Iterator[Chunk]:
        deadline = time.monotonic() + self.limits.generate_s
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            self._talk = talk = _Talk(root(self.base_url), [self._body(prompt) for prompt in prompts], largest)
            self._answers = talk.answers
            try:
                runner.run(talk.begin())
                while chunks := runner.run(talk.next(deadline)):
                    yield from chunks
            except TimeoutError as error:
                detail = f"it was given up after {self.limits.generate_s:.0f} s without a whole answer."
                raise self._fault("timed out", detail) from error
            except StreamError as error:
                raise self._fault("wrong output" if self.ready() else "died", f"{error}.") from error
            except (aiohttp.ClientError, OSError) as error:
                raise self._fault("died", f"the connection broke ({error or type(error).__name__}).") from error
            finally:
                self._talk = None
                runner.run(talk.end())
        yield from self._from_texts()

    def cancel(self, index: int) -> None:
        """Closes the connection: vLLM then ends the request."""
        if self._talk is not None:
            self._talk.cancel(index)

    def _from_texts(self) -> Iterator[Chunk]:
        """The answers that came without ids."""
        tokenizer: HFTokenizer | None = None
        for number, answer in enumerate(self._answers):
            if not answer.has_ids:
                self.token_source = "text"
                tokenizer = tokenizer or HFTokenizer.from_directory(Path(self.model.directory))
                yield from _tokenised(number, answer, tokenizer)

    def _body(self, prompt: Prompt) -> bytes:
        fields: dict[str, Any] = {
            "model": self.served, "prompt": prompt.ids, "max_tokens": prompt.max_new_tokens, "stream": True,
            "temperature": prompt.temperature, "top_k": prompt.top_k, "top_p": prompt.top_p, "seed": prompt.seed,
            "ignore_eos": True, "stop_token_ids": prompt.eos_ids, "return_token_ids": True,
        }  # fmt: skip
        if prompt.stop:
            fields |= {"stop": prompt.stop, "include_stop_str_in_output": True}
        if prompt.logprobs:
            fields["logprobs"] = 0
        if prompt.salt:
            fields["cache_salt"] = prompt.salt
        return json.dumps(fields).encode()

    def _check(self, number: int, prompt: Prompt, output: Output) -> None:
        """Tokens counted again from text say nothing about the number that was made: the server's own reason does."""
        if self._answers[number].has_ids:
            super()._check(number, prompt, output)
        elif (reason := self._answers[number].finish_reason) != "length" and not (
            reason == "stop" and (prompt.eos_ids or prompt.stop)
        ):
            detail = f"prompt {number} ended for the reason {reason!r} before its {prompt.max_new_tokens} tokens."
            raise self._fault("wrong output", detail)

    def _fault(self, kind: FaultKind, detail: str) -> EngineError:
        return EngineError(kind, self.name, detail)

    def _get(self, path: str) -> str | None:
        """The body of a page; None where there is none, or nobody answers."""
        return asyncio.run(_page(root(self.base_url) + path))


@dataclass
class _Talk:
    """One request per body, all at once, on a loop that only turns while somebody waits in `next`."""

    base_url: str
    bodies: Sequence[bytes]
    largest: dict[str, float] | None
    answers: list[Answer] = field(init=False)

    def __post_init__(self) -> None:
        self.answers = [Answer() for _ in self.bodies]

    async def begin(self) -> None:
        self._chunks: asyncio.Queue[Chunk | Exception | None] = asyncio.Queue()
        self._session = open_session()
        self._tasks = [asyncio.create_task(self._ask(number)) for number in range(len(self.bodies))]
        self._left = len(self.bodies)
        if self.largest is not None:
            self._tasks.append(asyncio.create_task(self._watch(self.largest)))

    async def next(self, deadline: float) -> list[Chunk]:
        """What has come, at least one chunk; nothing when all answers are whole. Raises what a request ended with."""
        chunks: list[Chunk] = []
        while self._left and not (chunks and self._chunks.empty()):
            event = await asyncio.wait_for(self._chunks.get(), max(0.001, deadline - time.monotonic()))
            if isinstance(event, Exception):
                raise event
            if event is None:
                self._left -= 1
            else:
                chunks.append(event)
        return chunks

    def cancel(self, number: int) -> None:
        """Asked between two calls of `next`; the loop acts on it in the following one."""
        self._tasks[number].cancel()

    async def end(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._session.close()

    async def _ask(self, number: int) -> None:
        try:
            await self._read(number, self.answers[number])
            self._chunks.put_nowait(None)
        except asyncio.CancelledError:
            self._chunks.put_nowait(None)
        except (StreamError, aiohttp.ClientError, OSError) as error:
            self._chunks.put_nowait(error)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            self._chunks.put_nowait(StreamError(f"no OpenAI stream ({type(error).__name__}: {error})"))

    async def _read(self, number: int, answer: Answer) -> None:
        async with self._session.post(f"{self.base_url}/v1/completions", data=self.bodies[number]) as response:
            if response.status != 200:
                raise StreamError(f"HTTP {response.status}: {(await response.text())[:200]}")
            seen = 0
            async for block in response.content.iter_any():
                answer.feed(block, now := time.perf_counter_ns())
                for ids, logprobs in zip(answer.token_ids[seen:], answer.logprobs[seen:], strict=True):
                    if ids:
                        self._chunks.put_nowait(Chunk(number, ids, now, logprobs))
                seen = len(answer.token_ids)
        if not answer.finished:
            raise aiohttp.ClientPayloadError("the stream ended before the answer did")

    async def _watch(self, largest: dict[str, float]) -> None:
        while True:
            _keep_largest(largest, parsed(await _page(f"{self.base_url}/metrics") or ""))
            await asyncio.sleep(_WATCH_S)


async def _page(url: str) -> str | None:
    try:
        async with (
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=_ASK_S)) as session,
            session.get(url) as response,
        ):
            return await response.text() if response.status == 200 else None
    except (aiohttp.ClientError, OSError, TimeoutError):
        return None


def parsed(text: str) -> dict[str, float]:
    """A server's own gauges and counters from its Prometheus page, summed over labels, without `vllm:`."""
    found: dict[str, float] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if family.type in ("gauge", "counter") and ":" in family.name and not sample.name.endswith("_created"):
                name = family.name.removeprefix("vllm:")
                found[name] = found.get(name, 0.0) + sample.value
    return found


def _keep_largest(largest: dict[str, float], seen: Mapping[str, float]) -> None:
    largest.update({name: max(value, largest.get(name, value)) for name, value in seen.items()})


def _tokenised(number: int, answer: Answer, tokenizer: HFTokenizer) -> Iterator[Chunk]:
    """The whole text's tokens; each comes with the first event up to which the text has so many."""
    ids = tokenizer.encode(answer.text)
    ends, text = [0], ""
    for piece in answer.texts:
        text += piece
        ends.append(max(ends[-1], min(len(ids), len(tokenizer.encode(text)))))
    for (start, stop), ns in zip(pairwise(ends), answer.arrivals, strict=True):
        if stop > start:
            yield Chunk(number, tuple(ids[start:stop]), int(ns))
