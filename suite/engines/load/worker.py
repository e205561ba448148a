"""A worker process: sends its share of the plan on time, and writes every record to disk as it ends."""

from __future__ import annotations

import asyncio
import os
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import uvloop

from suite.engines.load.client import Client, open_session
from suite.engines.load.clock import Clock
from suite.engines.load.plan import Item, Plan
from suite.engines.load.records import Record, to_line
from suite.engines.load.target import Target, answered

REPORT_S = 0.25


@dataclass(frozen=True)
class Job:
    """What a worker is told. Several workers append whole lines to the one record file."""

    plan: Plan
    target: Target
    timeout_s: float
    records: Path


class Worker:
    """Runs one job; `done` counts the records written."""

    def __init__(self, job: Job, client: Client, file: int) -> None:
        self._job = job
        self._client = client
        self._file = file
        self.done = 0
        sessions: dict[str, list[Item]] = defaultdict(list)
        for item in job.plan.items:
            sessions[item.session or f"#{item.index}"].append(item)
        self._sessions = list(sessions.values())

    async def run(self) -> None:
        """Sends everything. When cancelled, requests in flight are cut off and recorded as cancelled."""
        try:
            async with asyncio.TaskGroup() as group:
                if self._job.plan.concurrency is None:
                    await self._open_loop(group)
                else:
                    waiting = iter(self._sessions)
                    for _ in range(self._job.plan.concurrency):
                        group.create_task(self._closed_loop(waiting))
        except asyncio.CancelledError:
            pass

    async def _open_loop(self, group: asyncio.TaskGroup) -> None:
        """Every session starts when it is due, whatever became of those before: nothing waits for the server."""
        for items in sorted(self._sessions, key=lambda session: session[0].due or 0.0):
            await self._client.clock.sleep_until(items[0].due or 0.0)
            group.create_task(self._session(items))

    async def _closed_loop(self, waiting: Iterator[list[Item]]) -> None:
        stop = self._job.plan.stop_s
        await self._client.clock.sleep_until(0.0)
        for items in waiting:
            if stop is not None and self._client.clock.now() >= stop:
                return
            await self._session(items)

    async def _session(self, items: list[Item]) -> None:
        """The turns of a conversation, one after the other, each with all before it; a failed turn ends it."""
        history: list[dict[str, str]] = []
        for item in items:
            due = self._client.clock.now() if item.due is None else item.due
            await self._client.clock.sleep_until(due)
            record = await self._client.send(item, due, history)
            self._keep(record)
            if record.error:
                return
            history = answered(item.text, history, record.text)

    def _keep(self, record: Record) -> None:
        os.write(self._file, to_line(record))
        self.done += 1


async def _serve(pipe: Connection) -> None:
    job: Job = _hear(pipe)
    async with open_session() as session:
        _tell(pipe, "ready")
        clock: Clock = _hear(pipe)
        file = os.open(job.records, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        worker = Worker(job, Client(session, job.target, clock, job.timeout_s), file)
        running = asyncio.ensure_future(worker.run())
        asyncio.get_running_loop().add_reader(pipe.fileno(), running.cancel)
        while not running.done():
            await asyncio.wait([running], timeout=REPORT_S)
            _tell(pipe, worker.done)
        os.close(file)
        running.result()


def _hear(pipe: Connection) -> Any:
    """The driver's next word. Where it was stopped before the run began there is nothing to do."""
    try:
        return pipe.recv()
    except (EOFError, OSError):
        raise SystemExit from None


def _tell(pipe: Connection, word: int | str) -> None:
    """Nobody listens any more when the driver was killed; the records are on disk all the same."""
    try:
        pipe.send(word)
    except OSError:
        return


def main(pipe: Connection) -> None:
    """The process's entry. The driver says when to stop: any word after the clock, or the end of the pipe."""
    uvloop.run(_serve(pipe))
