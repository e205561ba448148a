"""Properties of the analytic model: bounds, monotony, GQA, causality."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from analysis.roofline.model import Execution, chunked_prefill, decode, forward, prefill
from analysis.roofline.model import total_bytes as model_bytes
from analysis.roofline.model import total_flops as model_flops
from analysis.roofline.operators import AttentionShape, Operator, Precision, attention, causal_pairs, linear
from analysis.roofline.shape import ModelShape
from suite.cost import MethodCost

BF16 = Precision()
small = st.integers(1, 64)
lengths = st.integers(1, 4096)
groups = st.sampled_from([1, 2, 3, 4, 8])
bits = st.sampled_from([4, 8, 16, 32])


@st.composite
def attentions(draw: st.DrawFn) -> AttentionShape:
    kv_heads = draw(st.integers(1, 8))
    return AttentionShape(
        batch=draw(st.integers(1, 4)),
        new=draw(st.integers(1, 300)),
        prefix=draw(st.integers(0, 3000)),
        heads=kv_heads * draw(groups),
        kv_heads=kv_heads,
        head_dim=draw(st.sampled_from([16, 64, 128])),
        window=draw(st.one_of(st.none(), st.integers(1, 500))),
    )


@st.composite
def shapes(draw: st.DrawFn) -> ModelShape:
    kv_heads = draw(st.integers(1, 4))
    return ModelShape(
        layers=draw(st.integers(1, 4)),
        hidden=draw(st.sampled_from([64, 96])),
        intermediate=draw(st.sampled_from([128, 192])),
        heads=kv_heads * draw(groups),
        kv_heads=kv_heads,
        head_dim=draw(st.sampled_from([16, 32])),
        vocab=draw(st.integers(10, 500)),
        tied=draw(st.booleans()),
    )


def flops(operators: list[Operator]) -> float:
    return sum(operator.flops for operator in operators)


def moved(operators: list[Operator]) -> float:
    return sum(operator.bytes for operator in operators)


def brute_force_pairs(new: int, prefix: int, window: int | None) -> int:
    return sum(min(prefix + row + 1, window or prefix + row + 1) for row in range(new))


@given(st.integers(1, 60), st.integers(0, 80), st.one_of(st.none(), st.integers(1, 100)))
def test_causal_pairs_are_those_of_a_loop(new: int, prefix: int, window: int | None) -> None:
    assert causal_pairs(new, prefix, window) == brute_force_pairs(new, prefix, window)


@given(attentions())
def test_attention_moves_at_least_its_inputs_and_outputs(shape: AttentionShape) -> None:
    """Q and O once, and K and V of the kept positions once."""
    queries = 2 * shape.batch * shape.new * shape.heads * shape.head_dim * 2
    keys = 2 * shape.batch * shape.keys * shape.kv_heads * shape.head_dim * 2
    assert moved(attention(shape, BF16)) >= queries + keys


@given(attentions())
def test_fused_attention_moves_less_than_unfused(shape: AttentionShape) -> None:
    assert moved(attention(shape, BF16)) < moved(attention(shape, BF16, fused=False))


@given(attentions(), groups)
def test_query_heads_cost_flops_but_no_kv_bytes(shape: AttentionShape, factor: int) -> None:
    """GQA: K and V are read once per KV head, however many query heads share it."""
    wide = AttentionShape(**(vars(shape) | {"heads": shape.heads * factor}))
    assert flops(attention(wide, BF16)) == pytest.approx(factor * flops(attention(shape, BF16)))
    assert attention(wide, BF16)[0].kv_bytes == attention(shape, BF16)[0].kv_bytes


@given(small, st.integers(1, 2000))
def test_causality_halves_a_full_prompt(batch: int, tokens: int) -> None:
    full = 4.0 * batch * 8 * 64 * tokens * tokens
    core = attention(AttentionShape(batch, tokens, 0, 8, 8, 64), BF16)[0]
    assert core.flops / full == pytest.approx((tokens + 1) / (2 * tokens))


@given(shapes(), lengths, st.integers(1, 500), st.integers(1, 8))
def test_decode_grows_with_context_and_batch(shape: ModelShape, context: int, more: int, batch: int) -> None:
    step = decode(shape, BF16, batch=batch, context=context)
    longer = decode(shape, BF16, batch=batch, context=context + more)
    wider = decode(shape, BF16, batch=batch + 1, context=context)
    assert moved(step) < moved(longer)
    assert flops(step) < flops(longer)
    assert moved(step) < moved(wider)


@given(shapes(), lengths, bits, bits)
def test_fewer_bits_never_move_more(shape: ModelShape, context: int, one: int, other: int) -> None:
    low, high = sorted((one, other))
    for position in range(3):
        narrow, wide = ([width if place == position else 16 for place in range(3)] for width in (low, high))
        fewer = model_bytes(decode(shape, Precision.of_bits(*narrow), batch=2, context=context))
        more = model_bytes(decode(shape, Precision.of_bits(*wide), batch=2, context=context))
        assert fewer < more or low == high


@given(shapes(), st.integers(1, 600), st.integers(1, 700))
def test_chunks_do_the_same_attention_and_reread_the_weights(shape: ModelShape, tokens: int, chunk: int) -> None:
    whole = prefill(shape, BF16, batch=1, tokens=tokens)
    chunked = chunked_prefill(shape, BF16, batch=1, tokens=tokens, chunk=chunk)
    assert model_flops(chunked) == pytest.approx(model_flops(whole))
    assert sum(op.weight_bytes for op in chunked) >= sum(op.weight_bytes for op in whole)


@given(shapes(), lengths, st.floats(0.01, 1.0))
def test_selection_scales_the_kv_read_only(shape: ModelShape, context: int, kept: float) -> None:
    dense = {op.name: op for op in decode(shape, BF16, batch=1, context=context)}
    execution = Execution(method=MethodCost(kept, index_bytes=1000.0))
    sparse = {op.name: op for op in decode(shape, BF16, batch=1, context=context, execution=execution)}
    assert sparse["attention"].kv_bytes == pytest.approx(kept * dense["attention"].kv_bytes)
    assert sparse["index_read"].bytes == 1000.0
    for name in dense.keys() - {"attention"}:
        assert sparse[name] == dense[name]


def test_an_index_is_launched_where_it_is_read() -> None:
    method = MethodCost(index_bytes=np.array([0.0, 1000.0]))
    shape = ModelShape(3, 64, 96, 4, 2, 16, 320)
    found = decode(shape, BF16, batch=1, context=np.array([8.0, 900.0]), execution=Execution(method=method))
    assert next(op.calls for op in found if op.name == "index_read").tolist() == [0, 3]


@given(shapes())
def test_one_token_reads_every_weight_once(shape: ModelShape) -> None:
    """All parameters, except that the embedding gives one row; a tied one is read whole as the head."""
    read = sum(op.weight_bytes for op in decode(shape, BF16, batch=1, context=1))
    unread = 0 if shape.tied else (shape.vocab - 1) * shape.hidden
    extra = shape.hidden if shape.tied else 0
    assert read == 2 * (shape.parameters - unread + extra)


@given(small, st.integers(1, 256), st.integers(1, 256))
def test_linear_flops_are_those_torch_counts(tokens: int, inputs: int, outputs: int) -> None:
    with FlopCounterMode(display=False) as counter:
        torch.empty(tokens, inputs, device="meta") @ torch.empty(inputs, outputs, device="meta")
    assert linear("x", tokens, inputs, outputs, BF16).flops == counter.get_total_flops()


@given(shapes(), lengths)
def test_logits_cost_only_where_they_are_needed(shape: ModelShape, tokens: int) -> None:
    names = {rows: [op.name for op in forward(shape, BF16, batch=1, new=tokens, logit_rows=rows)] for rows in (0, 1)}
    assert "lm_head" not in names[0]
    head = next(op for op in prefill(shape, BF16, batch=3, tokens=tokens) if op.name == "lm_head")
    assert head.flops == 2 * 3 * shape.hidden * shape.vocab
