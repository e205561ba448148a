"""The lab's reward models, trained on what its policies write: two process rewards and an outcome reward.

Their labels are the oracle's, of fresh traces at every step; what a reward model reads is the trace alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import save_file
from scipy.stats import rankdata
from torch import Tensor, nn
from torch.nn import functional

from suite.models.checkpoints.export import save_llama
from suite.models.checkpoints.manifest import DataSource, TrainingPlan
from suite.models.decoder import Decoder
from suite.models.loaders import load_model
from suite.models.recipes.chain import WORDS, ChainStrong, dev_problems, encode, padded
from suite.models.recipes.lab import word_tokenizer
from suite.models.rewards import LikelihoodPRM, TokenReward, step_ends
from suite.models.rollout import rollout
from workloads.chain import TASKS, Chain, final_answer
from workloads.generators.chain import Problem, judge, lines
from workloads.lab import BoolArray

TASK = "arithmetic-24"
POLICIES = ("chain-early", "chain-mid")  # whose traces, at temperature 1, are judged
POOL = 8  # batches sampled at a time: a decode step costs about the same for 32 rows and for 256
DEV_TRACES = 300
BINS = 10

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Judged:
    """A trace with its prompt as token ids, the oracle's label of every step, and whether its answer is right."""

    prompt: list[int]
    written: list[int]
    steps: list[bool]
    solved: bool

    @property
    def ends(self) -> list[int]:
        """Where the steps end, counted from the prompt's first token."""
        return step_ends([*self.prompt, *self.written], len(self.prompt))


def judged(policy: Decoder, problems: Sequence[Problem], temperature: float, seed: int) -> list[Judged]:
    """One trace of the policy for each problem, judged by the oracle."""
    prompts = [encode(problem) for problem in problems]
    traces = rollout(policy, prompts, TASKS[TASK].max_new_tokens, temperature, seed)
    return [_judged(*row) for row in zip(problems, prompts, traces, strict=True)]


def _judged(problem: Problem, prompt: list[int], written: list[int]) -> Judged:
    words = [WORDS[i] for i in written]
    text = " ".join(word for word in words if word != "<eos>")
    solved = final_answer(text) == " ".join(problem.answer)
    return Judged(prompt, written, judge(problem, lines(" ".join(words))), solved)


class RewardRecipe:
    """What the recipes share: traces to train and to be judged on."""

    version = "1"
    selection = "the settings are those of the first try; the weights are those of the best evaluation"
    dev_figure = "solution_auc"
    plan_: ClassVar[TrainingPlan]

    def __init__(self, plan: TrainingPlan | None = None) -> None:
        self.plan = plan or self.plan_
        revision = Chain().revision(self.plan.seed)
        self.data = DataSource(name=f"{Chain.name}, traces of {' and '.join(POLICIES)}", version="1", revision=revision)
        self._policies = [load_model(name, "fp32").decoder for name in POLICIES]
        self._pool: list[Judged] = []

    def batch(self, rng: np.random.Generator) -> list[Judged]:
        """`plan.batch` fresh traces, of one policy and the other in turns."""
        while len(self._pool) < self.plan.batch:
            for policy in self._policies:
                problems = [TASKS[TASK].family.draw(rng) for _ in range(POOL * self.plan.batch // len(POLICIES))]
                self._pool += judged(policy, problems, 1.0, int(rng.integers(2**31)))
            self._pool = [self._pool[i] for i in rng.permutation(len(self._pool))]
        drawn, self._pool = self._pool[: self.plan.batch], self._pool[self.plan.batch :]
        return drawn

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """The quality gates on held-out traces of the better policy."""
        return self.quality(model, judged(self._policies[-1], dev_problems(TASK, DEV_TRACES), 1.0, seed=1))

    def quality(self, model: nn.Module, traces: Sequence[Judged]) -> dict[str, float]:
        """Those of a process reward."""
        return process_quality(model, traces)


class LikelihoodRecipe(RewardRecipe):
    """`chain-likelihood`: a and b of the likelihood PRM over `chain-strong`."""

    name = "chain-likelihood"
    summary = "process reward: a step's log-likelihood under chain-strong, scaled to a probability by two numbers"
    plan_ = TrainingPlan(
        steps=100, batch=32, lr=0.1, warmup=1, weight_decay=0.0, clip=10.0, seed=0, eval_every=25
    )  # fmt: skip
    dev_figure = "calibration"

    def build(self) -> LikelihoodPRM:
        return LikelihoodPRM(load_model("chain-strong", "fp32").decoder)

    def loss(self, model: LikelihoodPRM, rng: np.random.Generator) -> Tensor:
        return step_loss(model, self.batch(rng))

    def quality(self, model: nn.Module, traces: Sequence[Judged]) -> dict[str, float]:
        """AUCs hardly depend on a and b: the fit is judged by its calibration."""
        found = super().quality(model, traces)
        return {**found, "calibration": -found["calibration_error"]}

    def describe(self, model: LikelihoodPRM) -> dict[str, Any]:
        return {"a": model.a.item(), "b": model.b.item(), "decoder": "chain-strong"}

    def save(self, model: LikelihoodPRM, directory: Path) -> None:
        save_file({"a": model.a.detach(), "b": model.b.detach()}, directory / "model.safetensors")


class ProcessRecipe(RewardRecipe):
    """`chain-prm`: `chain-strong` and two layers more, trained to tell where a step ends whether it is right.

    Three layers are just enough to compute a step; comparing it with what was written takes more.
    """

    name = "chain-prm"
    summary = "process reward: chain-strong's 3 layers and 2 new ones, trained on traces of chain-early and chain-mid"
    layers: ClassVar[int] = 5
    plan_ = TrainingPlan(
        steps=400, batch=32, lr=2e-3, warmup=50, weight_decay=0.1, clip=1.0, seed=0, eval_every=50, beta2=0.98
    )  # fmt: skip

    def build(self) -> TokenReward:
        """A decoder whose new layers start by adding nothing."""
        model = Decoder(replace(ChainStrong.config, layers=self.layers))
        known = load_model("chain-strong", "fp32").decoder.state_dict()
        for name, weight in model.named_parameters():
            if name not in known and name.endswith(("attention.out.weight", "mlp.down.weight")):
                nn.init.zeros_(weight)
        model.load_state_dict(known, strict=False)
        return TokenReward(model)

    def loss(self, model: TokenReward, rng: np.random.Generator) -> Tensor:
        return step_loss(model, self.batch(rng))

    def describe(self, model: TokenReward) -> dict[str, Any]:
        config = model.decoder.config
        return {**asdict(config), "parameters": sum(p.numel() for p in model.parameters())}

    def save(self, model: TokenReward, directory: Path) -> None:
        save_llama(model.decoder, word_tokenizer(WORDS), directory)


class OutcomeRecipe(ProcessRecipe):
    """`chain-orm`: the same decoder, trained on whether the answer is right, which it says at the last token only."""

    name = "chain-orm"
    summary = "outcome reward: chain-strong's 3 layers and 3 new ones, trained on traces of chain-early and chain-mid"
    layers = 6

    def loss(self, model: TokenReward, rng: np.random.Generator) -> Tensor:
        traces = self.batch(rng)
        logits = scores(model, traces)
        ends = torch.tensor([row.ends[-1] for row in traces])
        labels = torch.tensor([float(row.solved) for row in traces])
        return functional.binary_cross_entropy_with_logits(logits[torch.arange(len(traces)), ends], labels)

    def quality(self, model: nn.Module, traces: Sequence[Judged]) -> dict[str, float]:
        return outcome_quality(model, traces)


def scores(model: nn.Module, traces: Sequence[Judged]) -> Tensor:
    """A reward model's logits [B, T] on traces."""
    ids, _ = padded([(row.prompt, row.written) for row in traces])
    logits: Tensor = model(torch.from_numpy(ids), [len(row.prompt) for row in traces])
    return logits


def step_loss(model: nn.Module, traces: Sequence[Judged]) -> Tensor:
    """Binary cross-entropy of the oracle's labels at the ends of the steps."""
    logits = scores(model, traces)
    places = [(row, end) for row, trace in enumerate(traces) for end in trace.ends]
    labels = torch.tensor([float(label) for trace in traces for label in trace.steps])
    rows, ends = zip(*places, strict=True)
    return functional.binary_cross_entropy_with_logits(logits[list(rows), list(ends)], labels)


@torch.no_grad()
def step_scores(model: nn.Module, traces: Sequence[Judged]) -> list[FloatArray]:
    """The logits of every trace's steps."""
    logits = scores(model, traces).double().numpy()
    return [logits[row, trace.ends] for row, trace in enumerate(traces)]


def products(steps: Sequence[FloatArray]) -> FloatArray:
    """Process rewards of solutions: the log of the product of their steps' probabilities."""
    return np.array([-np.logaddexp(0, -row).sum() for row in steps])


def lasts(steps: Sequence[FloatArray]) -> FloatArray:
    """Outcome rewards of solutions: the logit at their last token."""
    return np.array([row[-1] for row in steps])


def process_quality(model: nn.Module, traces: Sequence[Judged]) -> dict[str, float]:
    """Gates of a process reward: AUC of steps and of solutions, calibration error of steps."""
    steps, labels = step_scores(model, traces), np.array([label for trace in traces for label in trace.steps])
    return {
        "step_auc": auc(np.concatenate(steps), labels),
        "solution_auc": auc(products(steps), solved(traces)),
        "calibration_error": calibration_error(np.concatenate(steps), labels),
    }


def outcome_quality(model: nn.Module, traces: Sequence[Judged]) -> dict[str, float]:
    """Gates of an outcome reward: AUC and calibration error of solutions."""
    values = lasts(step_scores(model, traces))
    return {
        "solution_auc": auc(values, solved(traces)),
        "calibration_error": calibration_error(values, solved(traces)),
    }


def solved(traces: Sequence[Judged]) -> BoolArray:
    """Which traces came to the right answer."""
    return np.array([trace.solved for trace in traces])


def auc(values: FloatArray, labels: BoolArray) -> float:
    """Probability that a value with label true is above one with label false, ties counting half (Mann-Whitney)."""
    right, wrong = int(labels.sum()), int((~labels).sum())
    return float((rankdata(values)[labels].sum() - right * (right + 1) / 2) / (right * wrong))


def calibration_error(logits: FloatArray, labels: BoolArray) -> float:
    """Expected calibration error of sigmoid(logits), over BINS bins of equal width."""
    probabilities = np.exp(-np.logaddexp(0, -logits))
    bins = np.minimum((probabilities * BINS).astype(int), BINS - 1)
    gaps = (labels[bins == b].mean() - probabilities[bins == b].mean() for b in np.unique(bins))
    sizes = (float((bins == b).mean()) for b in np.unique(bins))
    return float(sum(size * abs(gap) for size, gap in zip(sizes, gaps, strict=True)))
