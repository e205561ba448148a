"""What must hold for any model on any machine: dense, windowed, with latent attention, with experts."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from analysis.roofline.estimate import Setup, memory, seconds
from analysis.roofline.model import Execution, Machine, decode, prefill, step_seconds, total_bytes, total_flops, verify
from analysis.roofline.operators import Operator, Precision
from analysis.roofline.parallel import Parallel
from analysis.roofline.shape import Experts, Latent, ModelShape

BF16 = Precision()
UNFUSED = Execution(fused=False)
batches, lengths = st.integers(1, 64), st.integers(1, 20_000)
bits = st.sampled_from([4, 8, 16])


@st.composite
def shapes(draw: st.DrawFn, *, latents: bool = True) -> ModelShape:
    layers, kv_heads = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    count = draw(st.integers(2, 16))
    latent = latents and draw(st.booleans())
    mixture = Experts(
        draw(st.integers(1, layers)), count, draw(st.integers(1, count)), draw(st.sampled_from([32, 64])),
        draw(st.sampled_from([0, 32])),
    )  # fmt: skip
    window = st.one_of(st.none(), st.integers(1, 5000))
    return ModelShape(
        layers=layers,
        hidden=draw(st.sampled_from([64, 96])),
        intermediate=draw(st.sampled_from([128, 192])),
        heads=kv_heads * draw(st.integers(1, 4)),
        kv_heads=kv_heads,
        head_dim=draw(st.sampled_from([16, 32])),
        vocab=draw(st.integers(10, 500)),
        tied=draw(st.booleans()),
        windows=() if latent else tuple(draw(st.lists(window, min_size=layers, max_size=layers))),
        gated=draw(st.booleans()),
        experts=mixture if draw(st.booleans()) else None,
        latent=Latent(32, 8, 16, 24, draw(st.sampled_from([0, 24]))) if latent else None,
    )


@st.composite
def machines(draw: st.DrawFn) -> Machine:
    return Machine("m", draw(st.floats(1e9, 1e15)), draw(st.floats(1e9, 1e13)), draw(st.sampled_from([0.0, 1e-5])))


def named(operators: list[Operator], name: str) -> list[Operator]:
    return [operator for operator in operators if operator.name == name]


def cached(shape: ModelShape, context: int) -> int:
    """Tokens in all layers' caches that a step may read."""
    return sum(count * min(context, window or context) for window, count in shape.layers_by_window().items())


@given(shapes(), batches, lengths)
def test_a_step_moves_its_weights_and_its_cache_at_least(shape: ModelShape, batch: int, context: int) -> None:
    """The I/O lower bound: active weights once, every key and value a query must see once."""
    step = decode(shape, BF16, batch=batch, context=context)
    mixture = shape.experts
    idle = 0
    if mixture is not None:
        idle = mixture.layers * (mixture.count - mixture.per_token) * shape.matrices * shape.hidden
        idle *= mixture.intermediate
    norms = shape.layers * ((shape.latent.rank + shape.latent.query_rank) if shape.latent else 0)
    active = shape.parameters - idle - norms - (0 if shape.tied else shape.vocab * shape.hidden)
    assert sum(op.weight_bytes for op in step) >= 2 * active * (1 - 1e-9)
    assert sum(op.kv_bytes for op in step) >= 2 * batch * cached(shape, context) * shape.kv_width


@given(shapes(), machines(), batches, lengths)
def test_time_lies_between_the_maximum_and_the_sum_of_compute_and_memory(shape, machine, batch, context) -> None:
    step = decode(shape, BF16, batch=batch, context=context)
    launches = machine.launch_s * sum(op.calls for op in step)
    compute, moved = total_flops(step) / machine.flops_per_s, total_bytes(step) / machine.bytes_per_s
    spent = step_seconds(step, machine) - launches
    assert max(compute, moved) * (1 - 1e-9) <= spent <= (compute + moved) * (1 + 1e-9)


@given(shapes(), machines(), batches, lengths, st.integers(1, 5))
def test_more_of_anything_never_takes_less_time(shape, machine, batch, tokens, more) -> None:
    setup = Setup(shape, BF16, machine)
    least = {phase: seconds(found) for phase, found in setup.phases(batch, tokens).items()}
    for larger in (setup.phases(batch + more, tokens), setup.phases(batch, tokens + more)):
        for phase, found in larger.items():
            assert seconds(found) >= least[phase] * (1 - 1e-12)
    deeper = replace(shape, layers=shape.layers + 1, windows=(*shape.windows, None) if shape.windows else ())
    for phase, found in Setup(deeper, BF16, machine).phases(batch, tokens).items():
        assert seconds(found) > least[phase]


@given(shapes(), batches, lengths, bits, bits)
def test_fewer_bits_of_one_kind_save_bytes_of_that_kind(shape, batch, context, one, other) -> None:
    low, high = sorted((one, other))
    for position, field in enumerate(("weight_bytes", "kv_bytes", "activation_bytes")):
        narrow, wide = (
            decode(shape, Precision.of_bits(*(width if place == position else 16 for place in range(3))),
                   batch=batch, context=context)
            for width in (low, high)
        )  # fmt: skip
        less, much = (sum(getattr(op, field) for op in step) for step in (narrow, wide))
        assert less == pytest.approx(much * low / high)


@given(shapes(), machines(), batches, lengths, st.floats(0.1, 10))
def test_units(shape, machine, batch, tokens, factor) -> None:
    """A machine k times as fast takes a k-th of the time; elements k times as wide are k times the bytes."""
    faster = Machine(
        "f", machine.flops_per_s * factor, machine.bytes_per_s * factor, machine.launch_s / factor
    )  # fmt: skip
    step = prefill(shape, BF16, batch=batch, tokens=tokens)
    assert step_seconds(step, faster) == pytest.approx(step_seconds(step, machine) / factor)
    wide = prefill(shape, Precision(2 * factor, 2 * factor, 2 * factor), batch=batch, tokens=tokens)
    assert total_bytes(wide) == pytest.approx(factor * total_bytes(step))
    assert total_flops(wide) == total_flops(step)


@given(shapes(latents=False), batches, lengths, st.integers(2, 4))
def test_fewer_kv_heads_cost_less_cache_and_the_same_attention(shape, batch, context, group) -> None:
    wide = replace(shape, heads=shape.heads * group, kv_heads=shape.kv_heads * group)
    shared = replace(wide, kv_heads=shape.kv_heads)
    many, few = (decode(one, BF16, batch=batch, context=context) for one in (wide, shared))
    kv = [sum(op.kv_bytes for op in step) for step in (many, few)]
    assert kv[0] == pytest.approx(group * kv[1])
    work = [sum(op.flops for op in named(step, "attention")) for step in (many, few)]
    assert work[0] == work[1]


@given(shapes(), machines(), batches, lengths)
def test_flash_attention_is_never_slower_than_unfused(shape, machine, batch, tokens) -> None:
    for fused, unfused in (
        (prefill(shape, BF16, batch=batch, tokens=tokens),
         prefill(shape, BF16, batch=batch, tokens=tokens, execution=UNFUSED)),
        (decode(shape, BF16, batch=batch, context=tokens),
         decode(shape, BF16, batch=batch, context=tokens, execution=UNFUSED)),
    ):  # fmt: skip
        assert total_bytes(fused) < total_bytes(unfused)
        assert step_seconds(fused, machine) <= step_seconds(unfused, machine)


@given(shapes(latents=False), batches, lengths)
def test_causality_halves_prefill(shape, batch, tokens) -> None:
    """Against a square of scores, where no window cuts it further."""
    plain = replace(shape, windows=())
    work = sum(op.flops for op in named(prefill(plain, BF16, batch=batch, tokens=tokens), "attention"))
    square = 4.0 * plain.layers * batch * plain.heads * plain.head_dim * tokens * tokens
    assert work / square == pytest.approx((tokens + 1) / (2 * tokens))


@given(shapes(latents=False), batches, lengths)
def test_windows_only_ever_save(shape, batch, tokens) -> None:
    plain, far = replace(shape, windows=()), replace(shape, windows=(tokens,) * shape.layers)
    for phase in (prefill, lambda *a, tokens, **k: decode(*a, context=tokens, **k)):
        whole, cut, same = (phase(one, BF16, batch=batch, tokens=tokens) for one in (plain, shape, far))
        assert total_flops(cut) <= total_flops(whole) * (1 + 1e-12)
        assert total_bytes(cut) <= total_bytes(whole) * (1 + 1e-12)
        assert total_flops(same) == total_flops(whole)


@given(shapes(), machines(), batches, lengths, st.integers(1, 8))
def test_verifying_a_draft_is_no_dearer_than_the_steps_it_replaces(shape, machine, batch, context, drafted) -> None:
    judged = step_seconds(verify(shape, BF16, batch=batch, context=context, drafted=drafted), machine)
    steps = [step_seconds(decode(shape, BF16, batch=batch, context=context + n), machine) for n in range(drafted + 1)]
    assert steps[0] <= judged * (1 + 1e-9)
    assert judged <= sum(steps) * (1 + 1e-9)


@given(shapes(latents=False), machines(), batches, lengths)
def test_two_devices_save_at_most_half(shape, machine, batch, context) -> None:
    even = replace(shape, heads=2 * shape.heads, kv_heads=2 * shape.kv_heads, vocab=2 * shape.vocab)
    linked = replace(machine, link_bytes_per_s=1e11)
    alone = step_seconds(decode(even, BF16, batch=batch, context=context), linked)
    both = Execution(parallel=Parallel(tensor=2))
    shared = step_seconds(decode(even, BF16, batch=batch, context=context, execution=both), linked)
    assert shared >= alone / 2


@given(shapes(), machines(), st.lists(st.tuples(batches, lengths), min_size=1, max_size=5), st.booleans())
def test_a_sweep_is_its_points(shape, machine, points, fused) -> None:
    """One implementation: the same figures from numbers and from arrays."""
    setup = Setup(shape, BF16, machine, fused=fused)
    batch, tokens = (np.array(axis, dtype=float) for axis in zip(*points, strict=True))
    swept = setup.phases(batch, tokens)
    held = memory(setup, swept, batch, tokens).total
    for index, (b, t) in enumerate(points):
        alone = setup.phases(b, t)
        for phase, found in swept.items():
            assert seconds(found)[index] == pytest.approx(float(seconds(alone[phase])), rel=1e-12)
        assert held[index] == pytest.approx(float(memory(setup, alone, b, t).total), rel=1e-12)
