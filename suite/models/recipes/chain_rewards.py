"""The lab's reward models, trained on what its policies write: two process rewards and an outcome reward.

Their labels are the oracle's, of fresh traces at every step; what a reward model reads is the trace alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

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
from suite.models.loaders import lab, load_model
from suite.models.recipes.chain import IDS, WORDS, ChainStrong, dev_problems, encode, padded
from suite.models.recipes.lab import word_tokenizer
from suite.models.rewards import LikelihoodPRM, TokenReward, right_or_wrong, step_ends
from suite.models.rollout import rollout
from workloads.chain import TASKS, Chain, final_answer
from workloads.generators.chain import EOS, Problem, Thought, corrected, lines, trace
from workloads.lab import BoolArray

TASK = "arithmetic-24"
POLICIES = ("chain-early", "chain-mid")  # whose traces, at temperature 1, are judged
SLIP = 0.3  # of hard steps: about as many chains go wrong as the policies'
TAUGHT = 0.5  # weight of saying what is right, beside the labels
NO_TOKEN = -100  # a target that `cross_entropy` leaves out
POOL = 8  # batches sampled at a time: a decode step costs about the same for 32 rows and for 256
DEV_TRACES = 300
BINS = 10

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Judged:
    """A trace with its prompt as token ids, and whether its answer is right.

    Of every token `labels` says whether its line, so far, is right given the lines before it, and `corrected` what
    would be right there, or NO_TOKEN.
    """

    prompt: list[int]
    written: list[int]
    labels: list[bool]
    corrected: list[int]
    solved: bool

    @property
    def ends(self) -> list[int]:
        """Where the steps end, counted from the prompt's first token."""
        return step_ends([*self.prompt, *self.written], len(self.prompt))

    @property
    def steps(self) -> list[bool]:
        """The labels of the steps: those of their last tokens."""
        return [self.labels[end - len(self.prompt)] for end in self.ends]


def judged(policy: Decoder, problems: Sequence[Problem], temperature: float, seed: int) -> list[Judged]:
    """One trace of the policy for each problem, judged by the oracle."""
    prompts = [encode(problem) for problem in problems]
    traces = rollout(policy, prompts, TASKS[TASK].max_new_tokens, temperature, seed)
    return [oracle(problem, [WORDS[i] for i in row]) for problem, row in zip(problems, traces, strict=True)]


def slipped(problems: Sequence[Problem], rng: np.random.Generator) -> list[Judged]:
    """Right traces but for hard steps that came to a random number with probability SLIP."""
    return [oracle(problem, trace(problem, Thought(slip=SLIP), rng)) for problem in problems]


def oracle(problem: Problem, words: Sequence[str]) -> Judged:
    """A trace in words, judged."""
    written, labels, ids = lines(" ".join(words)), [], []
    for line, right in zip(written, corrected(problem, written), strict=True):
        labels += [line[:count] == right[:count] for count in range(1, len(line) + 1)]
        ids += [IDS[word] for word in right[: len(line)]] + [NO_TOKEN] * (len(line) - len(right))
    solved = final_answer(" ".join(word for word in words if word != EOS)) == " ".join(problem.answer)
    return Judged(encode(problem), [IDS[word] for word in words], labels, ids, solved)


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
        """Fresh traces of the policies."""
        return self.fresh(rng, self.plan.batch)

    def fresh(self, rng: np.random.Generator, count: int) -> list[Judged]:
        """`count` traces, of one policy and the other as many."""
        while len(self._pool) < count:
            for policy in self._policies:
                problems = [TASKS[TASK].family.draw(rng) for _ in range(POOL * count // len(POLICIES))]
                self._pool += judged(policy, problems, 1.0, int(rng.integers(2**31)))
            self._pool = [self._pool[i] for i in rng.permutation(len(self._pool))]
        drawn, self._pool = self._pool[:count], self._pool[count:]
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
    """`chain-prm`: `chain-strong` and two layers more, trained to tell at every token whether its line is still right.

    To compare what is written with what a step comes to is not learnt from labels alone (AUC 0.70 after 500 steps,
    0.62-0.65 in the card's trial): the new layers are taught as well to say what is right where something stands.
    """

    name = "chain-prm"
    summary = "process reward: chain-strong's 3 layers and 2 new ones, trained on traces of its policies and with slips"
    selection = "settled after four short tries on the dev traces; the weights are those of the best evaluation"
    layers: ClassVar[int] = 5
    plan_ = TrainingPlan(
        steps=1500, batch=64, lr=3e-3, warmup=50, weight_decay=0.1, clip=1.0, seed=0, eval_every=100, beta2=0.98
    )  # fmt: skip

    def build(self) -> TokenReward:
        """A decoder whose new layers start by adding nothing."""
        model = Decoder(replace(ChainStrong.config, layers=self.layers))
        known = self.known()
        for name, weight in model.named_parameters():
            if name not in known and name.endswith(("attention.out.weight", "mlp.down.weight")):
                nn.init.zeros_(weight)
        model.load_state_dict(known, strict=False)
        return TokenReward(model)

    def known(self) -> Mapping[str, Tensor]:
        """The weights of the first layers."""
        return load_model("chain-strong", "fp32").decoder.state_dict()

    def batch(self, rng: np.random.Generator) -> list[Judged]:
        """As many traces with slips as the policies wrote: their own errors are few and alike."""
        half = self.plan.batch // 2
        return [*self.fresh(rng, half), *slipped([TASKS[TASK].family.draw(rng) for _ in range(half)], rng)]

    def loss(self, model: TokenReward, rng: np.random.Generator) -> Tensor:
        """Cross-entropies of the labels and, TAUGHT times, of what would be right, over all written tokens."""
        traces = self.batch(rng)
        ids, mask = along(traces, "written")
        logits = model.decoder.train_logits(ids)[mask]
        labels, rights = (along(traces, values)[0][mask] for values in ("labels", "corrected"))
        told = functional.binary_cross_entropy_with_logits(right_or_wrong(logits), labels.float())
        return told + TAUGHT * functional.cross_entropy(logits, rights, ignore_index=NO_TOKEN)

    def describe(self, model: TokenReward) -> dict[str, Any]:
        config = model.decoder.config
        return {**asdict(config), "parameters": sum(p.numel() for p in model.parameters())}

    def save(self, model: TokenReward, directory: Path) -> None:
        save_llama(model.decoder, word_tokenizer(WORDS), directory)


class OutcomeRecipe(ProcessRecipe):
    """`chain-orm`: `chain-prm` and a layer more, trained to say at the last token whether the answer is right."""

    name = "chain-orm"
    summary = "outcome reward: chain-prm's 5 layers and a new one, trained on whether the answer is right"
    selection = RewardRecipe.selection
    layers = 6
    plan_ = replace(ProcessRecipe.plan_, steps=400, lr=1e-3)

    def known(self) -> Mapping[str, Tensor]:
        return lab.reward("chain-prm").decoder.state_dict()

    def loss(self, model: TokenReward, rng: np.random.Generator) -> Tensor:
        traces = self.batch(rng)
        logits = scores(model, traces)
        ends = torch.tensor([row.ends[-1] for row in traces])
        labels = torch.tensor([float(row.solved) for row in traces])
        return functional.binary_cross_entropy_with_logits(logits[torch.arange(len(traces)), ends], labels)

    def quality(self, model: nn.Module, traces: Sequence[Judged]) -> dict[str, float]:
        return outcome_quality(model, traces)


def along(traces: Sequence[Judged], values: Literal["written", "labels", "corrected"]) -> tuple[Tensor, Tensor]:
    """Prompts and a value for every token behind them as ids [B, T]; the mask [B, T] is true on the latter."""
    ids, mask = padded([(row.prompt, getattr(row, values)) for row in traces])
    return torch.from_numpy(ids), torch.from_numpy(mask)


def scores(model: nn.Module, traces: Sequence[Judged]) -> Tensor:
    """A reward model's logits [B, T] on traces."""
    ids, _ = along(traces, "written")
    logits: Tensor = model(ids, [len(row.prompt) for row in traces])
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
