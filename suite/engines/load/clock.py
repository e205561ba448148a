"""The run's clock: CLOCK_MONOTONIC, one for all processes of a machine, counted from the start of the run."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass


@dataclass(frozen=True)
class Clock:
    """`start_ns`: the monotonic time, in nanoseconds, that is second 0 of the run."""

    start_ns: int

    @classmethod
    def starting_in(cls, seconds: float) -> Clock:
        """A clock that will read 0 after `seconds`."""
        return cls(time.monotonic_ns() + round(seconds * 1e9))

    def now(self) -> float:
        """Seconds since the start, to the microsecond."""
        return round((time.monotonic_ns() - self.start_ns) / 1e9, 6)

    async def sleep_until(self, due: float) -> None:
        """Returns at `due`, never before it. An event loop's timers are whole milliseconds: the rest is polled."""
        while (left := due - self.now()) > 0:
            await asyncio.sleep(left)
