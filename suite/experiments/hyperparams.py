"""The claims of "The Impact of Hyperparameters on LLM Inference Performance" (arXiv 2408.01050), on vLLM running here.

The paper's procedure: prompts sorted by length, cut into batches of b, each batch one synchronous call of an engine
that is loaded once. "Hardware" here is the dtype, as fp32 moves twice the bytes of bf16, and the number of cores: one
instead of all. Batch sizes take turns round by round, every round has prompts of its own, and the spread of batch 1
over the rounds is the noise floor.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from statistics import fmean
from typing import Any, ClassVar, NamedTuple, cast

from analysis.statistics import Estimate, coefficient_of_variation, paired_ratio
from suite.engines import vllm_environment
from suite.engines.base import Engine, EngineModel, Prompt
from suite.engines.transformers import TransformersEngine
from suite.engines.trials import Repeat, measure
from suite.engines.vllm import VllmEngine
from suite.experiments.base import Experiment, Workbench
from suite.harness.measurement import Finding
from suite.methods.base import Claim
from suite.models.loaders import model_directory
from suite.models.tokenizer import HFTokenizer
from suite.spec import Dtype
from workloads.generators.seeding import item_rng
from workloads.generators.world import World

MODEL = "smollm2-135m"
BATCHES = (1, 2, 4, 8, 16, 32)
PROMPTS, PROMPT_TOKENS, NEW_TOKENS = 32, (32, 256), 16
ROUNDS = 5
CLAIMS = (
    Claim("batch-saturates", "throughput grows with the batch size and then saturates",
          "vLLM, A100, Codellama-7b: 226 over 63 tok/s, saturated at 64-128", "throughput, best batch / batch 1", 3.6),
    Claim("irregular", "the landscape is irregular: a larger batch can be slower",
          "8 GPUs: 417 tok/s at 32, 354 at 64", "throughput, next larger / smaller batch, the worst step", 0.85),
    Claim("retune", "after a change of hardware, tuning again beats keeping the best batch size",
          "vLLM, upgrade: mean +3.31 %, median +0.50 %", "throughput in fp32, own best / bf16's best", 1.0331),
    Claim("retune-cores", "after a change of hardware, tuning again beats keeping the best batch size",
          "vLLM, upgrade: mean +3.31 %, median +0.50 %", "throughput on one core, own best / all cores' best", 1.0331),
    Claim("beats-pipelines", "vLLM is faster than HuggingFace at batch 1", "A100: 1.1x to 23x",
          "throughput at batch 1, vLLM / transformers", 1.1),
)  # fmt: skip

Landscape = Mapping[int, Sequence[float]]
"""Tokens per second by batch size, one value per round."""


class Setting(NamedTuple):
    """The "hardware" of a landscape."""

    dtype: Dtype
    threads: int

    def __str__(self) -> str:
        return f"{self.dtype} on {self.threads} thread{'s' * (self.threads != 1)}"


class HyperparamsExperiment(Experiment):
    """SmolLM2 in vLLM's CPU build."""

    slug: ClassVar[str] = "hyperparams"

    def findings(self, bench: Workbench) -> Iterator[Finding]:
        if not vllm_environment.installed():
            reason = "vLLM is not installed: python -m suite engines install vllm"
            yield from (self.finding(claim, None, "", reason=reason) for claim in CLAIMS)
            return
        saturates, irregular, retune, cores, pipelines = CLAIMS
        base, wider, fewer = (Setting("bf16", bench.threads), Setting("fp32", bench.threads), Setting("bf16", 1))
        settings = dict.fromkeys((base, wider, fewer))  # on one core the first and the last are the same
        found = {setting: landscape(bench, engine(VllmEngine, setting), BATCHES) for setting in settings}
        conditions, first = self._conditions(found), found[base]
        details: dict[str, Any] = {"rates": {str(setting): rates for setting, rates in found.items()}}
        yield self.finding(saturates, ratio(first[1], first[best(first)]), conditions, details=details)
        low, high = worst_step(first)
        named = f"{conditions}; the worst step is from {low} to {high}, chosen by the same rounds"
        yield self.finding(irregular, ratio(first[low], first[high]), named, direction="at most")
        yield self._retuned(retune, base, wider, found, conditions)
        yield self._retuned(cores, base, fewer, found, conditions)
        yield self._pipelines(bench, pipelines, first[1])

    def _retuned(
        self, claim: Claim, old: Setting, new: Setting, found: Mapping[Setting, Landscape], conditions: str
    ) -> Finding:
        """What the batch size that is best on the old hardware loses on the new one."""
        if old == new:
            return self.finding(claim, None, conditions, reason=f"there is no other hardware here than {new}")
        kept, own = best(found[old]), best(found[new])
        gain = None if kept == own else ratio(found[new][kept], found[new][own])
        reason = f"batch {own} is the best in both: there is nothing to gain" if kept == own else ""
        return self.finding(claim, gain, f"{conditions}; best {kept} in {old}, {own} in {new}", reason=reason)

    def _conditions(self, found: Mapping[Setting, Landscape]) -> str:
        told = "; ".join(
            f"{setting}: {curve(one)}, noise {coefficient_of_variation(one[1]):.1%}" for setting, one in found.items()
        )
        return (
            f"{MODEL}, {vllm_environment.requirements()[0]}, {PROMPTS} prompts of {PROMPT_TOKENS[0]}-"
            f"{PROMPT_TOKENS[1]} tokens, {NEW_TOKENS} new ones, {ROUNDS} rounds; tok/s by batch, {told}"
        )

    def _pipelines(self, bench: Workbench, claim: Claim, ours: Sequence[float]) -> Finding:
        rival = landscape(bench, engine(TransformersEngine, Setting("bf16", bench.threads)), (1,))[1]
        rates = f"{fmean(ours):.1f} and {fmean(rival):.1f} tok/s"
        conditions = f"{MODEL} bf16, {bench.threads} threads, one engine after the other: {rates}"
        return self.finding(claim, ratio(rival, ours), conditions)


def engine(kind: Callable[[EngineModel, int], Engine], setting: Setting) -> Engine:
    """An engine that is not started yet."""
    return kind(EngineModel(MODEL, str(model_directory(MODEL)), setting.dtype, 2048), setting.threads)


def landscape(bench: Workbench, server: Engine, batches: Sequence[int]) -> Landscape:
    """Starts the engine and runs every batch size in every round; round 0 warms up."""
    found: dict[int, list[float]] = {batch: [] for batch in batches}
    bench.tick(f"starting {server.name} in {server.model.dtype}")
    with server:
        for number in range(ROUNDS + 1):
            for place in range(len(batches)):
                batch = batches[(place + number) % len(batches)]
                where = f"{server.name}, {Setting(server.model.dtype, server.threads)}"
                bench.tick(f"{where}, round {number} of {ROUNDS}, batch {batch}")
                runs = [measure(server, group) for group in groups(server.model, batch, number)]
                if number:
                    found[batch].append(throughput(runs))
    return found


def throughput(runs: Sequence[Repeat]) -> float:
    """Generated tokens of all calls over their time."""
    return sum(run.tokens for run in runs) / sum(run.seconds for run in runs)


def groups(model: EngineModel, batch: int, number: int) -> list[Sequence[Prompt]]:
    """A round's prompts, other ones for every batch size, sorted by length and cut into batches."""
    rng = item_rng("hyperparams", number, batch)
    lengths = sorted(rng.randint(*PROMPT_TOKENS) for _ in range(PROMPTS))
    enough = World(rng, "en").paragraph(sum(lengths) // 4)  # no sentence has fewer tokens than that
    ids = HFTokenizer.from_directory(Path(model.directory)).encode(" ".join(enough))
    prompts, start = [], 0
    for length in lengths:
        prompts.append(Prompt(tuple(ids[start : start + length]), NEW_TOKENS))
        start += length
    return [prompts[first : first + batch] for first in range(0, PROMPTS, batch)]


def best(of: Landscape) -> int:
    """The batch size of the largest mean."""
    return max(of, key=lambda batch: fmean(of[batch]))


def worst_step(of: Landscape) -> tuple[int, int]:
    """The two neighbouring batch sizes between which throughput grows least."""
    return min(pairwise(of), key=lambda pair: fmean(of[pair[1]]) / fmean(of[pair[0]]))


def ratio(base: Sequence[float], other: Sequence[float]) -> Estimate | None:
    """Throughput of `other` over that of `base`, paired by round."""
    pairs = [{("round", i): 1 / rate for i, rate in enumerate(rates)} for rates in (base, other)]
    return paired_ratio(*cast(Any, pairs))


def curve(of: Landscape) -> str:
    """`1: 52, 2: 90`."""
    return ", ".join(f"{batch}: {fmean(rates):.0f}" for batch, rates in of.items())
