"""The cost a method states for the roofline, against what its real passes and packed weights are counted to read."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from analysis.roofline.model import Execution, decode
from analysis.roofline.operators import Precision
from analysis.roofline.shape import ModelShape
from kernels.counting import counting
from suite.cost import DENSE, Drafter, MethodCost, Situation
from suite.harness.meter import CountingMeter, RequestMeter
from suite.methods.attention.base import AttentionMethod
from suite.methods.attention.dense import Dense
from suite.methods.base import Method
from suite.registry import METHODS
from tests.methods.support import CONFIG, tiny_model
from tests.methods.test_contract import ACTING, BUDGET, DRAFTING, NAMES, at_budget, complete, request

AT = Situation(245, CONFIG.layers, CONFIG.hidden, CONFIG.heads, CONFIG.kv_heads, CONFIG.head_dim, 4)
PROMPT, NEW = 240, 10


def stated(name: str, at: Situation = AT, **options: Any) -> MethodCost:
    """At the contract's budget; no model is needed."""
    kind = METHODS.load(name)
    if issubclass(kind, AttentionMethod):
        options = kind.at_budget(BUDGET) | options
    return kind.cost(kind.Config(**options), at)


@pytest.mark.parametrize("name", NAMES)
def test_a_sweep_of_lengths_is_its_points(name) -> None:
    lengths = np.array([1.0, 64.0, 65.0, 245.0, 1e5])
    swept = stated(name, replace(AT, tokens=lengths))
    for field, value in vars(swept).items():
        if value is None or field == "drafter":
            continue
        alone = [getattr(stated(name, replace(AT, tokens=length)), field) for length in lengths]
        assert np.broadcast_to(value, 5) == pytest.approx(np.array(alone, dtype=float)), field


@pytest.mark.parametrize("name", NAMES)
def test_shares_are_shares_and_a_short_text_is_read_whole(name) -> None:
    for tokens in (1.0, 40.0, 1e6):
        cost = stated(name, replace(AT, tokens=tokens))
        for share in (cost.kept, cost.prefill_kept, cost.stored, cost.moved):
            assert 0 < share <= 1
            if name != "dhsa_block":  # which counts in shares of any length
                assert share == 1 or tokens == 1e6 or share == pytest.approx(1 / cost.chains)  # one prompt, all chains


@pytest.mark.parametrize("name", ACTING["decode"])
def test_decode_reads_what_is_stated(name) -> None:
    """Keys per query head exactly; of query heads that choose apart no more than stated; the index; what stays."""
    meter = CountingMeter(CONFIG.kv_bytes_per_token(4))
    complete(name, [request("a", PROMPT, new=NEW)], meter=meter)
    kv, cost = meter.kv_samples()[0], stated(name)
    assert kv.selected_retention_per_query_head == pytest.approx(float(cost.kept), rel=0.12)
    assert kv.selected_retention <= 1.05 * cost.moved or name == "actqkv"  # 5%: what waits for its block to fill
    index = kv.read_bytes_per_step - kv.selected_retention * kv.full_bytes
    if name == "chunkllm":  # its chunks end where the untrained head says; the longest are stated
        assert index >= cost.index_bytes > 0
    else:
        assert index == pytest.approx(float(cost.index_bytes), rel=0.2, abs=0.02 * kv.full_bytes)
    assert kv.stored_retention == pytest.approx(float(cost.stored), abs=0.25)


@pytest.mark.parametrize("name", [*ACTING["prefill"], "dense"])
def test_prefill_computes_at_least_what_is_stated(name) -> None:
    """FLOPs of the attention kernels: whole blocks and the densely read ends come on top."""

    def flops(which: str) -> float:
        method, config = at_budget(which)
        with counting() as counter, method.attach(tiny_model(), config) as generator:
            list(generator.generate([request("a", 512, new=1)], RequestMeter()))
        return sum(cost.flops for kind, cost in counter.costs.items() if "prefill" in kind or kind == "flash_decode")

    share = flops(name) / flops("dense")
    assert 0.95 * float(stated(name, replace(AT, tokens=512.0)).prefill_kept) <= share


@pytest.mark.parametrize("name", DRAFTING)
def test_no_round_drafts_more_than_stated(name) -> None:
    """A chain of specmquant may outgrow the shortest one by the depth of a tree."""
    done = complete(name, [request("a", 150, new=40)])[0]
    more = METHODS.load(name).Config().depth if name == "specmquant" else 0
    assert 0 < done.drafts.drafted <= done.drafts.rounds * (stated(name).drafted + more)


@pytest.mark.parametrize("name", [name for name, entry in METHODS.items() if entry.family == "weights"])
def test_packed_layers_weigh_what_is_stated(name, tmp_path) -> None:
    """Codes, tables, scales and the sparse part, of a model whose rows fill whole groups."""
    wide = replace(CONFIG, hidden=512, intermediate=512, layers=1, heads=8, kv_heads=4, head_dim=64)
    text = tmp_path / "calibration.txt"
    text.write_text("".join(chr(32 + (i * i // 7 + i) % 90) for i in range(1500)))
    kind, model = METHODS.load(name), tiny_model(wide, torch.bfloat16)
    config = kind.Config(**({"data": text} if kind.calibrates else {}))
    method = kind()
    method.prepare(model, config)
    shape = ModelShape(1, 512, 512, 8, 4, 64, 128)
    step = decode(shape, Precision(), batch=1, context=1, execution=Execution(method=method.cost(config, AT)))
    layers = sum(op.weight_bytes for op in step if op.name.endswith("_proj"))
    assert method.weight_bytes() == pytest.approx(layers, rel=0.01)


def test_a_drafter_is_a_model_or_layers_of_the_model() -> None:
    assert stated("draft_model").drafter == Drafter(4, layers=2, shared=True)  # of 3 one is left out
    assert stated("draft_model", drafter="llama-3.2-1b").drafter == Drafter(4, "llama-3.2-1b", layers=2)
    assert stated("draft_model", drafter="distilled-w4").drafter == Drafter(4, layers=4, vocab=16384, weight_bits=4.125)
    assert stated("specmquant").drafter == Drafter(2, layers=4, vocab=16384, weight_bits=4.125)
    assert stated("eagle").drafter == Drafter(3, vocab=16384)
    assert stated("chimera").drafter == Drafter(4, vocab=16384)
    assert stated("lookahead").drafter is None


def test_a_combination_costs_what_its_parts_change() -> None:
    kind = METHODS.load("w4g128+streaming+ngram")
    cost = kind.cost(kind.Config(**{"streaming.sinks": 4, "streaming.window": 60, "ngram.length": 5}), AT)
    assert (cost.weight_bits, cost.drafted) == (4.125, 5)
    assert cost.kept == cost.stored == 64 / 245


def test_a_method_that_states_nothing_is_dense() -> None:
    """So is a plug-in written before there were costs."""

    class Mine(Method):
        def attach(self, model, config):
            raise NotImplementedError

    assert Mine.cost(Mine.Config(), AT) == DENSE
    assert Dense.cost(Dense.Config(), AT) == DENSE
