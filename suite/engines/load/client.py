"""One streaming request, from the moment it is due to its record."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

import aiohttp

from suite.engines.load.clock import Clock
from suite.engines.load.plan import Item
from suite.engines.load.records import Record
from suite.engines.load.sse import Answer, StreamError
from suite.engines.load.target import Target

HEADERS = {"Content-Type": "application/json", "Accept": "text/event-stream"}
KEEP_ALIVE_S = 3.0
"""Shorter than the five seconds after which uvicorn closes an idle connection under the request being sent."""


def open_session() -> aiohttp.ClientSession:
    """Connections without limit, used again; no proxy, no cookies, no time limit of its own."""
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=KEEP_ALIVE_S),
        cookie_jar=aiohttp.DummyCookieJar(),
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=None),
        headers=HEADERS,
    )


@dataclass(frozen=True)
class Client:
    """Sends requests to one target and never raises for a request that fails: the record says why."""

    session: aiohttp.ClientSession
    target: Target
    clock: Clock
    timeout_s: float

    async def send(self, item: Item, due: float, history: list[dict[str, str]]) -> Record:
        """Posts an item that was due at `due`. Cancelling the task ends it with a record too."""
        answer = Answer()
        body = self.target.body(item.text, history, item.max_tokens, item.seed)
        sent = self.clock.now()
        error = ""
        try:
            async with asyncio.timeout(self.timeout_s):
                await self._stream(body, answer)
        except TimeoutError:
            error = f"timeout: no complete answer after {self.timeout_s:g} s"
        except asyncio.CancelledError:
            error = "cancelled"
        except StreamError as failure:
            error = str(failure)
        except (aiohttp.ClientError, OSError) as failure:
            error = f"connection: {type(failure).__name__}"
        except (ValueError, TypeError, KeyError) as failure:
            error = f"protocol: {type(failure).__name__}: {failure}"[:200]
        return self._record(item, due, sent, answer, error)

    async def _stream(self, body: bytes, answer: Answer) -> None:
        async with self.session.post(self.target.url, data=body) as response:
            if response.status != 200:
                raise StreamError(f"http {response.status}: {(await response.text())[:200]}")
            async for block in response.content.iter_any():
                answer.feed(block, self.clock.now())
        if not answer.finished:
            raise StreamError("connection: the stream ended before the answer did")

    def _record(self, item: Item, due: float, sent: float, answer: Answer, error: str) -> Record:
        return Record(
            index=item.index,
            phase=item.phase,
            t_sched=due,
            t_send=sent,
            t_done=self.clock.now(),
            chunks=tuple(answer.arrivals),
            chunk_tokens=answer.tokens_per_event,
            n_in=answer.n_in,
            n_out=answer.n_out,
            source="unknown" if answer.n_out is None else "usage",
            asked_out=item.max_tokens,
            session=item.session,
            turn=item.turn,
            error=error,
            text=answer.text,
        )
