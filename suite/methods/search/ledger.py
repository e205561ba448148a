"""What a search costs, counted in one place for all methods (`_verifiers.md` section 4)."""

from __future__ import annotations

from dataclasses import dataclass, field

from workloads.schema import SearchFigures


@dataclass
class Ledger:
    """The running account of one search. Tokens called off count: a row costs what it had produced at the stop."""

    generated: int = 0
    sequential: int = 0
    prompt_logical: int = 0
    prefilled: int | None = 0
    verifier_passes: int = 0
    verifier_tokens: int = 0
    judge_calls: int = 0
    samples: int = 0
    cancelled: int = 0
    flops: float | None = 0.0
    verifier_flops: float = 0.0
    extra: dict[str, float] = field(default_factory=dict)

    def sampled(self, lengths: list[int], contexts: list[int], called_off: int) -> None:
        """One batch of pieces, drawn side by side: their lengths, and the tokens that each was drawn behind."""
        self.generated += sum(lengths)
        self.sequential += max(lengths, default=0)
        self.prompt_logical += sum(contexts)
        self.samples += len(lengths)
        self.cancelled += called_off

    def prefill(self, tokens: int | None) -> None:
        """Tokens that were computed without being drawn; None: nobody says how many, and so of the whole."""
        self.prefilled = None if self.prefilled is None or tokens is None else self.prefilled + tokens

    def compute(self, flops: float | None) -> None:
        """Passes of the policy; None: nobody says what was computed, and so of the whole."""
        self.flops = None if self.flops is None or flops is None else self.flops + flops

    def judged(self, tokens: int, flops: float, calls: int = 0) -> None:
        """What a verifier read or wrote, and the questions it was asked."""
        self.verifier_tokens += tokens
        self.verifier_flops += flops
        self.judge_calls += calls

    def figures(self) -> SearchFigures:
        """The account as it is stored."""
        return SearchFigures(**vars(self) | {"extra": dict(self.extra)})
