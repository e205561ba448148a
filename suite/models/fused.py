"""A decoder's layers as one `LayerStack`: for a few rows, a layer is one call instead of eight."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, cast

from torch import Tensor, nn

from kernels.decode_layer import LayerShape, LayerStack, LayerWeights, servable
from suite.models.config import ModelConfig

if TYPE_CHECKING:
    from suite.models.decoder import Decoder, Layer, Linear, RMSNorm


def layer_stack(decoder: Decoder) -> LayerStack | None:
    """The layers' weights where they are now; None where the separate modules have to run.

    That is: without the C++ kernel, with hooks on a module (steering), or with a projection that is no plain matrix
    (quantised weights).
    """
    from suite.models.decoder import Linear

    shape = layer_shape(decoder.config)
    layers = [cast("Layer", layer) for layer in decoder.layers]
    modules = [module for layer in layers for module in layer.modules()]
    if not servable(shape, decoder.dtype) or any(_hooked(module) for module in modules):
        return None
    projections = [part for layer in layers for part in _projections(layer)]
    if any(type(part) is not Linear or not part.weight.is_contiguous() for part in projections):
        return None
    return LayerStack(shape, [layer_weights(layer, decoder.config) for layer in layers])


def layer_shape(config: ModelConfig) -> LayerShape:
    """What all layers of the model share."""
    return LayerShape(
        hidden=config.hidden,
        heads=config.heads,
        kv_heads=config.kv_heads,
        head_dim=config.head_dim,
        intermediate=config.intermediate,
        activation=config.activation,
        eps=config.rms_eps,
        scale=config.scale,
        softcap=config.attention_softcap,
    )


def layer_weights(layer: Layer, config: ModelConfig) -> LayerWeights:
    """The tensors of one layer, shared with its modules."""
    attention, mlp = layer.attention, layer.mlp
    return LayerWeights(
        attention_norm=layer.attention_norm.weight,
        qkv=attention.qkv.weight,
        qkv_bias=attention.qkv.bias,
        q_norm=_weight(attention.q_norm),
        k_norm=_weight(attention.k_norm),
        out=attention.out.weight,
        out_bias=attention.out.bias,
        post_attention_norm=_weight(layer.post_attention_norm),
        mlp_norm=layer.mlp_norm.weight,
        gate_up=mlp.gate_up.weight,
        down=mlp.down.weight,
        post_mlp_norm=_weight(layer.post_mlp_norm),
        window=config.sliding(attention.layer) or 0,
    )


def _projections(layer: Layer) -> Iterable[Linear]:
    return layer.attention.qkv, layer.attention.out, layer.mlp.gate_up, layer.mlp.down


def _hooked(module: nn.Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks)


def _weight(norm: RMSNorm | None) -> Tensor | None:
    return None if norm is None else norm.weight
