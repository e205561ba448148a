"""`lab-long`: `lab-recall` trained on to 512 tokens and to both tasks of `lab-longbench`, to be read at 16K to 128K."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from suite.models.checkpoints.manifest import TrainingPlan
from suite.models.decoder import Decoder
from suite.models.loaders.lab import lab_recall
from suite.models.recipes.lab import DEV_SEED, LabRecipe, answer_accuracy
from suite.models.recipes.lab_recall import LabRecall
from workloads.lab import QUERY_TOKENS, BoolArray, IntArray, Script, compose_batch
from workloads.lab_longbench import SCRIPTS, LabLongBench, vocabulary

CONTEXT = 512  # tokens: the longest training sequence
SHORTEST, EASY = 64, 128  # every sequence of the first steps is this long
GROWING = (0.05, 0.45)  # the shares of training between which the longest sequence grows from EASY to CONTEXT
MOST_FACTS = 16  # per training sequence, each asked for once: an answer is never in the questions before
DEV_ITEMS = 128

PLAN = TrainingPlan(
    steps=2500, batch=5, lr=2e-3, warmup=100, weight_decay=0.01, clip=1.0, seed=0, eval_every=100, beta2=0.98
)  # fmt: skip


class LabLong(LabRecipe):
    """The committed `lab-recall` with one more token, "@", that starts as a copy of "?".

    A step has `plan.batch` times CONTEXT tokens, whatever the length of its sequences. From nothing, models of this
    size and of twice the width had found the second digit through the first when they were stopped after 3M tokens.
    """

    name = "lab-long"
    version = "1"
    summary = "lab-recall (3 layers, hidden 64, 4 heads of 16) trained on to context 512 and the tasks of lab-longbench"
    selection = (
        "of the tries before it - three from nothing, all stopped early, two that started from lab-recall - none was "
        "as good at 512 tokens; in between the passage's number moved from its head to its foot, which is easier; the "
        "weights are those of the best of 25 evaluations on 128 items per task, a little optimistic; accuracies beyond "
        "512 tokens were looked at after the training only"
    )
    dev_figure = f"accuracy_{CONTEXT}"
    workload = LabLongBench
    config = replace(LabRecall.config, vocab=len(vocabulary()), window=CONTEXT)

    def __init__(self, plan: TrainingPlan = PLAN) -> None:
        super().__init__(plan)

    def words(self) -> Sequence[str]:
        return vocabulary()

    def build(self) -> Decoder:
        """A decoder with the weights of `lab-recall`; the next batch is that of the first step."""
        self._steps = 0
        weights = lab_recall("fp32").decoder.state_dict()
        for name in ("embedding.weight", "head.weight"):
            weights[name] = torch.cat((weights[name], weights[name][[SCRIPTS["qa"].ask]]))
        model = Decoder(self.config)
        model.load_state_dict(weights)
        return model

    def batch(self, rng: np.random.Generator) -> tuple[IntArray, BoolArray]:
        """Sequences of one task and of one random length, SHORTEST to what the curriculum has come to."""
        script = list(SCRIPTS.values())[int(rng.integers(len(SCRIPTS)))]
        length = int(rng.integers(SHORTEST, longest(self._steps / self.plan.steps), endpoint=True))
        self._steps += 1
        most = min(MOST_FACTS, (length - 1 - QUERY_TOKENS) // script.fact_tokens)
        facts = int(rng.integers(2, most, endpoint=True))
        room = (length - 1 - facts * script.fact_tokens) // QUERY_TOKENS
        return compose_batch(rng, script, self.plan.batch * CONTEXT // length, length, min(room, facts), facts)

    def evaluate(self, model: Decoder) -> dict[str, float]:
        """Accuracy of each task, and the lesser of the two, on items of the longest trained length."""
        found = {task: digit_accuracy(model, script) for task, script in SCRIPTS.items()}
        return {**found, self.dev_figure: min(found.values())}


def longest(progress: float) -> int:
    """Tokens of the longest sequence when this share of the steps is done: EASY, then growing, then CONTEXT."""
    return round(float(np.interp(progress, GROWING, (EASY, CONTEXT))))


def digit_accuracy(model: Decoder, script: Script) -> float:
    """Teacher-forced, 0-1, on DEV_ITEMS fresh items of CONTEXT tokens with MOST_FACTS facts."""
    rng = np.random.default_rng([DEV_SEED, script.ask])
    return answer_accuracy(model, compose_batch(rng, script, DEV_ITEMS, CONTEXT, 1, MOST_FACTS))
