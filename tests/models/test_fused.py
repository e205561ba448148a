"""The fused decode path: same tokens and same counts as the separate modules, and off where it must be."""

from __future__ import annotations

import pytest
import torch

from kernels import counting
from suite.models.attention import DenseAttention
from suite.models.config import ModelConfig
from suite.models.decoder import STACK_ROWS, Decoder

SHAPE = {"layers": 3, "hidden": 64, "intermediate": 96, "heads": 4, "kv_heads": 2, "head_dim": 16, "vocab": 50}
EVERYTHING = {
    "qkv_bias": True, "output_bias": True, "qk_norm": True, "post_norms": True, "activation": "gelu_tanh",
    "attention_softcap": 5.0, "windows": (None, 7, None),
}  # fmt: skip


PROMPT = STACK_ROWS + 6  # which has to run layer by layer


def made(dtype: torch.dtype = torch.float32, **switches: object) -> Decoder:
    torch.manual_seed(0)
    return Decoder(ModelConfig(architecture="test", window=128, **SHAPE, **switches)).cast_weights(dtype)


def decoded(decoder: Decoder, *, fused: bool, batch: int = 1, steps: int = 4) -> torch.Tensor:
    """Logits of some steps behind a prompt."""
    cache = decoder.new_cache(batch, PROMPT + 20)
    if not fused:
        decoder._stack = None
    attention = DenseAttention(decoder.config)
    with torch.inference_mode():
        decoder(torch.arange(PROMPT).remainder(20).repeat(batch, 1), cache, attention)
        return torch.stack([decoder(torch.full((batch, 1), step), cache, attention) for step in range(steps)])


@pytest.mark.parametrize("switches", [{}, EVERYTHING], ids=["llama", "everything"])
@pytest.mark.parametrize("batch", [1, 3])
def test_fused_layers_give_the_logits_of_the_modules(switches: dict, batch: int) -> None:
    decoder = made(**switches)
    torch.testing.assert_close(decoded(decoder, fused=True, batch=batch), decoded(decoder, fused=False, batch=batch))
    assert decoder.new_cache(1, 1) is not None
    assert decoder._stack is not None


@pytest.mark.parametrize("switches", [{}, EVERYTHING], ids=["llama", "everything"])
def test_fused_layers_count_what_the_modules_count(switches: dict) -> None:
    decoder, totals = made(**switches), []
    for fused in (True, False):
        with counting.counting() as counter:
            decoded(decoder, fused=fused, steps=1)
        totals.append(counter.costs["flash_decode"])
    assert totals[0] == totals[1]


def test_a_hook_switches_the_fused_path_off_for_the_next_batch() -> None:
    decoder, seen = made(), []
    handle = decoder.layers[1].register_forward_hook(lambda module, inputs, output: seen.append(output.shape))
    decoded(decoder, fused=True, steps=2)
    assert len(seen) == 3
    handle.remove()
    decoded(decoder, fused=True, steps=2)
    assert len(seen) == 3


def test_a_replaced_projection_is_not_fused() -> None:
    decoder = made()
    decoder.layers[0].mlp.down = torch.nn.Identity()
    decoder.new_cache(1, 8)
    assert decoder._stack is None


def test_new_weights_are_used_by_the_next_batch() -> None:
    decoder = made()
    before = decoded(decoder, fused=True)
    for layer in decoder.layers:
        layer.mlp.down.weight = torch.nn.Parameter(2 * layer.mlp.down.weight, requires_grad=False)
    assert not torch.allclose(decoded(decoder, fused=True), before)
    torch.testing.assert_close(decoded(decoder, fused=True), decoded(decoder, fused=False))
