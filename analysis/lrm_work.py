"""What an answer costs: the work counted per token and pass, times the tokens and passes of whole answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from statistics import fmean

from analysis.hardware import Hardware
from suite.harness.measurement import PhaseCount, Sample, UnitResult


@dataclass(frozen=True)
class Work:
    """What an answer costs on the mean, at batch 1: floating-point operations and bytes moved, by phase."""

    prefill_flops: float
    prefill_bytes: float
    decode_flops: float
    decode_bytes: float

    @property
    def flops(self) -> float:
        """Of the whole answer, drafted tokens included."""
        return self.prefill_flops + self.decode_flops

    @property
    def bytes(self) -> float:
        """Of the whole answer."""
        return self.prefill_bytes + self.decode_bytes

    def milliseconds(self, hardware: Hardware) -> float | None:
        """The roofline's time on a device in bf16, a lower bound; None where its peak is not known."""
        peak = hardware.peak_tflops("bf16")
        if peak is None:
            return None
        phases = ((self.prefill_flops, self.prefill_bytes), (self.decode_flops, self.decode_bytes))
        return sum(max(flops / (peak * 1e9), moved / (hardware.memory_gb_per_s * 1e6)) for flops, moved in phases)


def answer_work(units: Sequence[UnitResult]) -> Work | None:
    """Mean over the answers: what a token and a pass of each phase were counted to cost, times those of the answer.

    The counting pass of a unit is a few steps long, so its own sum is no answer's.
    """
    answers: list[Work] = []
    for unit in units:
        counts = {count.phase: count for count in unit.counts if count.tokens}
        if "prefill" in counts:
            answers += [_answer(sample, counts["prefill"], counts.get("decode")) for sample in unit.samples]
    if not answers:
        return None
    names = [field.name for field in fields(Work)]
    return Work(*(fmean(getattr(work, name) for work in answers) for name in names))


def generated_tokens(sample: Sample) -> int:
    """Visible tokens and those of chains that were thrown away."""
    return sample.search.generated if sample.search is not None else len(sample.token_ids)


def sequential_tokens(sample: Sample) -> int:
    """Tokens one after the other: of parallel chains the longest."""
    return sample.search.sequential if sample.search is not None else len(sample.token_ids)


def hidden_steps(sample: Sample) -> int:
    """Tokens that were computed and are not in the answer: rejected drafts, chains thrown away, a verifier's."""
    drafts, search = sample.drafts, sample.search
    rejected = drafts.drafted - drafts.accepted if drafts is not None else 0
    verified = search.verifier_tokens if search is not None else 0
    return rejected + generated_tokens(sample) - len(sample.token_ids) + verified


def _answer(sample: Sample, prefill: PhaseCount, decode: PhaseCount | None) -> Work:
    prompt = sample.prompt_tokens / prefill.tokens
    if decode is None:
        return Work(prefill.flops * prompt, prefill.counted_bytes * prompt, 0.0, 0.0)
    passes, fed = _decoded(sample)
    return Work(
        prefill.flops * prompt,
        prefill.counted_bytes * prompt,
        decode.flops / decode.tokens * fed,
        decode.counted_bytes / decode.steps * passes,
    )


def _decoded(sample: Sample) -> tuple[int, int]:
    """Decoding passes, and the tokens they were fed: every token but the last of each chain, and all drafted nodes."""
    drafts, search = sample.drafts, sample.search
    if search is not None:
        fed = (search.prefilled or sample.prompt_tokens) - sample.prompt_tokens
        return search.sequential, max(search.generated - search.samples, 0) + fed
    if drafts is not None:
        return drafts.rounds, drafts.rounds + drafts.drafted
    steps = max(len(sample.token_ids) - 1, 0)
    return steps, steps
