"""LLM-Viewer's two releases: the reference cases of its card; every known mistake, kept here, mended in the model."""

from __future__ import annotations

from dataclasses import replace

import pytest

from analysis.hardware import cpu_peak_tflops, load_hardware
from analysis.roofline.estimate import Setup, memory, seconds
from analysis.roofline.llm_viewer import RELEASES, Analysis, Stage, Viewer, load_device
from analysis.roofline.model import Execution, decode, prefill
from analysis.roofline.operators import Operator, Precision
from analysis.roofline.predict import datasheet_machine
from analysis.roofline.shape import ModelShape, load_preset
from suite.cost import MethodCost
from suite.errors import InputError

OLD, NEW = "llm-viewer-2024", "llm-viewer-2026"
BF16 = Precision()


def viewer(
    model: str = "llama-2-7b",
    device: str = "rtx-a6000",
    bits: tuple[int, int, int] = (16, 16, 16),
    *,
    release: str = OLD,
    flash: bool = False,
    tensor: int = 1,
) -> Viewer:
    """Bits are weights, KV, activations."""
    chosen = RELEASES[release]
    return Viewer(
        chosen, load_preset(model), load_device(device, chosen), Precision.of_bits(*bits), flash=flash, tensor=tensor
    )


A1 = viewer()
A2 = viewer("llama-2-13b")
A3 = viewer("llama-2-7b", "a100-sxm-80", (4, 16, 16))
A4_OLD = viewer("llama-3-8b", "h100-sxm", (8, 8, 8), flash=True)
A4_NEW = viewer("llama-3-8b", "h100-sxm", (8, 8, 8), release=NEW, flash=True)
A5 = viewer("opt-6.7b")
A6 = viewer("llama-2-70b", "h100-sxm", (4, 4, 4), release=NEW, flash=True, tensor=8)

# (viewer, stage, batch, length): OPs, bytes, the five kinds of traffic, seconds, bytes of memory.
CASES: list[tuple[Viewer, Stage, int, int, str]] = [
    (A1, "prefill", 1, 2048, "2.875118e13 6.586113e10 1.321415e10 2.560204e10 2.489745e10 1.073742e9 1.073742e9 0.2268786 1.48038e10"),  # noqa: E501
    (A1, "decode", 1, 2048, "1.416967e10 1.431315e10 1.321415e10 1.250918e7 1.222093e7 1.073742e9 524288 0.01863692 1.402613e10"),  # noqa: E501
    (A2, "prefill", 16, 2048, "8.871415e14 1.342379e12 2.570322e10 6.402186e11 6.227703e11 2.684355e10 2.684355e10 6.7512 6.778834e10"),  # noqa: E501
    (A2, "decode", 16, 2048, "4.357947e11 5.317664e10 2.570322e10 3.12617e8 3.04151e8 2.684355e10 1.31072e7 0.06924042 5.222669e10"),  # noqa: E501
    (A3, "prefill", 8, 1024, "1.105642e14 1.451717e11 3.303539e9 6.80484e10 6.522988e10 4.294967e9 4.294967e9 0.3896061 9.571402e9"),  # noqa: E501
    (A3, "decode", 8, 1024, "1.090204e11 7.732927e9 3.303539e9 6.64617e7 6.376499e7 4.294967e9 4194304 0.00379251 7.534961e9"),  # noqa: E501
    (A4_OLD, "prefill", 64, 4096, "4.228274e15 5.505063e12 7.504658e9 5.669357e11 2.714419e12 2.199023e12 1.717987e10 3.415046 1.089848e11"),  # noqa: E501
    (A4_OLD, "decode", 64, 4096, "1.065907e12 7.702957e10 7.504658e9 1.384161e8 6.628283e8 6.871948e10 4194304 0.02507473 2.41799e10"),  # noqa: E501
    (A4_NEW, "prefill", 64, 4096, "4.228274e15 1.725492e12 7.504658e9 5.669357e11 5.841157e11 5.497558e11 1.717987e10 2.259446 4.24128e10"),  # noqa: E501
    (A4_NEW, "decode", 64, 4096, "1.065907e12 2.496987e10 7.504658e9 1.384161e8 1.427346e8 1.717987e10 4194304 0.008128214 2.416365e10"),  # noqa: E501
    (A5, "prefill", 1, 1024, "1.814993e13 3.638229e10 1.75917e10 8.858378e9 8.858471e9 5.368709e8 5.368709e8 0.1305804 1.799356e10"),  # noqa: E501
    (A5, "decode", 1, 1024, "1.793026e10 1.81465e10 1.75917e10 8658944 8751296 5.368709e8 524288 0.02362826 1.771701e10"),  # noqa: E501
    (A6, "prefill", 4, 8192, "1.271698e15 4.188065e11 4.409262e9 1.348888e11 1.073742e11 1.717987e11 3.355443e8 0.682462 5.955912e9"),  # noqa: E501
    (A6, "decode", 4, 8192, "1.56285e11 7.123251e9 4.409262e9 1.647002e7 1.31232e7 2.684355e9 40960 0.002318767 4.613898e9"),  # noqa: E501
]  # fmt: skip
NAMES = ("ops", "bytes", "load_weight", "load_act", "store_act", "load_kv", "store_kv", "seconds", "memory")


def printed(value: str) -> float:
    """Half of the last digit a figure is printed with, relative to it; seven digits or more are 1e-6 or better."""
    digits = len(value.split("e")[0].replace(".", "").lstrip("0"))
    exponent = int(f"{float(value):e}".split("e")[1])
    return 0.5001 * 10.0 ** (exponent - digits + 1)


def figures(analysis: Analysis) -> list[float]:
    return [getattr(analysis.total, name) for name in NAMES[:7]] + [analysis.seconds, analysis.memory]


@pytest.mark.parametrize(("case", "stage", "batch", "length", "expected"), CASES)
def test_reference_cases_to_the_last_printed_digit(case, stage, batch, length, expected) -> None:
    found = figures(case.analyze(stage, batch, length))
    for name, value, text in zip(NAMES, found, expected.split(), strict=True):
        assert abs(value - float(text)) <= printed(text), name


@pytest.mark.parametrize(
    ("stage", "operator", "expected", "bound"),
    [
        ("prefill", "q_proj", "6.871948e10 6.710886e7 1024 4.438139e-4", "compute"),
        ("prefill", "gate_proj", "1.846836e11 1.520435e8 1214.676 1.19275e-3", "compute"),
        ("prefill", "qk_matmul", "3.435974e10 3.019899e8 113.7778 3.93216e-4", "memory"),
        ("prefill", "softmax", "6.710886e8 5.368709e8 1.25 6.990507e-4", "memory"),
        ("prefill", "lm_head", "1.31072e8 2.622162e8 0.4998623 3.414273e-4", "memory"),
        ("decode", "q_proj", "3.355443e7 3.357082e7 0.999512 4.371200e-5", "memory"),
        ("decode", "lm_head", "1.31072e8 2.622162e8 0.4998623 3.414273e-4", "memory"),
    ],
)
def test_operators_of_case_a1(stage: Stage, operator: str, expected: str, bound: str) -> None:
    work = A1.analyze(stage, 1, 2048).operators[operator]
    took = work.seconds(A1.device, A1.precision)
    for value, text in zip((work.ops, work.bytes, work.ops / work.bytes, took), expected.split(), strict=True):
        assert abs(value - float(text)) <= printed(text)
    compute = work.ops / A1.device.peak(A1.precision)
    assert (compute == took) == (bound == "compute")


def test_the_time_is_no_maximum_of_totals() -> None:
    """0.22688 s; all OPs at the peak would take 0.186 s."""
    found = A1.analyze("prefill", 1, 2048)
    assert found.total.ops / A1.device.fp16 == pytest.approx(0.1857, abs=1e-4)
    assert found.seconds > 1.2 * found.total.ops / A1.device.fp16


def test_the_latencies_upstream_printed_with_tensor_parallelism() -> None:
    """State of September 2024: KV heads right, output still S x S. Llama-3.1-405B, 32768 tokens: 7.79 s and 19.42 s."""
    between = replace(RELEASES[NEW], flash_writes_scores=True)
    device, shape = load_device("h100-sxm", between), load_preset("llama-3.1-405b")
    for tensor, expected in ((8, 7.79), (1, 19.42)):
        found = Viewer(between, shape, device, Precision.of_bits(4, 4, 4), flash=True, tensor=tensor)
        assert found.analyze("prefill", 1, 32768).seconds == pytest.approx(expected, abs=0.005)


def test_generation_is_the_prompt_and_every_step() -> None:
    steps = sum(A1.analyze("decode", 1, 512 + step).seconds for step in range(20))
    assert A1.generate_seconds(1, 512, 20) == pytest.approx(A1.analyze("prefill", 1, 512).seconds + steps)


def test_only_2026_generates_with_flash_attention() -> None:
    plain = viewer("llama-3-8b", "h100-sxm", (8, 8, 8))
    assert A4_OLD.generate_seconds(4, 1000, 3) == plain.generate_seconds(4, 1000, 3)
    assert A4_NEW.generate_seconds(4, 1000, 3) < replace(A4_NEW, flash=False).generate_seconds(4, 1000, 3)


def test_chat_samples_ten_lengths() -> None:
    """Ten steps are all sampled; of a hundred, ten stand for ten each, on a line from prompt + 1 to prompt + 100."""
    exact = sum(A1.analyze("decode", 1, 513 + step).seconds for step in range(10))
    first = A1.analyze("prefill", 1, 512).seconds
    assert A1.chat_seconds(1, 512, 10) == pytest.approx(first + exact)
    sampled = sum(A1.analyze("decode", 1, 513 + 11 * index).seconds for index in range(10))
    assert A1.chat_seconds(1, 512, 100) == pytest.approx(first + 10 * sampled)
    assert A1.chat_seconds(1, 512, 1) == pytest.approx(first + A1.analyze("decode", 1, 513).seconds)


# ---- known wrong points: kept in the compat modes, mended in the model -----------------------------------------------


def ours(operators: list[Operator], layers: int) -> dict[str, Operator]:
    """Operators of one layer by name; those outside the layers are divided too."""
    for operator in operators:
        for field in ("flops", "weight_bytes", "activation_bytes", "kv_bytes"):
            setattr(operator, field, getattr(operator, field) / layers)
    return {operator.name: operator for operator in operators}


LLAMA3, LLAMA2, OPT = load_preset("llama-3-8b"), load_preset("llama-2-7b"), load_preset("opt-6.7b")


def test_flash_traffic_with_query_heads() -> None:
    """Issue 12: Llama 3 has 8 KV heads for 32 query heads."""
    old, new = (v.analyze("decode", 64, 4096).operators["fused_attention"].load_kv for v in (A4_OLD, A4_NEW))
    right = ours(decode(LLAMA3, Precision.of_bits(8, 8, 8), batch=64, context=4096), 32)["attention"].kv_bytes
    assert old == 4 * right
    assert new == right


def test_kv_bits_and_heads_make_the_ratio_of_case_a4() -> None:
    times = [v.analyze("decode", 64, 4096).seconds for v in (A4_OLD, A4_NEW)]
    assert times[0] / times[1] == pytest.approx(3.08, abs=0.01)


def test_flash_output_as_wide_as_the_scores() -> None:
    """Issue 26: too large by S/d, 1024 times at 128K."""
    length = 131072
    old, new = (v.analyze("prefill", 1, length).operators["fused_attention"].store_act for v in (A4_OLD, A4_NEW))
    assert old / new == length / 128
    right = ours(prefill(LLAMA3, Precision.of_bits(8, 8, 8), batch=1, tokens=length), 32)["attention"]
    assert right.activation_bytes == 2 * length * 128 * 32  # queries and outputs, once


def test_activation_function_of_the_hidden_width() -> None:
    """Issue 16."""
    wrong = A1.analyze("decode", 1, 64).operators["mlp_act"]
    assert wrong.load_act == 2 * 4096 * 2
    right = ours(decode(LLAMA2, BF16, batch=1, context=64), 32)["swiglu"]
    assert right.activation_bytes == 3 * 11008 * 2


def test_head_with_half_the_operations_and_one_row() -> None:
    wrong = A1.analyze("decode", 16, 64).operators["lm_head"]
    assert (wrong.ops, wrong.load_act + wrong.store_act) == (16 * 4096 * 32000, 2 * (4096 + 32000))
    right = next(op for op in decode(LLAMA2, BF16, batch=16, context=64) if op.name == "lm_head")
    assert (right.flops, right.activation_bytes) == (2 * wrong.ops, 16 * (wrong.load_act + wrong.store_act))


def test_opt_has_no_gate() -> None:
    """Layers that weigh 17.2 instead of 12.9 GB."""
    wrong = A5.analyze("decode", 1, 64)
    assert "gate_proj" in wrong.operators
    assert wrong.weights == pytest.approx(17.2e9, rel=2e-3)
    step = decode(OPT, BF16, batch=1, context=64)
    assert "gate_proj" not in {op.name for op in step}
    layers = sum(op.weight_bytes for op in step if op.name.endswith("_proj"))
    assert layers == pytest.approx(12.9e9, rel=2e-3)


def test_queries_read_with_kv_heads_in_prefill() -> None:
    old = viewer("llama-3-8b", "h100-sxm").analyze("prefill", 1, 100).operators["qk_matmul"]
    assert old.load_act == 100 * 128 * 8 * 2
    right = ours(prefill(LLAMA3, BF16, batch=1, tokens=100), 32)["attention"]
    assert right.activation_bytes == 2 * 100 * 128 * 32 * 2


def test_an_addition_reads_two_operands() -> None:
    wrong = A1.analyze("decode", 1, 64).operators
    row = 4096 * 2
    assert wrong["attn_add"].bytes + wrong["attn_norm"].bytes == 4 * row
    right = ours(decode(LLAMA2, BF16, batch=1, context=64), 2 * 32)["residual_rms_norm"]
    assert right.activation_bytes == 4 * row  # two operands read, the sum and its norm written: one pass less


def test_norm_weights_rope_and_embedding_are_there() -> None:
    assert not {"rope", "embedding"} & A1.analyze("decode", 1, 64).operators.keys()
    assert A1.analyze("decode", 1, 64).operators["attn_norm"].load_weight == 0
    right = {op.name: op for op in decode(LLAMA2, BF16, batch=1, context=64)}
    assert right["rope"].bytes > 0
    assert right["embedding"].weight_bytes == 4096 * 2
    assert right["residual_rms_norm"].weight_bytes == 2 * 32 * 4096 * 2


def test_explicit_head_dim() -> None:
    """Qwen3-32B: 5120 / 64 is 80, but heads are 128 wide."""
    wrong = viewer("qwen3-32b", "h100-sxm").analyze("decode", 1, 1000).operators
    assert wrong["q_proj"].load_weight == 5120 * 5120 * 2
    assert wrong["qk_matmul"].load_kv == 1000 * 80 * 8 * 2
    right = ours(decode(load_preset("qwen3-32b"), BF16, batch=1, context=1000), 64)
    assert right["q_proj"].weight_bytes == 5120 * 64 * 128 * 2
    assert right["attention"].kv_bytes == 2 * 1000 * 128 * 8 * 2


def test_causality() -> None:
    wrong = A1.analyze("prefill", 1, 2048).operators
    right = ours(prefill(LLAMA2, BF16, batch=1, tokens=2048), 32)["attention"]
    assert right.flops / (wrong["qk_matmul"].ops + wrong["sv_matmul"].ops) == pytest.approx(2049 / 4096)


def test_keys_and_values_are_read_once() -> None:
    """Flash attention in blocks of 128 queries: 32 of them at 4096 tokens."""
    wrong = A4_NEW.analyze("prefill", 1, 4096).operators["fused_attention"].load_kv
    right = ours(prefill(LLAMA3, Precision.of_bits(8, 8, 8), batch=1, tokens=4096), 32)["attention"].kv_bytes
    assert wrong == 32 * right


def estimated(shape: ModelShape, batch: int, tokens: int) -> float:
    setup = Setup(shape, BF16, datasheet_machine(load_hardware("rtx-a6000"), BF16))
    return float(memory(setup, setup.phases(batch, tokens), batch, tokens).total)


def test_memory_holds_head_and_embedding_but_not_all_outputs_of_a_layer() -> None:
    wrong = A1.analyze("prefill", 16, 2048)
    assert wrong.weights == pytest.approx(2 * (LLAMA2.parameters - 2 * 32000 * 4096), rel=1e-4)
    assert wrong.activations > 12e9
    kept = 2 * LLAMA2.parameters + wrong.kv_cache
    assert kept < estimated(LLAMA2, 16, 2048) < kept + 2.6e9


def test_kept_tokens_are_used() -> None:
    """`kv_token_ratio` was accepted, and changed nothing; here a quarter of the tokens is a quarter of the reads."""
    sparse = Execution(method=MethodCost(kept=0.25))
    reads = [
        {op.name: op.kv_bytes for op in decode(LLAMA2, BF16, batch=1, context=4096, execution=execution)}["attention"]
        for execution in (Execution(), sparse)
    ]
    assert reads[1] == 0.25 * reads[0]


def test_narrow_weights_are_widened_first() -> None:
    """W4A16 at the fp16 peak, but not for nothing: two operations per weight."""
    wrong = A3.analyze("decode", 8, 1024).operators["q_proj"]
    assert wrong.ops == 2 * 8 * 4096 * 4096
    right = ours(decode(LLAMA2, Precision.of_bits(4, 16, 16), batch=8, context=1024), 32)["q_proj"]
    assert right.flops == wrong.ops + 2 * 4096 * 4096
    eight = ours(decode(LLAMA2, Precision.of_bits(8, 8, 8), batch=8, context=1024), 32)["q_proj"]
    assert eight.flops == wrong.ops


def test_eight_bits_where_no_int8_is_listed() -> None:
    with pytest.raises(InputError, match="fails on intel-13900k, which lists no INT8"):
        viewer("llama-2-7b", "intel-13900k", (8, 8, 8))
    assert viewer("llama-2-7b", "intel-13900k", (8, 8, 8), release=NEW).analyze("decode", 1, 64).seconds > 0
    device = load_hardware("h100-sxm").model_copy(update={"fp8_tflops": None, "int8_tops": None})
    assert datasheet_machine(device, Precision.of_bits(8, 8, 8)).flops_per_s == pytest.approx(989.4e12)


def test_ceilings_that_are_wrong_upstream() -> None:
    """H100 bandwidth, AGX Orin with its DLAs, a processor without multiply-add and with the vectors of another one."""
    old, new = RELEASES[OLD], RELEASES[NEW]
    assert load_device("h100-sxm", old).bytes_per_s == 3072e9
    assert load_hardware("h100-sxm").memory_gb_per_s == 3350
    orin = load_hardware("jetson-agx-orin-64")
    assert load_device("jetson-agx-orin-64", new).int8 == (orin.peak_tflops("int8") + orin.dla_int8_tops) * 1e12
    assert load_device("intel-13900k", old).fp16 == pytest.approx(8 * 5.4e9 * 512 / 16)  # AVX-512 lanes, no FMA
    assert cpu_peak_tflops(8, 8, 2, 5.4) == pytest.approx(8 * 2 * 8 * 2 * 5.4e-3)  # fp32: AVX2 lanes, two FMA units


def test_what_a_release_does_not_know_is_refused() -> None:
    with pytest.raises(InputError, match="neither experts nor latent"):
        viewer("mixtral-8x7b")
    with pytest.raises(InputError, match="no tensor parallelism"):
        viewer("llama-2-70b", tensor=8)
    with pytest.raises(InputError, match="of 2024 does not list 'rtx-4090'"):
        viewer("llama-2-7b", "rtx-4090")
    assert load_device("rtx-a6000", RELEASES[OLD]).int4 is None
    assert load_device("rtx-a6000", RELEASES[NEW]).peak(Precision.of_bits(4, 4, 4)) == 619.4e12


def test_the_model_corrects_the_time_of_case_a4() -> None:
    """Against 2024 a decode step takes a third, mostly for KV heads; against 2026 less than a tenth differs."""
    precision = Precision.of_bits(8, 8, 8)
    setup = Setup(LLAMA3, precision, datasheet_machine(load_hardware("h100-sxm"), precision))
    right = float(seconds(setup.phases(64, 4096)["decode"]))
    assert A4_OLD.analyze("decode", 64, 4096).seconds / right == pytest.approx(3.3, abs=0.15)
    assert A4_NEW.analyze("decode", 64, 4096).seconds / right == pytest.approx(1.08, abs=0.05)
