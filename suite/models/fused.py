"""A decoder's layers as one `LayerStack`: for a few rows, a layer is one call instead of eight."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

from kernels.decode_layer import LayerShape, LayerStack, LayerWeights, Matrix, readable, servable
from suite.models.config import ModelConfig

if TYPE_CHECKING:
    from suite.models.decoder import Layer, Layers, RMSNorm


def layer_stack(decoder: Layers) -> LayerStack | None:
    """The layers' weights where they are now; None where the separate modules have to run.

    That is: without the C++ kernel, with hooks on a module (steering), or with a projection that is no matrix, plain or
    packed.
    """
    shape = layer_shape(decoder.config)
    layers = [cast("Layer", layer) for layer in decoder.layers]
    modules = [module for layer in layers for module in layer.modules()]
    if not servable(shape, decoder.dtype) or any(_hooked(module) for module in modules):
        return None
    matrices = [_matrices(layer, decoder.dtype) for layer in layers]
    if None in matrices:
        return None
    pairs = zip(layers, matrices, strict=True)
    weights = [layer_weights(layer, found, decoder.config) for layer, found in pairs if found is not None]
    return LayerStack(shape, weights, decoder.dtype)


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


def layer_weights(layer: Layer, matrices: Sequence[Matrix], config: ModelConfig) -> LayerWeights:
    """The tensors of one layer, shared with its modules."""
    attention = layer.attention
    qkv, out, gate_up, down = matrices
    return LayerWeights(
        attention_norm=layer.attention_norm.weight,
        qkv=qkv,
        qkv_bias=attention.qkv.bias,
        q_norm=_weight(attention.q_norm),
        k_norm=_weight(attention.k_norm),
        out=out,
        out_bias=attention.out.bias,
        post_attention_norm=_weight(layer.post_attention_norm),
        mlp_norm=layer.mlp_norm.weight,
        gate_up=gate_up,
        down=down,
        post_mlp_norm=_weight(layer.post_mlp_norm),
        window=config.sliding(attention.layer) or 0,
    )


def _matrices(layer: Layer, dtype: torch.dtype) -> list[Matrix] | None:
    """Those of the four projections, if all are matrices that the kernel can read."""
    from suite.models.decoder import Linear

    found: list[Matrix] = []
    for part in (layer.attention.qkv, layer.attention.out, layer.mlp.gate_up, layer.mlp.down):
        matrix = part.weight if type(part) is Linear else getattr(part, "matrix", None)  # packed ones have it
        if matrix is None or not readable(matrix, dtype):
            return None
        found.append(matrix)
    return found


def _hooked(module: nn.Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks)


def _weight(norm: RMSNorm | None) -> Tensor | None:
    return None if norm is None else norm.weight
