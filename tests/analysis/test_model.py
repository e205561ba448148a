"""The analytic model against a real module, published totals, and the shared test vectors."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from analysis.hardware import load_hardware
from analysis.roofline.estimate import Setup
from analysis.roofline.model import (
    Execution,
    Machine,
    decode,
    operator_times,
    prefill,
    speedup_bound,
    step_seconds,
    total_bytes,
    total_flops,
)
from analysis.roofline.operators import Operator, Precision
from analysis.roofline.predict import datasheet_machine, model_cost, prediction_rows
from analysis.roofline.shape import ModelShape
from suite.errors import InputError
from tests.analysis.factory import BF16, SMOLLM2, kv_sample

LLAMA2_7B = ModelShape(32, 4096, 11008, 32, 32, 128, 32000)
CONFIG = {
    "num_hidden_layers": 2,
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": 300,
    "tie_word_embeddings": False,
    "max_position_embeddings": 256,
}


@pytest.mark.parametrize("tied", [False, True])
def test_parameters_and_flops_are_those_of_a_transformers_module(tied: bool) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = CONFIG | {"tie_word_embeddings": tied}
    model = LlamaForCausalLM(LlamaConfig(**config, attn_implementation="eager")).eval()
    shape = ModelShape.from_hf(config)
    assert shape.parameters == sum(parameter.numel() for parameter in model.parameters())
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.zeros(3, 20, dtype=torch.long), logits_to_keep=1)
    matrix = ("proj", "lm_head", "attention")
    ours = {op.name: op.flops for op in prefill(shape, BF16, batch=3, tokens=20) if op.name.endswith(matrix)}
    full_square = ours["attention"] * 20 * 20 / (20 * 21 / 2)  # eager attention computes the masked half too
    rotary = 2 * 3 * 20 * 8 / 3  # transformers makes the angles of one batch row by a product
    assert sum(ours.values()) - ours["attention"] + full_square == pytest.approx(counter.get_total_flops(), abs=rotary)


def test_smollm2_has_the_known_sizes() -> None:
    assert SMOLLM2.parameters == 134_515_008
    assert SMOLLM2.kv_bytes_per_token(BF16) == 23_040


def test_llama2_decode_moves_what_llm_viewer_counts() -> None:
    """Case A1 of the llm_viewer card: 1.431e10 bytes at 2048 tokens, its softmax traffic aside."""
    step = decode(LLAMA2_7B, BF16, batch=1, context=2048)
    assert total_bytes(step) == pytest.approx(1.431315e10, rel=2e-3)
    assert total_flops(step) == pytest.approx(1.416967e10 + 32000 * 4096, rel=2e-3)


def test_windows_bound_the_attention_of_their_layers() -> None:
    config = CONFIG | {"sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"]}
    step = decode(ModelShape.from_hf(config), BF16, batch=1, context=100)
    assert sorted(op.kv_bytes for op in step if op.name == "attention") == [2 * 8 * 2 * 16 * 2, 2 * 100 * 2 * 16 * 2]


def test_a_window_that_is_off_is_ignored() -> None:
    assert ModelShape.from_hf(CONFIG | {"sliding_window": 8, "use_sliding_window": False}).windows == ()


def test_a_missing_field_is_named() -> None:
    with pytest.raises(InputError, match="no field 'vocab_size'"):
        ModelShape.from_hf({name: value for name, value in CONFIG.items() if name != "vocab_size"})


def test_step_time_is_the_sum_of_maxima_not_the_maximum_of_sums() -> None:
    machine = Machine("m", flops_per_s=100.0, bytes_per_s=10.0, launch_s=0.5)
    operators = [Operator("compute", 1, 1000.0, weight_bytes=1.0), Operator("memory", 2, 1.0, weight_bytes=100.0)]
    assert step_seconds(operators, machine) == pytest.approx(10.0 + 0.5 + 10.0 + 1.0)
    assert machine.ridge == 10.0


def test_bounds_are_classified_per_operator() -> None:
    machine = Machine("m", 100.0, 10.0, launch_s=1.0)
    operators = [Operator("a", 1, 1000.0), Operator("b", 1, 0.0, kv_bytes=100.0), Operator("c", 5, 1.0, kv_bytes=1.0)]
    assert [time.bound for time in operator_times(operators, machine)] == ["compute", "memory", "launch"]


def test_case_a1_mixes_bounds() -> None:
    """Prefill on an A6000: linears are compute bound; unfused attention would be memory bound."""
    machine = datasheet_machine(load_hardware("rtx-a6000"), BF16)
    unfused = operator_times(prefill(LLAMA2_7B, BF16, batch=1, tokens=2048, execution=Execution(fused=False)), machine)
    bounds = {time.operator.name: time.bound for time in unfused}
    assert bounds["q_proj"] == "compute"
    assert bounds["attention"] == "memory"
    assert bounds["lm_head"] == "memory"


def test_the_shared_retention_vector() -> None:
    """Vector 6 of `_kv_retention.md`: 270 MB of weights, 189 MB of KV, r = 0.25 bounds the speed-up by 1.45."""
    assert speedup_bound(270e6, 189e6, 0.25) == pytest.approx(1.45, abs=0.005)


def test_quantised_weights_speed_decode_but_not_prefill() -> None:
    machine = datasheet_machine(load_hardware("h100-sxm"), BF16)
    narrow = Precision.of_bits(weight=4, kv=16, activation=16)
    seconds = {
        (phase, precision.weight): sum(time.seconds for time in times)
        for precision in (BF16, narrow)
        for phase, times in Setup(LLAMA2_7B, precision, machine).phases(1, 2048).items()
    }
    assert seconds["decode", 2.0] / seconds["decode", 0.5] > 2.5
    assert seconds["prefill", 2.0] / seconds["prefill", 0.5] < 1.05


def test_datasheet_machines_choose_the_rate_of_the_operands() -> None:
    h100, a100 = load_hardware("h100-sxm"), load_hardware("a100-sxm-80")
    assert datasheet_machine(h100, Precision.of_bits(4, 16, 16)).flops_per_s == pytest.approx(989.4e12)
    assert datasheet_machine(h100, Precision.of_bits(8, 8, 8)).flops_per_s == pytest.approx(1978.9e12)
    assert datasheet_machine(a100, Precision.of_bits(8, 8, 8)).flops_per_s == pytest.approx(624e12)
    assert datasheet_machine(a100, Precision.of_bits(32, 32, 32)).flops_per_s == pytest.approx(19.5e12)
    with pytest.raises(InputError, match="xeon-8480plus lists no bf16 rate; give its clock"):
        datasheet_machine(load_hardware("xeon-8480plus"), BF16)
    with pytest.raises(InputError, match="apple-m1 lists no bf16 rate; choose another"):
        datasheet_machine(load_hardware("apple-m1"), BF16)


def test_prediction_rows_add_up() -> None:
    machine = Machine("m", 400e9, 30e9, 2e-6)
    times = Setup(SMOLLM2, BF16, machine).phases(1, 1024)["decode"]
    rows = prediction_rows(times)
    assert sum(row["ms"] for row in rows) == pytest.approx(1e3 * sum(time.seconds for time in times))
    assert {row["operator"] for row in rows} >= {"attention", "lm_head", "gate_proj"}


def test_model_cost_of_a_counting_pass() -> None:
    """Two prompts, one in two chunks, then two decode steps: logits once per prompt and step."""
    cost = model_cost(SMOLLM2, BF16)
    flops, moved = cost("prefill", [(100, 100), (28, 128), (64, 64)], [])
    whole = [total_flops(prefill(SMOLLM2, BF16, batch=1, tokens=tokens)) for tokens in (128, 64)]
    assert flops == pytest.approx(sum(whole))
    assert moved > total_bytes(prefill(SMOLLM2, BF16, batch=1, tokens=128))
    steps = [decode(SMOLLM2, BF16, batch=1, context=context) for context in (129, 130)]
    assert cost("decode", [(1, 129), (1, 130)], []) == pytest.approx(
        (sum(map(total_flops, steps)), sum(map(total_bytes, steps)))
    )


def test_model_cost_reads_what_the_method_selected_and_its_index() -> None:
    """A quarter of 1000 tokens' keys, and the index; prefill is dense whatever decode selects."""
    cost, sparse = model_cost(SMOLLM2, BF16), kv_sample(selected=0.25)
    dense_bytes, sparse_bytes = (cost("decode", [(1, 1000)], kv)[1] for kv in ([kv_sample()], [sparse]))
    assert dense_bytes - sparse_bytes == pytest.approx(0.75 * 23_040_000 - sparse.index_bytes)
    assert cost("prefill", [(64, 64)], [sparse]) == cost("prefill", [(64, 64)], [])
