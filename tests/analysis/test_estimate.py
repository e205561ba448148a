"""Phases, sweeps, several devices, memory, energy and money."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from analysis.hardware import load_hardware
from analysis.roofline.estimate import Setup, joules, memory, price_per_million, seconds
from analysis.roofline.model import (
    Execution,
    Machine,
    Operator,
    decode,
    operator_times,
    prefill,
    step_seconds,
    total_flops,
    verify,
)
from analysis.roofline.operators import Precision
from analysis.roofline.parallel import Parallel
from analysis.roofline.predict import datasheet_machine, prediction_rows
from analysis.roofline.shape import load_preset
from suite.cost import DENSE, Drafter, MethodCost, Situation
from suite.errors import InputError

BF16 = Precision()
H100 = datasheet_machine(load_hardware("h100-sxm"), BF16)
LLAMA3, LLAMA70, DEEPSEEK = load_preset("llama-3-8b"), load_preset("llama-2-70b"), load_preset("deepseek-v3")
PLAIN = Setup(LLAMA3, BF16, H100)


def always(cost: MethodCost):
    return lambda situation: cost


# ---- sweeps ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["llama-3-8b", "gemma-2-9b", "deepseek-v3", "mixtral-8x7b", "llama-4-maverick"])
def test_a_sweep_is_its_points(name: str) -> None:
    """Every figure, to the last bit, on shapes with windows, latents and experts."""
    devices = Parallel(tensor=2, pipeline=2)
    method = lambda at: MethodCost(at.share(512), index_bytes=at.tokens * 3.0, prefill_kept=at.prompt_share(512))  # noqa: E731
    setup = Setup(load_preset(name), Precision.of_bits(4, 8, 16), H100, method, parallel=devices, fused=False)
    batch, tokens = (axis.ravel() for axis in np.meshgrid([1.0, 3.0, 64.0], [1.0, 100.0, 5000.0, 40000.0]))
    swept = setup.phases(batch, tokens)
    held, chat = memory(setup, swept, batch, tokens), setup.chat_seconds(batch, tokens, 5)
    for index, (b, t) in enumerate(zip(batch, tokens, strict=True)):
        one = setup.phases(int(b), int(t))
        for phase, times in swept.items():
            found = [np.broadcast_to(time.seconds, batch.shape)[index] for time in times]
            assert found == pytest.approx([float(time.seconds) for time in one[phase]], rel=1e-14)
        assert np.broadcast_to(held.total, batch.shape)[index] == pytest.approx(
            float(memory(setup, one, int(b), int(t)).total), rel=1e-14
        )
        assert chat[index] == pytest.approx(float(setup.chat_seconds(int(b), int(t), 5)), rel=1e-12)


def test_a_chat_is_prefill_and_every_step() -> None:
    steps = sum(step_seconds(decode(LLAMA3, BF16, batch=2, context=1000 + n), H100) for n in range(1, 20))
    first = step_seconds(prefill(LLAMA3, BF16, batch=2, tokens=1000), H100)
    assert PLAIN.chat_seconds(2, 1000, 20) == pytest.approx(first + steps)
    assert PLAIN.chat_seconds(2, 1000, 20, accepted=2.0) == pytest.approx(first + steps / 2)
    assert PLAIN.chat_seconds(2, 1000, 1) == pytest.approx(first)


def test_chunks_read_the_weights_again_and_need_less_memory() -> None:
    whole, chunked = PLAIN.phases(1, 8192), replace(PLAIN, chunk=512).phases(1, 8192)
    weights = [sum(float(time.operator.weight_bytes) for time in phases["prefill"]) for phases in (whole, chunked)]
    head = 2 * LLAMA3.hidden * LLAMA3.vocab
    embedded = 2 * 8192 * LLAMA3.hidden
    assert weights[1] - head - embedded == pytest.approx(16 * (weights[0] - head - embedded), rel=1e-3)
    peaks = [memory(setup, phases, 1, 8192).activations for setup, phases in
             ((PLAIN, whole), (replace(PLAIN, chunk=512), chunked))]  # fmt: skip
    assert peaks[1] < peaks[0] / 10


def test_chunks_of_many_lengths_at_once() -> None:
    """One prompt may end chunks before another: what it would read then is not read."""
    setup = replace(PLAIN, chunk=1000, parallel=Parallel(tensor=2))
    batch, tokens = np.array([1, 4, 2, 2]), np.array([999, 1000, 1001, 7500])
    swept = setup.prefill_seconds(setup.phases(batch, tokens), batch)
    alone = [
        float(setup.prefill_seconds(setup.phases(int(b), int(t)), int(b))) for b, t in zip(batch, tokens, strict=True)
    ]
    assert swept == pytest.approx(alone, rel=1e-12)


# ---- drafts, chains, vectors -----------------------------------------------------------------------------------------


def test_verification_judges_all_drafted_tokens_in_one_pass() -> None:
    """Weights once, logits and attention for every token."""
    step, judged = decode(LLAMA3, BF16, batch=1, context=4096), verify(LLAMA3, BF16, batch=1, context=4096, drafted=7)
    weights = [sum(float(op.weight_bytes) for op in ops if op.name != "embedding") for ops in (step, judged)]
    assert weights[0] == weights[1]
    assert total_flops(judged) == pytest.approx(8 * total_flops(step), rel=1e-3)
    assert next(op for op in judged if op.name == "lm_head").flops == 8 * 2 * 4096 * 128256


def test_a_round_is_a_draft_and_its_verification() -> None:
    cost = MethodCost(drafted=4, drafter=Drafter(4, layers=16))
    setup = Setup(LLAMA3, BF16, H100, always(cost))
    phases = setup.phases(1, 1000)
    half = step_seconds(decode(replace(LLAMA3, layers=16), BF16, batch=1, context=1000), H100)
    assert seconds(phases["draft"]) == pytest.approx(4 * half)
    assert setup.round_seconds(phases) == pytest.approx(4 * half + seconds(phases["verify"]))
    rate = setup.tokens_per_second(phases, 1, accepted=3.0)
    assert rate == pytest.approx(3 / setup.round_seconds(phases))
    short = always(MethodCost(drafted=4, drafter=Drafter(2, layers=1, vocab=16384, weight_bits=4.125)))
    tiny = by_name(Setup(LLAMA3, BF16, H100, short).phases(1, 1000)["draft"])
    assert tiny["q_proj"].weight_bytes == 2 * 4096 * 4096 * 4.125 / 8
    assert tiny["lm_head"].weight_bytes == 2 * 16384 * 4096 * 2
    named = Setup(LLAMA3, BF16, H100, always(cost), drafter=load_preset("llama-3.2-1b"))
    small = step_seconds(decode(load_preset("llama-3.2-1b"), BF16, batch=1, context=1000), H100)
    assert seconds(named.phases(1, 1000)["draft"]) == pytest.approx(4 * small)


def test_layers_that_draft_are_packed_as_the_model_is_and_a_drafter_of_its_own_is_not() -> None:
    cost = MethodCost(drafted=4, drafter=Drafter(4, layers=16, shared=True), weight_bits=4, row_bytes=2)
    plain = replace(cost, weight_bits=None, row_bytes=0.0)
    for drafter, expected in ((None, 0.25), (load_preset("llama-3.2-1b"), 1.0)):
        packed, full = (
            Setup(LLAMA3, BF16, H100, always(one), drafter=drafter).phases(1, 1000)["draft"] for one in (cost, plain)
        )
        weights = [
            next(t.operator for t in times if t.operator.name == "down_proj").weight_bytes for times in (packed, full)
        ]
        assert weights[0] / weights[1] == pytest.approx(expected, rel=1e-3)


def test_chains_share_the_weights_but_not_the_cache() -> None:
    one, four = PLAIN, Setup(LLAMA3, BF16, H100, always(MethodCost(chains=4)))
    alone, together = one.phases(1, 8192)["decode"], four.phases(1, 8192)["decode"]
    kv = [sum(float(time.operator.kv_bytes) for time in times) for times in (alone, together)]
    assert kv[1] == pytest.approx(4 * kv[0])
    assert seconds(together) < 1.3 * seconds(alone)
    assert seconds(four.phases(1, 8192)["prefill"]) == seconds(one.phases(1, 8192)["prefill"])
    assert four.tokens_per_second(four.phases(1, 8192), 1) > 3 * one.tokens_per_second(one.phases(1, 8192), 1)


def test_a_chat_of_chains_reads_its_prompt_once() -> None:
    setup = Setup(LLAMA3, BF16, H100, lambda at: MethodCost(chains=4, read=at.distinct(4)))
    expected = seconds(setup.phases(2, 1000)["prefill"])
    for length in range(1001, 1020):
        method = MethodCost(chains=4, read=(1000 + 4 * (length - 1000)) / (4 * length))
        step = decode(LLAMA3, BF16, batch=2, context=length, execution=Execution(method=method))
        expected += step_seconds(step, H100)
    assert setup.chat_seconds(2, 1000, 20) == pytest.approx(expected)


def test_steering_vectors_are_read_and_added() -> None:
    setup = Setup(LLAMA3, BF16, H100, always(MethodCost(vectors=3)))
    added = next(time for time in setup.phases(2, 100)["decode"] if time.operator.name == "steering").operator
    assert (added.calls, added.flops) == (3, 3 * 2 * 4096)
    assert added.bytes == 3 * (4096 * 2 + 2 * 2 * 4096 * 2)


def test_packed_weights_and_their_tables() -> None:
    """4 bits and a table of 16 halves per output row in the layers; embedding and head stay as they are."""
    setup = Setup(LLAMA3, BF16, H100, always(MethodCost(weight_bits=4, row_bytes=32.0)))
    step = {time.operator.name: time.operator for time in setup.phases(1, 100)["decode"]}
    assert step["q_proj"].weight_bytes == 32 * (4096 * 4096 / 2 + 4096 * 32)
    assert step["lm_head"].weight_bytes == 4096 * 128256 * 2
    assert step["q_proj"].flops == 32 * (2 + 2) * 4096 * 4096  # every weight is looked up and scaled
    layers = LLAMA3.parameters - 2 * 4096 * 128256
    assert memory(setup, setup.phases(1, 100), 1, 100).weights == pytest.approx(
        layers / 2 + 4 * 4096 * 128256, rel=0.01
    )


# ---- several devices -------------------------------------------------------------------------------------------------


def by_name(times: list) -> dict[str, Operator]:
    return {time.operator.name: time.operator for time in times}


def test_tensor_parallelism_divides_every_matrix_and_reduces_twice_a_layer() -> None:
    setup = Setup(LLAMA70, BF16, H100, parallel=Parallel(tensor=8))
    alone, shared = by_name(PLAIN_70.phases(4, 2048)["decode"]), by_name(setup.phases(4, 2048)["decode"])
    for name in ("q_proj", "k_proj", "o_proj", "gate_proj", "down_proj", "lm_head"):
        assert shared[name].weight_bytes == pytest.approx(alone[name].weight_bytes / 8)
        assert shared[name].flops == pytest.approx(alone[name].flops / 8)
    assert shared["attention"].kv_bytes == alone["attention"].kv_bytes / 8
    reduced = shared["all_reduce"]
    assert reduced.calls == 2 * 80 + 1
    assert reduced.link_bytes == pytest.approx(161 * 2 * 7 / 8 * 4 * 8192 * 2)
    assert reduced.link_steps == 161 * 2 * 7


PLAIN_70 = Setup(LLAMA70, BF16, H100)


def test_kv_heads_fewer_than_devices_are_held_twice() -> None:
    setup = Setup(LLAMA3, BF16, H100, parallel=Parallel(tensor=16))
    read = by_name(setup.phases(1, 1000)["decode"])["attention"].kv_bytes
    assert read == by_name(PLAIN.phases(1, 1000)["decode"])["attention"].kv_bytes / 8


def test_messages_take_latency_and_one_direction_of_the_link() -> None:
    """450 GB/s of the 900 on the H100's datasheet; alpha per message."""
    assert H100.link_bytes_per_s == 450e9
    operators = [Operator("all_reduce", 1, 0.0, link_bytes=450e6, link_steps=14)]
    time = operator_times(operators, replace(H100, link_latency_s=1e-5))[0]
    assert time.seconds == pytest.approx(1e-3 + 14e-5)
    assert time.bound == "link"
    assert prediction_rows([time])[0]["link_ms"] == pytest.approx(1.14)


def test_expert_parallelism_divides_experts_and_tokens() -> None:
    setup = Setup(DEEPSEEK, BF16, H100, parallel=Parallel(expert=8))
    alone = by_name(Setup(DEEPSEEK, BF16, H100).phases(64, 1000)["decode"])
    shared = by_name(setup.phases(64, 1000)["decode"])
    for field in ("weight_bytes", "flops"):
        assert getattr(shared["experts"], field) == pytest.approx(getattr(alone["experts"], field) / 8)
    assert shared["attention"].kv_bytes == alone["attention"].kv_bytes / 8
    assert shared["q_proj"].weight_bytes == alone["q_proj"].weight_bytes
    assert shared["all_to_all"].link_bytes == pytest.approx(2 * 58 * 7 / 8 * 8 * 8 * 7168 * 2)


def test_a_pipeline_is_as_slow_for_one_sequence_and_as_fast_as_its_stages_for_many() -> None:
    setup = Setup(LLAMA70, BF16, replace(H100, link_bytes_per_s=float("inf")), parallel=Parallel(pipeline=4))
    alone, one = PLAIN_70.phases(1, 2048), setup.phases(1, 2048)
    assert seconds(one["decode"]) == pytest.approx(seconds(alone["decode"]))
    assert setup.prefill_seconds(one, 1) == pytest.approx(seconds(alone["prefill"]))
    many = setup.phases(64, 2048)
    quarter = PLAIN_70.phases(16, 2048)
    assert setup.tokens_per_second(many, 64) == pytest.approx(64 / seconds(quarter["decode"]))
    assert setup.prefill_seconds(many, 64) == pytest.approx(seconds(quarter["prefill"]) * 7 / 4)


@pytest.mark.parametrize(
    ("parallel", "machine", "told"),
    [
        (Parallel(tensor=7), H100, "--tensor 7 does not divide 32 heads"),
        (Parallel(pipeline=33), H100, "--pipeline 33 has more stages"),
        (Parallel(expert=2), H100, "--expert 2 does not divide the 0 experts"),
        (Parallel(tensor=2), Machine("m", 1.0, 1.0), "m lists no link"),
    ],
)
def test_a_model_that_cannot_be_divided_so_is_refused(parallel, machine, told) -> None:
    with pytest.raises(InputError, match=told):
        Setup(LLAMA3, BF16, machine, parallel=parallel)


# ---- memory, energy, money -------------------------------------------------------------------------------------------


def test_memory_of_one_device() -> None:
    held = memory(PLAIN, PLAIN.phases(4, 8192), 4, 8192)
    norms = (2 * 32 + 1) * 4096 * 2
    assert held.weights == pytest.approx(2 * LLAMA3.parameters, abs=norms)
    assert held.kv_cache == 4 * 8192 * LLAMA3.kv_bytes_per_token(BF16)
    shared = Setup(LLAMA3, BF16, H100, parallel=Parallel(tensor=4, pipeline=2))
    less = memory(shared, shared.phases(4, 8192), 4, 8192)
    assert less.weights == pytest.approx(held.weights / 8, rel=1e-3)
    assert less.kv_cache == held.kv_cache / 8


def test_every_expert_lies_in_memory_and_windows_keep_their_length() -> None:
    setup = Setup(DEEPSEEK, BF16, H100)
    assert memory(setup, setup.phases(1, 10), 1, 10).weights == pytest.approx(2 * DEEPSEEK.parameters, rel=1e-5)
    gemma = load_preset("gemma-2-9b")
    windowed = Setup(gemma, BF16, H100)
    held = memory(windowed, windowed.phases(1, 32768), 1, 32768)
    assert held.kv_cache == 2 * 8 * 256 * 2 * (21 * 4096 + 21 * 32768)


def test_energy_needs_constants() -> None:
    times = PLAIN.phases(1, 1000)["decode"]
    device = load_hardware("h100-sxm")
    assert joules(device, times) is None
    known = device.model_copy(update={"idle_w": 100.0, "flop_pj": 0.5, "byte_pj": 30.0})
    flops, moved = (sum(float(getattr(time.operator, field)) for time in times) for field in ("flops", "bytes"))
    assert joules(known, times) == pytest.approx(100 * seconds(times) + 0.5e-12 * flops + 30e-12 * moved)


def test_a_price_per_hour_is_a_price_per_million_tokens() -> None:
    """3.60 an hour is 0.001 a second: at 1000 tokens/s on two devices, a million take 1000 seconds."""
    assert price_per_million(3.6, 2, 1000.0) == pytest.approx(2.0)


def test_a_method_leaves_windowed_layers_as_they_are() -> None:
    gemma = load_preset("gemma-2-9b")
    whole, sparse = (Setup(gemma, BF16, H100, always(cost)) for cost in (DENSE, MethodCost(kept=0.1, prefill_kept=0.1)))
    for phase, field in (("decode", "kv_bytes"), ("prefill", "flops")):
        figures = [
            sorted(getattr(time.operator, field) for time in setup.phases(1, 32768)[phase]
                   if time.operator.name == "attention")
            for setup in (whole, sparse)
        ]  # fmt: skip
        windowed, full = figures[0]
        assert figures[1] == pytest.approx(sorted([windowed, 0.1 * full]))


def test_a_method_is_asked_at_every_length() -> None:
    asked: list[Situation] = []

    def method(situation: Situation) -> MethodCost:
        asked.append(situation)
        return DENSE

    Setup(LLAMA3, Precision.of_bits(16, 8, 16), H100, method).phases(1, 777)
    assert (asked[0].tokens, asked[0].group, asked[0].element_bytes) == (777, 4, 2.0)


def test_hardware_from_a_file(tmp_path: Path) -> None:
    row = '[{}]\ntitle = "Mine"\nsource = "D"\nbf16_tflops = 100\nmemory_gb_per_s = 500\n'
    path = tmp_path / "mine.toml"
    path.write_text(row.format("one"))
    assert load_hardware(str(path)).memory_gb_per_s == 500
    path.write_text(row.format("one") + row.format("two"))
    assert load_hardware(f"{path}:two").name == "two"
    with pytest.raises(InputError, match="known: one, two"):
        load_hardware(str(path))
    assert load_hardware("h100_sxm").name == "h100-sxm"
