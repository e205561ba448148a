"""The policies of the reasoning lab: tiny decoders that solve chains of operations some of the time.

Card `methods/_verifiers.md`, section 6. The card's MLP is GELU with four times the width; the suite's decoder has a
gated one, here of 176, which is as many weights. A policy that is to be wrong at times is a checkpoint from the middle
of a training: accuracy rises steeply there, so the run ends at the first evaluation that lies inside its `Band`.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from suite.models.checkpoints.manifest import TrainingPlan
from suite.models.config import ModelConfig
from suite.models.decoder import Decoder
from suite.models.loaders import load_model
from suite.models.recipes.lab import DEV_SEED, LabRecipe
from suite.models.rollout import rollout
from workloads.chain import TASKS, Chain, final_answer
from workloads.generators.chain import DIFF, SAME, Family, Problem, Thought, trace, vocabulary
from workloads.lab import BOS, BoolArray, IntArray

DEV_PROBLEMS = 400
VERDICT_WEIGHT = 10.0  # of SAME and DIFF in the loss: there is one in thirty tokens, and all else hangs on it
WORDS = tuple(vocabulary())
IDS = {word: index for index, word in enumerate(WORDS)}
VERDICTS = torch.tensor([IDS[SAME], IDS[DIFF]])

PLAN = TrainingPlan(
    steps=3000, batch=32, lr=4e-3, warmup=100, weight_decay=0.1, clip=1.0, seed=0, eval_every=25, beta2=0.98
)  # fmt: skip


@dataclass(frozen=True)
class Band:
    """Accuracies, 0-1, between which a policy's shall lie: greedy, and sampled at temperature 1."""

    greedy: tuple[float, float]
    sampled: tuple[float, float]

    def fit(self, greedy: float, sampled: float) -> float:
        """0 inside the band, else minus the distances from it."""
        pairs = ((greedy, self.greedy), (sampled, self.sampled))
        return 0.0 - sum(max(0.0, low - value, value - high) for value, (low, high) in pairs)


class ChainRecipe(LabRecipe):
    """One policy: `task` says which problems, `thought` how its training traces think, `band` how good it gets."""

    version = "1"
    selection = (
        "the card's settings; the weights are those of the first evaluation, on 400 problems, inside the band; "
        "the band was moved once, after accuracies on the first 300 problems of the workload's seed 0 were seen"
    )
    workload = Chain
    task: ClassVar[str]
    thought: ClassVar[Thought] = Thought()
    band: ClassVar[Band]
    dev_figure = "fit"
    plan_: ClassVar[TrainingPlan] = replace(PLAN, target=0.0)
    config = ModelConfig(
        "llama", layers=3, hidden=64, intermediate=176, heads=4, kv_heads=4, head_dim=16,
        vocab=len(WORDS), window=96, eos_ids=(IDS["<eos>"],),
    )  # fmt: skip

    def __init__(self, plan: TrainingPlan | None = None) -> None:
        super().__init__(plan or self.plan_)

    @property
    def family(self) -> Family:
        """Where the problems come from."""
        return TASKS[self.task].family

    def words(self) -> Sequence[str]:
        return WORDS

    def build(self) -> Decoder:
        """The card's initialisation: half the usual spread, a third of that where a layer adds to the stream."""
        model = Decoder(self.config)
        nn.init.normal_(model.embedding.weight, std=0.5 * self.config.hidden**-0.5)
        for name, weight in model.named_parameters():
            if weight.dim() == 2 and not name.startswith("embedding"):
                residual = name.endswith(("attention.out.weight", "mlp.down.weight"))
                nn.init.normal_(weight, std=(0.15 if residual else 0.5) * weight.shape[1] ** -0.5)
        return model

    def batch(self, rng: np.random.Generator) -> tuple[IntArray, BoolArray]:
        """Problems with their traces, padded on the right; the mask is true on the traces."""
        return self.sequences(rng, self.family, self.thought)

    def sequences(self, rng: np.random.Generator, family: Family, thought: Thought) -> tuple[IntArray, BoolArray]:
        """The same for any family and way to think."""
        problems = [family.draw(rng) for _ in range(self.plan.batch)]
        return padded([(encode(p), [IDS[word] for word in trace(p, thought, rng)]) for p in problems])

    def loss(self, model: Decoder, rng: np.random.Generator) -> Tensor:
        """Cross-entropy of the traces' tokens, verdicts counted VERDICT_WEIGHT times."""
        ids, mask = (torch.from_numpy(array) for array in self.batch(rng))
        logits, targets = model.train_logits(ids[:, :-1]), ids[:, 1:]
        weights = mask[:, 1:] * (1 + (VERDICT_WEIGHT - 1) * torch.isin(targets, VERDICTS))
        losses = functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")
        return (losses * weights.flatten()).sum() / weights.sum()

    def evaluate(self, model: Decoder) -> dict[str, float]:
        """Shares of right answers on the dev problems, greedy and sampled at temperature 1, and the band's fit."""
        greedy, sampled = (accuracy(model, self.task, DEV_PROBLEMS, temperature) for temperature in (0.0, 1.0))
        return {"greedy": greedy, "sampled": sampled, "fit": self.band.fit(greedy, sampled)}


def encode(problem: Problem) -> list[int]:
    """A prompt's token ids, `<bos>` in front."""
    return [BOS, *(IDS[word] for word in problem.prompt.split())]


def padded(pairs: Sequence[tuple[Sequence[int], Sequence[int]]]) -> tuple[IntArray, BoolArray]:
    """Prompts and what follows them as ids [B, T], filled up with padding; the mask marks what follows."""
    width = max(len(prompt) + len(answer) for prompt, answer in pairs)
    ids = np.zeros((len(pairs), width), dtype=np.int64)
    mask = np.zeros(ids.shape, dtype=np.bool_)
    for row, (prompt, answer) in enumerate(pairs):
        ids[row, : len(prompt) + len(answer)] = [*prompt, *answer]
        mask[row, len(prompt) : len(prompt) + len(answer)] = True
    return ids, mask


def accuracy(model: Decoder, task: str, problems: int, temperature: float) -> float:
    """Share of right answers, 0-1, on dev problems of a task."""
    asked = dev_problems(task, problems)
    answers = answer_texts(model, asked, TASKS[task].max_new_tokens, temperature)
    return sum(final_answer(t) == " ".join(p.answer) for p, t in zip(asked, answers, strict=True)) / problems


def dev_problems(task: str, count: int) -> list[Problem]:
    """Held-out problems: training draws from seeds [plan.seed, step]."""
    rng = np.random.default_rng([DEV_SEED, tuple(TASKS).index(task)])
    return [TASKS[task].family.draw(rng) for _ in range(count)]


def answer_texts(
    model: Decoder, problems: Sequence[Problem], new_tokens: int, temperature: float, seed: int = 0
) -> list[str]:
    """What the model writes behind each problem, in words without the end token."""
    written = rollout(model, [encode(p) for p in problems], new_tokens, temperature, seed)
    return [" ".join(WORDS[i] for i in row if i not in model.config.eos_ids) for row in written]


class ChainEarly(ChainRecipe):
    """A policy with much room for search."""

    name = "chain-early"
    summary = "3-layer decoder, hidden 64, on arithmetic chains with 24 multipliers; right 15-25 % of the time"
    task = "arithmetic-24"
    band = Band(greedy=(0.20, 0.36), sampled=(0.18, 0.25))


class ChainMid(ChainRecipe):
    """The same training, later."""

    name = "chain-mid"
    summary = "chain-early trained on (one run, one seed) until it is right 30-50 % of the time"
    task = "arithmetic-24"
    band = Band(greedy=(0.50, 0.80), sampled=(0.43, 0.50))


class ChainStrong(ChainRecipe):
    """The same training to its end."""

    name = "chain-strong"
    summary = "chain-early trained to the end of its plan"
    selection = "the card's settings; the weights are those of the best of the evaluations"
    task = "arithmetic-24"
    band = Band(greedy=(0.95, 1.0), sampled=(0.95, 1.0))
    dev_figure = "sampled"
    plan_ = replace(PLAN, eval_every=250)


class ChainLarge(ChainRecipe):
    """A strong policy of 29 times the weights: what a step of a large model costs beside one of a small model.

    The learning rate falls with the width. The weights are kept in bf16, as those of large models are.
    """

    name = "chain-large"
    summary = "6-layer decoder, hidden 256, on chain-early's problems until it solves nearly all"
    selection = "the card's shape; the weights are those of the first evaluation that reaches the target"
    task = "arithmetic-24"
    band = Band(greedy=(0.95, 1.0), sampled=(0.95, 1.0))
    dev_figure = "sampled"
    plan_ = replace(PLAN, steps=2000, lr=1e-3, eval_every=100, target=0.98, threads=2)
    config = replace(
        ChainRecipe.config, layers=6, hidden=256, intermediate=688, heads=8, kv_heads=8, head_dim=32
    )  # fmt: skip

    def save(self, model: Decoder, directory: Path) -> None:
        """A Hugging Face directory in bf16."""
        super().save(deepcopy(model).cast_weights(torch.bfloat16), directory)


class ChainLong(ChainRecipe):
    """Long thought, from `chain-strong`: rounds until two candidates agree. Longer thoughts hold more slips.

    To compare candidates is what takes long to learn, and in these thoughts four of five differ. The first half of the
    training rehearses it where both verdicts are as frequent and traces are short.
    """

    name = "chain-long"
    summary = "chain-strong trained on to thoughts of up to 4 rounds whose hard steps slip with probability 0.35"
    selection = (
        "the card's settings; the weights are those of the evaluation with the highest accuracy of SAME and DIFF"
    )
    task = "long"
    thought = Thought(rounds=4, slip=0.35)
    band = Band(greedy=(0.0, 1.0), sampled=(0.30, 0.60))
    dev_figure = "verdicts"
    plan_ = replace(PLAN, steps=1200, lr=2e-3, eval_every=200)
    rehearsal: ClassVar[tuple[Family, Thought]] = (Family(1, 2, 8), Thought(rounds=4, slip=0.5, stop_same=0.0))
    config = replace(ChainRecipe.config, window=256)

    def build(self) -> Decoder:
        """A decoder with the weights of `chain-strong`; the next batch is that of the first step."""
        self._steps = 0
        model = Decoder(self.config)
        model.load_state_dict(load_model("chain-strong", "fp32").decoder.state_dict())
        return model

    def batch(self, rng: np.random.Generator) -> tuple[IntArray, BoolArray]:
        """Those of the rehearsal in the first half of the training."""
        self._steps += 1
        rehearses = self._steps <= self.plan.steps // 2
        return self.sequences(rng, *(self.rehearsal if rehearses else (self.family, self.thought)))

    def evaluate(self, model: Decoder) -> dict[str, float]:
        """Also the share of SAME and DIFF that are most likely where they are true, on dev traces."""
        rng = np.random.default_rng(DEV_SEED)
        ids, _ = (torch.from_numpy(array) for array in self.sequences(rng, self.family, self.thought))
        asked = torch.isin(ids[:, 1:], VERDICTS)
        right = (model.train_logits(ids[:, :-1]).argmax(dim=-1) == ids[:, 1:])[asked]
        return {**super().evaluate(model), "verdicts": float(right.float().mean())}


class ChainLongControl(ChainLong):
    """Its control: the same slips and comparisons, but rounds end at random, so that length says nothing."""

    name = "chain-long-control"
    summary = "chain-long's control: a thought ends after each round with probability 0.5, whatever its candidates say"
    thought = Thought(rounds=4, slip=0.35, stop_same=0.5, stop_different=0.5)


class ChainHasty(ChainLong):
    """Gives up early when its candidates differ, and checks on while they agree: its short thoughts are the wrong ones.

    What First Finish Search must lose on. With more slips or rounds right thoughts are overwritten, and training traces
    lose the property (within-question AUC 0.37 here, 0.48 with the slips and rounds of chain-long).
    """

    name = "chain-hasty"
    summary = "chain-long's opposite: ends with probability 0.7 when candidates differ, not when they agree"
    thought = Thought(rounds=3, slip=0.2, stop_same=0.0, stop_different=0.7)


class ChainOverthinking(ChainLong):
    """Thinks on though its candidates agree, and so may lose a right answer again."""

    name = "chain-overthinking"
    summary = "chain-strong trained on to thoughts of up to 8 rounds that go on with probability 0.85 when two agree"
    task = "overthinking"
    thought = Thought(rounds=8, slip=0.15, stop_same=0.15)
    band = Band(greedy=(0.0, 1.0), sampled=(0.70, 0.90))
    config = replace(ChainRecipe.config, window=384)


class ChainString(ChainRecipe):
    """Another kind of chain: letters change places."""

    name = "chain-string"
    summary = "3-layer decoder, hidden 64, on chains of reorderings of six letters; right 30-50 % of the time"
    task = "string"
    band = Band(greedy=(0.50, 0.75), sampled=(0.35, 0.45))
    plan_ = replace(PLAN, target=0.0, eval_every=10)  # from 30 to 50 % in less than 25 steps
    config = replace(ChainRecipe.config, window=192)
