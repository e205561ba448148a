"""Decoders made of another one's parts: modules are shared, weights of any kind with them, and nothing is copied."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import TypeVar

from torch import nn

from suite.models.decoder import Decoder, Layer, RMSNorm

M = TypeVar("M", bound=nn.Module)


def shallow(module: M) -> M:
    """The same module, whose parts can be exchanged without the original's noticing."""
    twin = copy.copy(module)
    twin._modules, twin._parameters = dict(module._modules), dict(module._parameters)
    return twin


def with_layers(decoder: Decoder, layers: Sequence[nn.Module], norm: RMSNorm, vocab: int) -> Decoder:
    """Another decoder's embedding and head around these layers; the head speaks its first `vocab` tokens only."""
    twin = shallow(decoder)
    twin.layers, twin.norm = nn.ModuleList(layers), norm
    twin.head = shallow(decoder.head)
    twin.head.weight = nn.Parameter(decoder.head.weight[:vocab], requires_grad=False)
    twin.config = replace(decoder.config, layers=len(layers), vocab=vocab, windows=())
    return twin


def copied_layer(decoder: Decoder, index: int) -> Layer:
    """A layer of its own in fp32 that begins as this one; as a random one where the decoder's is quantised."""
    layer = Layer(decoder.config, index)
    weights = decoder.layers[index].state_dict()
    if weights.keys() == layer.state_dict().keys():
        layer.load_state_dict(weights)
    return layer
