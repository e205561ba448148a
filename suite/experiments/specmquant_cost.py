"""What verification costs by precision, measured and from the roofline, and the cost model of the three ways to draft.

r(T) is the time of a pass over T tokens over that of one token. Times of the cost model are in units of one step of
the target as it is (int4, or bf16).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch

from analysis.hardware import load_hardware
from analysis.roofline.model import Machine, forward, step_seconds
from analysis.roofline.operators import Precision
from analysis.roofline.operators import linear as product
from analysis.roofline.predict import datasheet_machine
from analysis.roofline.shape import ModelShape
from suite.experiments import drafting
from suite.experiments.base import Workbench
from suite.experiments.drafting import CONTEXT, WIDTHS, Passes, Record, VerifyCost
from suite.methods.decoding.specmquant import MiddleFigures
from suite.methods.weights.base import Site, swapped
from suite.methods.weights.linear import plain_linears
from suite.methods.weights.w4g128 import W4G128
from suite.models.config import ModelConfig
from suite.models.decoder import Decoder
from suite.models.language_model import LanguageModel

INT4 = 0.5 + 2 / 128  # bytes per weight, scale included
PRECISIONS = {"16 bit": 2.0, "int4": INT4}
WIDE = ModelConfig("llama", 2, 4096, 4096, 32, 8, 128, 256, 4096)
"""Two layers of 4096 x 4096 matrices, where the traffic of weights is nearly all there is."""
GPUS = ("a100-sxm-80", "rtx-3090")  # those of the paper

Costs = Mapping[str, VerifyCost]
"""By precision."""


@contextmanager
def at_precision(model: LanguageModel, name: str) -> Iterator[None]:
    """The model in int4, or as it is."""
    if name != "int4":
        yield
        return
    weights = W4G128()
    weights.prepare(model, weights.Config())
    with weights.attach(model, weights.Config()):
        yield


def wide_model(model: LanguageModel) -> LanguageModel:
    """Random weights in bf16 in another model's place: for times, not for texts."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        decoder = Decoder(WIDE).cast_weights(torch.bfloat16)
    return replace(model, name="two random layers of 4096 x 4096", decoder=decoder, origin="random weights")


def race_precisions(model: LanguageModel, bench: Workbench) -> dict[str, Passes]:
    """All widths in both precisions, which take turns round by round."""
    decoder, found = model.decoder, {name: Passes(model) for name in PRECISIONS}
    packed = {
        name: W4G128().quantize(name, linear.weight, Site(()), None) for name, linear in plain_linears(decoder).items()
    }
    for turn in range(drafting.ROUNDS + 1):
        bench.tick(f"{model.name}: passes over trees, round {turn} of {drafting.ROUNDS}")
        found["16 bit"].round(kept=turn > 0)
        with swapped(decoder, packed):
            found["int4"].round(kept=turn > 0)
    return found


def ratios(passes: Passes, width: int) -> dict[tuple[str, int], float]:
    """r(T), round by round."""
    pairs = zip(passes.pass_s[width], passes.pass_s[1], strict=True)
    return {("round", turn): wide / one for turn, (wide, one) in enumerate(pairs)}


def roofline_ratio(shape: ModelShape, machine: Machine, weight_bytes: float, width: int) -> float:
    """r(T) of the analytic model: layers of this many bytes per weight, embedding and head in 16 bits."""

    def seconds(new: int) -> float:
        layers = forward(shape, Precision(weight_bytes), batch=1, new=new, prefix=CONTEXT, logit_rows=0)
        head = product("lm_head", new, shape.hidden, shape.vocab, Precision())
        return float(step_seconds([*layers, head], machine))

    return seconds(width) / seconds(1)


def machines(model: LanguageModel, cost: VerifyCost) -> dict[str, Machine]:
    """The paper's GPUs, and this machine with the ceilings its own 16-bit passes reach."""
    one, most = cost.pass_s[1], max(WIDTHS)
    numbers = sum(p.numel() for p in model.decoder.layers.parameters()) + model.decoder.head.weight.numel()
    here = Machine("this machine", 2 * numbers * most / cost.pass_s[most], 2 * numbers / one)
    return {here.name: here} | {name: datasheet_machine(load_hardware(name), Precision()) for name in GPUS}


@dataclass(frozen=True)
class Parts:
    """One row of the cost model: tokens per round over what a round costs, in steps of the target."""

    tau: float
    draft: float
    verify: float
    words: str

    @property
    def speedup(self) -> float:
        """Over plain decoding."""
        return self.tau / (self.draft + self.verify)

    def __str__(self) -> str:
        return f"{self.tau:.2f} / ({self.words}) = {self.speedup:.2f}"


def draft_parts(record: Record, cost: VerifyCost) -> Parts:
    """A tree or a chain: D c_E + r(N), or g c_m + r(g + 1)."""
    draft, verify = record.draft_s / cost.step_s, cost.round_ratio(record.width)
    return Parts(record.tau, draft, verify, f"{draft:.2f} + r({record.width:.0f}) {verify:.2f}")


def hier_parts(record: Record, figures: MiddleFigures, cost: VerifyCost) -> Parts:
    """R (D c_E + c_m r_m(N)) + r(g + 1); what opens a chain after a full acceptance is in neither bracket."""
    rounds = figures.rounds / record.rounds
    expand, middle = (ns / figures.rounds / 1e9 / cost.step_s for ns in (figures.expand_ns, figures.pass_ns))
    draft, verify = record.draft_s / cost.step_s, cost.round_ratio(record.width)
    opening = draft - rounds * (expand + middle)
    words = f"{rounds:.2f} x ({expand:.2f} + {middle:.2f}) + {opening:.2f} + r({record.width:.0f}) {verify:.2f}"
    return Parts(record.tau, draft, verify, words)


def at_paper_costs(tree: Record, hier: Record, figures: MiddleFigures, ratio: Callable[[float], float]) -> float:
    """HierSpec over a tree draft where the middle model costs 1/9 of the target, and drafters next to nothing.

    The taus are those measured here; `ratio` is r(T) of weights of the target's kind, which the middle model's are too.
    """
    rounds, nodes = figures.rounds / figures.chains, tree.width
    return hier.tau / (rounds * ratio(nodes) / 9 + ratio(hier.width)) / (tree.tau / ratio(nodes))
