"""The weights family: what is swapped comes back, what is kept is what was made, and packed weights are read."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from kernels.counting import counting
from suite.errors import InputError
from suite.harness import gates
from suite.harness.counting import CountingPass
from suite.harness.meter import RequestMeter
from suite.methods.attention.dense import Dense
from suite.methods.weights import calibration, packed
from suite.methods.weights.base import Site, mean_nats
from suite.methods.weights.linear import LutLinear, QuantisedLinear, W4Linear, plain_linears, projections
from suite.methods.weights.rtn import RTN, RTNConfig
from suite.methods.weights.squeezellm import SqueezeLLM
from suite.methods.weights.w4g128 import W4G128
from suite.models.attention import DenseAttention
from suite.models.config import ModelConfig
from suite.models.fused import layer_stack
from suite.registry import METHODS
from tests.methods.support import CONFIG, LargestTensor, logits_of, tiny_model
from workloads.schema import Request

NAMES = [name for name, entry in METHODS.items() if entry.family == "weights"]
BIASED = ModelConfig("qwen2", 2, 72, 100, 4, 2, 18, 128, 512, qkv_bias=True)
WIDE = replace(CONFIG, hidden=512, intermediate=512, layers=1)
MATRICES = 4 * CONFIG.layers


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "calibration.txt"
    path.write_text("".join(chr(32 + (i * i // 7 + i) % 90) for i in range(1500)))
    return path


def prepared(name, text, model=None, **options):
    kind, model = METHODS.load(name), model or tiny_model()
    options |= {"data": text} if kind.calibrates else {}
    method, config = kind(), kind.Config(**options)
    method.prepare(model, config)
    return method, config, model


def request(identity: str = "a", length: int = 60, new: int = 8) -> Request:
    prompt = "".join(chr(97 + i * i % 26) for i in range(length))
    return Request(id=identity, task="t", prompt=prompt, metric="none", max_new_tokens=new)


def modules_of(method, config, model) -> list[QuantisedLinear]:
    with method.attach(model, config):
        return [getattr(owner, attribute) for _, owner, attribute in projections(model.decoder)]


@pytest.mark.parametrize("name", NAMES)
def test_attach_swaps_every_matrix_of_the_layers_and_brings_the_same_modules_back(name, text):
    method, config, model = prepared(name, text)
    before = dict(model.decoder.named_modules())
    with method.attach(model, config):
        swapped = [type(module) for module in model.decoder.modules() if isinstance(module, QuantisedLinear)]
        assert swapped == [method.linear] * MATRICES
        assert not plain_linears(model.decoder)
        assert "the weights of tiny are quantised already" in method.refusal(model, config)
    after = dict(model.decoder.named_modules())
    assert list(after) == list(before)
    assert all(after[key] is before[key] for key in before)
    assert not any(parameter.requires_grad for parameter in model.decoder.parameters())
    assert not any(module._forward_pre_hooks for module in model.decoder.modules())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_fused_layers_give_the_logits_of_the_packed_modules(name, dtype, text, monkeypatch):
    """One token at a time and several, with the sparse part where there is one."""
    model = tiny_model(dtype=dtype)
    method, config, _ = prepared(name, text, model)
    tokens, found = torch.randint(0, 128, (1, 30)), {}
    with method.attach(model, config):
        for fused in (True, False):
            if not fused:
                monkeypatch.setattr("suite.models.decoder.layer_stack", lambda decoder: None)
            found[fused] = [logits_of(model.decoder, DenseAttention(CONFIG), tokens, chunk) for chunk in (1, 7, 13)]
            assert (model.decoder._stack is not None) is fused
    tolerance = {"atol": 1e-5, "rtol": 1e-5} if dtype is torch.float32 else {"atol": 0.06, "rtol": 0.0}
    for ours, modules in zip(found[True], found[False], strict=True):
        torch.testing.assert_close(ours, modules, **tolerance)


@pytest.mark.parametrize("name", NAMES)
def test_the_stack_is_of_the_modules_that_are_there_and_a_hook_switches_it_off(name, text):
    method, config, model = prepared(name, text)
    decoder = model.decoder
    plain = layer_stack(decoder).layers[0].down
    with method.attach(model, config):
        module = decoder.layers[0].mlp.down
        assert decoder._stack.layers[0].down.packed is module.packed
        handle = module.register_forward_hook(lambda *_: None)
        assert layer_stack(decoder) is None
        handle.remove()
        assert layer_stack(decoder) is not None
        module.packed = module.packed.repeat(1, 2)[:, ::2]
        assert layer_stack(decoder) is None, "the kernel reads whole rows"
    assert decoder._stack.layers[0].down is plain


@pytest.mark.parametrize("name", NAMES)
def test_a_cache_made_before_attaching_sees_the_packed_weights(name, text):
    """The stack of fused layers belongs to the modules, not to the cache it was built with."""
    method, config, model = prepared(name, text)
    token, attention = torch.tensor([[65]]), DenseAttention(CONFIG)

    def logits(cache):
        with torch.inference_mode():
            return model.decoder(token, cache, attention)

    early, plain = model.decoder.new_cache(1, 8), logits(model.decoder.new_cache(1, 8))
    with method.attach(model, config):
        assert torch.equal(logits(early), logits(model.decoder.new_cache(1, 8)))
        assert not torch.allclose(logits(model.decoder.new_cache(1, 8)), plain, atol=1e-3)
        late = model.decoder.new_cache(1, 8)
    assert torch.equal(logits(late), plain)


@pytest.mark.parametrize("name", NAMES)
def test_the_packed_model_computes_what_its_codes_stand_for(name, text):
    """Prefill and decode alike, with biases and sizes that fill no block."""
    model = replace(tiny_model(BIASED), digest="biased")
    method, config, _ = prepared(name, text, model)
    tokens = torch.randint(0, 128, (2, 30))
    with method.attach(model, config):
        ours = {chunk: logits_of(model.decoder, DenseAttention(BIASED), tokens, chunk) for chunk in (1, 7, 30)}
        dense = {name: getattr(owner, part).dense() for name, owner, part in projections(model.decoder)}
    for matrix, linear in plain_linears(model.decoder).items():
        linear.weight.data.copy_(dense[matrix])
    expected = logits_of(model.decoder, DenseAttention(BIASED), tokens, 30)
    for logits in ours.values():
        torch.testing.assert_close(logits, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", NAMES)
def test_what_was_made_is_loaded_again(name, text, monkeypatch):
    method, config, model = prepared(name, text)
    monkeypatch.setattr(type(method), "quantize", lambda *args: pytest.fail("it is in the cache"))
    again, *_ = prepared(name, text)
    assert again.report == method.report
    for first, second in zip(modules_of(method, config, model), modules_of(again, config, model), strict=True):
        assert first.tensors().keys() == second.tensors().keys()
        assert all(torch.equal(t, second.tensors()[field]) for field, t in first.tensors().items())


@pytest.mark.parametrize("other", ["model", "dtype", "options", "text"])
def test_what_is_kept_belongs_to_one_model_config_and_text(other, text, tmp_path):
    model, options, longer = tiny_model(), {"bits": 4}, tmp_path / "longer.txt"
    longer.write_text(text.read_text() + "and more")
    method = SqueezeLLM()
    place = packed.place("squeezellm", method._depends_on(model, method.Config(data=text, **options)))
    data = longer if other == "text" else text
    if other in ("model", "dtype"):
        model = replace(model, **({"digest": "x"} if other == "model" else {"dtype": "bf16"}))
    if other == "options":
        options = {"bits": 4, "outliers": 0.003}
    assert packed.place("squeezellm", method._depends_on(model, method.Config(data=data, **options))) != place


def test_a_damaged_file_is_said_to_be_one(text):
    method, config, model = prepared("rtn", text)
    packed.place("rtn", method._depends_on(model, config)).write_bytes(b"nothing")
    with pytest.raises(InputError, match="holds no packed weights"):
        RTN().prepare(model, config)


@pytest.mark.parametrize("name", NAMES)
def test_a_step_reads_packed_weights_and_makes_no_dense_ones(name, text):
    """The trap of fake quantisation: traffic as before, or a dense weight on the way."""
    method, config, model = prepared(name, text, tiny_model(WIDE))
    smallest = min(linear.weight.numel() for linear in plain_linears(model.decoder).values())
    with method.attach(model, config), torch.inference_mode():
        cache = model.decoder.new_cache(1, 8)
        with LargestTensor() as seen, counting() as counter:
            model.decoder(torch.tensor([[5]]), cache, DenseAttention(WIDE))
    assert seen.elements < smallest
    kernel = "w4_gemm" if method.linear is W4Linear else "lut_gemv"
    assert counter.calls[kernel] == 4
    activations = sum(4 * linear.weight.shape[1] for linear in plain_linears(model.decoder).values())
    assert counter.costs[kernel].read_bytes - activations == pytest.approx(method.weight_bytes(), rel=0.01)


@pytest.mark.parametrize("name", NAMES)
def test_stored_bytes_are_a_third_of_16_bit_ones(name, text):
    """At a width where tables and scales are small beside the codes."""
    model = tiny_model(WIDE, torch.bfloat16)
    method, _, _ = prepared(name, text, model)
    own = sum(linear.weight.nbytes for linear in plain_linears(model.decoder).values())
    assert method.weight_bytes() < 0.4 * own
    assert method.model_bytes(model, None) == model.model_bytes - own + method.weight_bytes()
    assert method.average_bits(model) == pytest.approx(16 * method.weight_bytes() / own)


def test_the_counting_pass_sees_the_packed_bytes(text):
    method, config, model = prepared("squeezellm", text)
    moved = {}
    for name, one, options in (("dense", Dense(), Dense.Config()), ("packed", method, config)):
        with CountingPass(CONFIG.kv_bytes_per_token(4)) as counted, one.attach(model, options) as generator:
            list(generator.generate([request()], counted.meter))
        decode = next(phase for phase in counted.phases(None) if phase.phase == "decode")
        moved[name] = decode.counted_bytes / decode.steps
    saved = model.model_bytes - method.model_bytes(model, config)
    assert moved["dense"] - moved["packed"] == pytest.approx(saved, rel=0.1)


@pytest.mark.parametrize("name", NAMES)
def test_completions_come_out_and_bf16_stays_finite(name, text):
    method, config, model = prepared(name, text, tiny_model(dtype=torch.bfloat16))
    with method.attach(model, config) as generator:
        done = list(generator.generate([request("a"), request("b", 25)], RequestMeter()))
        alone = list(generator.generate([request("b", 25)], RequestMeter()))
    assert [len(c.token_ids) for c in done] == [8, 8]
    assert len(alone) == 1
    assert all(torch.tensor(mean_nats(model, torch.randint(0, 128, (2, 40)))).isfinite())


@pytest.mark.parametrize("name", NAMES)
def test_the_report_names_every_matrix_and_what_it_lost(name, text):
    method, _, model = prepared(name, text)
    assert [row.name for row in method.report] == list(plain_linears(model.decoder))
    assert all(0 < row.weight < 0.3 for row in method.report)
    if method.calibrates:
        assert all(0 < row.output < 0.3 and row.loss >= 0 for row in method.report)


def test_rtn_is_the_formula_of_its_row():
    weight = torch.tensor([[-1.0, -0.5, 0.0, 0.4], [1.0, 2.0, 3.0, 0.5]])
    made = RTN().quantize("w", weight, Site((2,)), RTNConfig(bits=3))
    scale = torch.tensor([[1.4], [3.0]]) / 7
    zero = (torch.tensor([[1.0], [0.0]]) / scale).round()
    expected = ((weight / scale).round() + zero).clamp(0, 7) - zero
    torch.testing.assert_close(made.dense(), expected * scale)
    assert (RTN().quantize("w", torch.zeros(2, 4), Site((2,)), RTNConfig()).dense() == 0).all()


def test_w4_rounds_to_its_stored_scales_and_survives_zeros_and_tiny_groups():
    weight = torch.randn(5, 300)
    weight[1], weight[2, :128] = 0, 1e-12
    made = W4G128().quantize("w", weight, Site((5,)), None)
    scales = made.scales.float().repeat_interleave(128, 1)[:, :300]
    assert ((made.dense() - weight).abs() <= scales / 2 * 1.01 + 1e-11).all()
    assert (made.dense()[1] == 0).all()


def test_opposite_gradients_of_two_sequences_do_not_cancel(monkeypatch):
    """Squares of a sum would: the Fisher diagonal sums squares, sequence by sequence."""
    model = tiny_model()
    windows = torch.randint(0, 128, (3, 40))
    alone = [calibration.calibrate(model.decoder, window[None]) for window in windows]
    together = calibration.calibrate(model.decoder, windows)
    for name, statistics in together.items():
        torch.testing.assert_close(statistics.fisher, sum(one[name].fisher for one in alone))
    flipped = iter((1.0, -1.0))
    take = calibration._taken_gradient
    signs: list[float] = []

    def opposite(linear):
        if len(signs) % MATRICES == 0:
            opposite.sign = next(flipped)
        signs.append(opposite.sign)
        return opposite.sign * take(linear)

    monkeypatch.setattr(calibration, "_taken_gradient", opposite)
    twice = calibration.calibrate(model.decoder, windows[:1].repeat(2, 1))
    for name, statistics in twice.items():
        torch.testing.assert_close(statistics.fisher, 2 * alone[0][name].fisher)


def test_fisher_is_the_square_of_the_gradient_and_inputs_are_samples_of_each_layers_own():
    model, window = tiny_model(), torch.randint(0, 128, (1, 41))
    found = calibration.calibrate(model.decoder, window)
    linear = plain_linears(model.decoder)["layers.1.mlp.down"]
    linear.weight.requires_grad_(True)
    logits = model.decoder.train_logits(window[:, :-1])
    loss = torch.nn.functional.cross_entropy(logits[0], window[0, 1:])
    (gradient,) = torch.autograd.grad(loss, linear.weight)
    linear.weight.requires_grad_(False)
    torch.testing.assert_close(found["layers.1.mlp.down"].fisher, gradient.square())
    assert found["layers.1.mlp.down"].inputs.shape == (calibration.SAMPLED, CONFIG.intermediate)
    assert found["layers.0.attention.qkv"].inputs.shape == (calibration.SAMPLED, CONFIG.hidden)


def test_statistics_are_collected_once_per_model_and_text(text, monkeypatch):
    model = tiny_model()
    first = calibration.statistics_for(model, text)
    monkeypatch.setattr(calibration, "calibrate", lambda *args: pytest.fail("known already"))
    assert calibration.statistics_for(model, text) is first


def test_a_model_that_cannot_write_its_text_is_refused_without_one(text, tmp_path):
    model, method = tiny_model(), SqueezeLLM()
    assert "has no chat template" in method.refusal(model, method.Config())
    assert method.refusal(model, method.Config(data=text)) is None
    with pytest.raises(InputError, match="cannot be read"):
        method.prepare(model, method.Config(data=tmp_path / "nothing.txt"))


def test_the_perplexity_gate_lets_a_little_loss_through_and_no_more():
    dense = [-2.0] * 10
    assert gates.perplexity([-2.5] * 10, dense, 1.0).passed
    assert not gates.perplexity([-3.5] * 10, dense, 1.0).passed
    assert not gates.perplexity([float("nan")] * 10, dense, 1.0).passed


def test_packed_layers_add_residual_and_bias():
    weight, x, residual = torch.randn(20, 33), torch.randn(2, 3, 33), torch.randn(2, 3, 20)
    bias = torch.randn(20)
    for method in (RTN(), W4G128()):
        made = method.quantize("w", weight, Site((20,), bias), method.Config())
        expected: Tensor = x @ made.dense().T + bias + residual
        torch.testing.assert_close(made(x, residual), expected, atol=1e-4, rtol=1e-4)
    assert isinstance(RTN().quantize("w", weight, Site((20,)), RTNConfig()), LutLinear)
