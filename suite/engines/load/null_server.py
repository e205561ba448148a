"""The bundled null server: an OpenAI-compatible aiohttp server in its own process that plays canned streams.

With the default stream it answers at once, so that what remains is the load generator's own cost. It ends with the
process that started it: its standard input is the lifeline.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from functools import lru_cache
from pathlib import Path
from typing import Any

import uvloop
from aiohttp import web

from suite.engines.load.streams import Stream
from suite.errors import UnitError

MODEL = "null"
DEFAULT_TOKENS = 16


class NullServer:
    """Answers `/v1/models`, `/v1/completions` and `/v1/chat/completions`; the model's name chooses the stream."""

    def __init__(self, streams: Mapping[str, Stream]) -> None:
        self._streams = dict(streams)
        self._served = dict.fromkeys(streams, 0)
        self._slots = {name: asyncio.Semaphore(stream.slots) for name, stream in streams.items() if stream.slots}

    def app(self) -> web.Application:
        """The aiohttp application."""
        made = web.Application(client_max_size=1 << 28)
        made.router.add_get("/v1/models", self._models)
        made.router.add_post("/v1/completions", self._complete)
        made.router.add_post("/v1/chat/completions", self._complete)
        return made

    async def _models(self, _: web.Request) -> web.Response:
        return web.json_response({"object": "list", "data": [{"id": name} for name in self._streams]})

    async def _complete(self, request: web.Request) -> web.StreamResponse:
        body = json.loads(await request.read())
        stream = self._streams.get(body.get("model", ""))
        if stream is None:
            return web.json_response({"error": {"message": f"no model {body.get('model')!r}"}}, status=404)
        self._freeze(body["model"], stream)
        if stream.status != 200 or (stream.rejects_usage_options and "stream_options" in body):
            return web.json_response({"error": {"message": "refused"}}, status=max(stream.status, 400))
        chat = request.path.startswith("/v1/chat")
        tokens = int(body.get("max_tokens") or DEFAULT_TOKENS)
        async with self._slots.get(body["model"], nullcontext()):
            return await _play(request, stream, _answer(stream, tokens, _prompt_tokens(body), chat))

    def _freeze(self, model: str, stream: Stream) -> None:
        """A pause of the whole process, as a garbage collection or a long kernel causes it."""
        self._served[model] += 1
        if self._served[model] == stream.freeze_at:
            time.sleep(stream.freeze_s)


@lru_cache(maxsize=256)
def _answer(stream: Stream, tokens: int, prompt_tokens: int, chat: bool) -> tuple[bytes, ...]:
    return tuple(stream.events(tokens, prompt_tokens, chat))


def _prompt_tokens(body: Mapping[str, Any]) -> int:
    """Words of the prompt: the null server's tokens."""
    if "messages" in body:
        return sum(len(message["content"].split()) for message in body["messages"])
    prompt = body["prompt"]
    return len(prompt.split() if isinstance(prompt, str) else prompt)


async def _play(request: web.Request, stream: Stream, events: tuple[bytes, ...]) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
    await response.prepare(request)
    if stream.instant:
        await response.write(b"".join(events))
        return response
    for number, event in enumerate(events):
        if number == stream.fail_after:
            if stream.drop and request.transport is not None:
                request.transport.close()
            else:
                await response.write(b'data: {"error": {"message": "out of memory"}}\n\n')
            return response
        if pause := stream.pause(number):
            await asyncio.sleep(pause)
        await _write(response, event, stream.write_bytes)
    return response


async def _write(response: web.StreamResponse, event: bytes, size: int | None) -> None:
    for start in range(0, len(event), size or len(event)):
        await response.write(event[start : start + (size or len(event))])
        if size is not None:
            await asyncio.sleep(0)


@contextmanager
def null_server(streams: Mapping[str, Stream] | None = None) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """Starts the server as a child process; yields its base URL and the process, and always ends it."""
    described = json.dumps({name: stream.model_dump() for name, stream in (streams or {MODEL: Stream()}).items()})
    root = Path(__file__).resolve().parents[3]
    path = os.pathsep.join(filter(None, (str(root), os.environ.get("PYTHONPATH"))))
    with subprocess.Popen(
        [sys.executable, "-m", "suite.engines.load.null_server", "--streams", described],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
        start_new_session=True,
    ) as process:
        try:
            assert process.stdout is not None
            port = process.stdout.readline().strip()
            if not port:
                raise UnitError("the bundled null server did not start; its error is above.")
            yield f"http://127.0.0.1:{port}", process
        finally:
            process.kill()


async def _serve(streams: Mapping[str, Stream]) -> None:
    runner = web.AppRunner(NullServer(streams).app(), access_log=None, shutdown_timeout=0)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0, backlog=4096)
    await site.start()
    print(runner.addresses[0][1], flush=True)
    gone = asyncio.Event()
    asyncio.get_running_loop().add_reader(sys.stdin.fileno(), gone.set)
    await gone.wait()
    await runner.cleanup()


def main() -> None:
    """Serves until standard input ends; prints the port it took."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--streams", required=True)
    described = json.loads(parser.parse_args().streams)
    uvloop.run(_serve({name: Stream.model_validate(fields) for name, fields in described.items()}))


if __name__ == "__main__":
    main()
