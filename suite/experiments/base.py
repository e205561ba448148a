"""What an experiment is: it measures the claims of one paper on this machine and yields rows of the ledger."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from analysis.claims import Direction, judge
from analysis.statistics import Estimate
from suite.harness import machine
from suite.harness.measurement import Finding
from suite.harness.store import now
from suite.methods.base import Claim


@dataclass(frozen=True)
class Workbench:
    """What an experiment may use: `threads` OpenMP threads, and a place to say what it is doing."""

    threads: int
    tick: Callable[[str], None]


class Experiment(ABC):
    """The small experiment of one card.

    `shortfalls`: by claim, why it does not hold here, or not to its full size, and where it would. A row says so only
    where that is what was measured.
    """

    slug: ClassVar[str]
    shortfalls: ClassVar[Mapping[str, str]] = {}

    @abstractmethod
    def findings(self, bench: Workbench) -> Iterator[Finding]:
        """Measures, claim by claim."""

    def finding(
        self,
        claim: Claim,
        estimate: Estimate | None,
        conditions: str,
        *,
        direction: Direction = "at least",
        null: float = 1.0,
        reason: str = "",
        details: dict[str, Any] | None = None,
    ) -> Finding:
        """One row of the ledger with the verdict of `analysis.claims.judge`."""
        verdict = judge(estimate, claim.target, direction=direction, null=null)
        short = self.shortfalls.get(claim.id, "") if verdict in ("partly", "not reproduced") else ""
        return Finding(
            slug=self.slug,
            claim=f"{claim.id}: {claim.text}",
            paper=claim.paper,
            conditions=conditions,
            measured=estimate.value if estimate else None,
            low=estimate.low if estimate else None,
            high=estimate.high if estimate else None,
            unit=claim.unit,
            verdict=verdict,
            reason="; ".join(said for said in (reason, short, estimate.note if estimate else "") if said),
            command=f"python -m suite reproduce {self.slug}",
            details=details or {},
            machine_id=machine.machine_id(),
            measured_at=now(),
        )
