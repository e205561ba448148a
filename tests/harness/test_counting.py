"""Counted FLOPs and bytes of torch operators and of the suite's kernels against figures worked out by hand."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from kernels import counting as kernel_counting
from kernels.cost import Cost
from suite.harness.counting import CountingPass
from suite.harness.measurement import OpCount
from suite.harness.meter import Step

T, IN, OUT = 5, 64, 48


def total(work: Callable[[], object]) -> tuple[float, float, float]:
    """FLOPs, bytes read and bytes written of some work."""
    ops = ops_of(work)
    return sum(op.flops for op in ops), sum(op.read_bytes for op in ops), sum(op.write_bytes for op in ops)


def ops_of(work: Callable[[], object]) -> tuple[OpCount, ...]:
    """The operators of some work, counted as one prefill step."""
    with CountingPass(0) as counted, torch.inference_mode():
        counted.meter.start("r", 1)
        counted.meter.step(1, 1)
        work()
    return counted.phases(None)[0].ops


def zeros(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.zeros(*shape, dtype=dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", [(T, IN), (1, T, IN)], ids=str)
def test_a_linear_layer_counts_weights_inputs_and_outputs_once(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    x, weight = zeros(*shape, dtype=dtype), zeros(OUT, IN, dtype=dtype)
    flops, read, written = total(lambda: functional.linear(x, weight))
    size = x.element_size()
    assert flops == 2 * T * IN * OUT
    assert (read, written) == ((T * IN + IN * OUT) * size, T * OUT * size)


def test_a_module_counts_its_parameters_once() -> None:
    x = zeros(T, IN)
    layers = torch.nn.Sequential(torch.nn.Linear(IN, OUT), torch.nn.Linear(OUT, IN)).requires_grad_(False)
    parameters = sum(p.numel() * p.element_size() for p in layers.parameters())
    _, read, written = total(lambda: layers(x))
    assert (read, written) == (parameters + 4 * T * (IN + OUT), 4 * T * (OUT + IN))


TEN, SIX, TABLE, THREE = zeros(10), zeros(6), zeros(1000, 8), zeros(3, 8)
IDS = torch.tensor([1, 2, 3])  # 24 bytes
ROWS = 3 * 8 * 4  # bytes of three rows of TABLE

CASES: dict[str, tuple[Callable[[], object], int, int]] = {
    "addition": (lambda: TEN + TABLE.view(-1)[:10], 80, 40),
    "the same operand twice": (lambda: TEN * TEN, 40, 40),
    "an expanded operand": (lambda: TABLE.view(-1)[:10, None].expand(10, 8) + 1, 40, 320),
    "two views of one storage": (lambda: TEN[:5] + TEN[5:], 40, 20),
    "overlapping views": (lambda: TEN[:8] + TEN[2:], 40, 32),
    "views": (lambda: TABLE.view(4, 2000)[1:3].unsqueeze(0).mT, 0, 0),
    "a reshape that copies": (lambda: TEN.view(2, 5).T.reshape(10), 40, 40),
    "a reshape that does not": (lambda: TEN.view(2, 5).reshape(5, 2), 0, 0),
    "an empty tensor": (lambda: torch.empty(1000), 0, 0),
    "zeros": (lambda: torch.zeros(10), 0, 40),
    "in place": (lambda: TEN.add_(TEN), 40, 40),
    "a fill": (lambda: TEN.fill_(0), 0, 40),
    "a copy into a slice": (lambda: TABLE[0, :6].copy_(SIX), 24, 24),
    "an out argument": (lambda: torch.add(TEN, 1, out=TABLE.view(-1)[:10]), 40, 40),
    "embedding rows": (lambda: functional.embedding(IDS, TABLE), 24 + ROWS, ROWS),
    "indexed rows": (lambda: TABLE[IDS], 24 + ROWS, ROWS),
    "indexed assignment": (lambda: TABLE.index_put_((IDS,), THREE), 24 + ROWS, ROWS),
    "concatenation": (lambda: torch.cat([TEN, SIX]), 64, 64),
}


@pytest.mark.parametrize("name", CASES)
def test_bytes_of_an_operator(name: str) -> None:
    work, read, written = CASES[name]
    assert total(work)[1:] == (read, written)


@pytest.mark.parametrize(
    ("queries", "keys", "causal", "pairs"),
    [
        pytest.param(8, 8, False, 64, id="full"),
        pytest.param(8, 8, True, 36, id="causal"),
        pytest.param(8, 4, True, 10 + 4 * 4, id="causal, more queries than keys"),
    ],
)
def test_attention_counts_the_pairs_it_computes(queries: int, keys: int, causal: bool, pairs: int) -> None:
    q, k = zeros(1, 4, queries, 16), zeros(1, 2, keys, 16)
    flops, *_ = total(
        lambda: functional.scaled_dot_product_attention(q, k, k, is_causal=causal, enable_gqa=True),
    )
    assert flops == 4 * 4 * 16 * pairs


def test_phases_steps_and_kernels_are_kept_apart() -> None:
    a = zeros(10)
    with CountingPass(0) as counted:
        meter = counted.meter
        meter.start("r", 7)
        meter.phase("prefill")
        meter.step(7, 7)
        kernel_counting.record("gemv", Cost(100, 30, 3))
        meter.phase("decode")
        for context in (8, 9):
            meter.step(1, context)
            kernel_counting.record("gemv", Cost(10, 5, 1))
            a + a
    prefill, decode = counted.phases(
        lambda phase, steps, kv: (len(steps) + len(kv), sum(step.context_tokens for step in steps))
    )
    assert (prefill.steps, prefill.tokens, prefill.context_tokens_mean, prefill.flops) == (1, 7, 7, 100)
    assert (prefill.counted_bytes, prefill.kernel_bytes) == (33, 33)
    assert (decode.steps, decode.tokens, decode.context_tokens_mean) == (2, 2, 8.5)
    assert (decode.counted_bytes, decode.kernel_bytes, decode.flops) == (12 + 2 * 80, 12, 20)
    assert (decode.modelled_flops, decode.modelled_bytes) == (2, 17)
    assert {op.op: op.calls for op in decode.ops} == {"aten.add": 2, "kernels.gemv": 2}
    assert kernel_counting.active is None


def test_a_second_request_adds_to_the_phases() -> None:
    with CountingPass(0) as counted:
        for request in ("r", "s"):
            counted.meter.start(request, 3)
            counted.meter.phase("prefill")
            counted.meter.step(3, 3)
            kernel_counting.record("gemv", Cost(1, 1, 1))
            counted.meter.phase("decode")
    (prefill,) = counted.phases(None)
    assert (prefill.steps, prefill.tokens, prefill.flops) == (2, 6, 2)
    assert (prefill.modelled_flops, prefill.modelled_bytes) == (0, 0)
    assert counted.meter.steps["prefill"] == [Step(3, 3), Step(3, 3)]


@pytest.mark.parametrize("rows", [1, 40], ids=["the C++ kernel", "torch inside the kernel's dispatcher"])
def test_work_inside_a_kernel_counts_once(rows: int) -> None:
    from kernels.gemv import linear

    x, weight = zeros(rows, IN), zeros(OUT, IN)
    (op,) = ops_of(lambda: linear(x, weight))
    assert op.op == "kernels.gemv"
    assert op.flops == 2 * rows * IN * OUT


def test_an_error_inside_leaves_nothing_counting() -> None:
    with pytest.raises(ZeroDivisionError), CountingPass(0):
        _ = 1 / 0
    assert kernel_counting.active is None
    assert torch.utils._python_dispatch._get_current_dispatch_mode() is None
