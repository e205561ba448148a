"""A small OpenAI-compatible server in this process: real tokens from an engine, and vLLM's habits that matter here."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from aiohttp import web

from suite.engines.base import Engine, Prompt

METRICS = """# HELP vllm:kv_cache_usage_perc KV-cache usage. 1 means 100 percent usage.
# TYPE vllm:kv_cache_usage_perc gauge
vllm:kv_cache_usage_perc{{engine="0",model_name="m"}} {usage}
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{{engine="0",model_name="m"}} {running}
# TYPE vllm:num_requests_waiting gauge
vllm:num_requests_waiting{{engine="0",model_name="m"}} 0.0
# TYPE vllm:num_preemptions_total counter
vllm:num_preemptions_total{{engine="0",model_name="m"}} 7.0
# TYPE vllm:num_preemptions_created gauge
vllm:num_preemptions_created{{engine="0",model_name="m"}} 1.7e+09
# TYPE vllm:prefix_cache_queries_total counter
vllm:prefix_cache_queries_total{{engine="0",model_name="m"}} 0.0
# TYPE vllm:prefix_cache_hits_total counter
vllm:prefix_cache_hits_total{{engine="0",model_name="m"}} 0.0
# TYPE python_info gauge
python_info{{version="3"}} 1.0
"""


TOKEN_S = 0.01  # a lab model alone is so fast that no look at /metrics falls into a run


class _Server:
    """Answers one request after the other, each event as soon as its token is there."""

    def __init__(self, engine: Engine) -> None:
        self._engine, self._turn, self._running = engine, asyncio.Lock(), 0

    async def models(self, _: web.Request) -> web.Response:
        return web.json_response({"data": [{"id": "m"}]})

    async def metrics(self, _: web.Request) -> web.Response:
        return web.Response(text=METRICS.format(usage=self._running / 100, running=self._running))

    async def complete(self, request: web.Request) -> web.StreamResponse:
        body = json.loads(await request.read())
        if isinstance(body["prompt"], str):
            body["prompt"] = [1]
        response = web.StreamResponse()
        await response.prepare(request)
        self._running += 1
        try:
            async with self._turn:
                await self._play(body, response)
        finally:
            self._running -= 1
        await response.write(b"data: [DONE]\n\n")
        return response

    async def _play(self, body: dict[str, Any], response: web.StreamResponse) -> None:
        ends = tuple(body.get("stop_token_ids", ()))
        sampling = {name: body[name] for name in ("temperature", "top_p", "seed") if name in body}
        stop = tuple(body.get("stop", ()))
        prompt = Prompt(
            tuple(body["prompt"]), body["max_tokens"], ends, **sampling, stop=stop, logprobs="logprobs" in body
        )
        chunks: Any = self._engine.stream([prompt])
        try:
            while (chunk := await asyncio.to_thread(next, chunks, None)) is not None:
                await asyncio.sleep(TOKEN_S)
                choice = {"index": 0, "text": "", "token_ids": chunk.token_ids, "finish_reason": None}
                choice |= {"logprobs": {"token_logprobs": chunk.logprobs}} if chunk.logprobs else {}
                await response.write(b"data: " + json.dumps({"choices": [choice]}).encode() + b"\n\n")
        except ConnectionResetError:  # the client called it off
            await asyncio.to_thread(chunks.close)


@contextmanager
def serving(engine: Engine) -> Iterator[str]:
    """The server's address while it runs, in a thread of its own."""
    loop, address = asyncio.new_event_loop(), []
    started = threading.Event()

    async def start() -> None:
        app, server = web.Application(), _Server(engine)
        app.router.add_get("/v1/models", server.models)
        app.router.add_get("/metrics", server.metrics)
        app.router.add_post("/v1/completions", server.complete)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        address.append(f"http://127.0.0.1:{runner.addresses[0][1]}")
        started.set()

    def turn() -> None:
        loop.run_until_complete(start())
        loop.run_forever()

    thread = threading.Thread(target=turn, daemon=True)
    thread.start()
    assert started.wait(10)
    yield address[0]
    loop.call_soon_threadsafe(loop.stop)
    thread.join(10)
