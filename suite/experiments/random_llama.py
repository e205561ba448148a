"""A Llama of a billion random weights, plain and packed, whose head is a small share of a step's bytes: for times only.

The shape is that of TinyLlama 1.1B. Codes, tables and outliers are random and as many as SqueezeLLM has of them.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import nullcontext

import torch
from torch import nn

from kernels.lut_gemv import row_words
from suite.experiments.clock import Stamps
from suite.methods.weights.base import swapped
from suite.methods.weights.linear import LutLinear, plain_linears
from suite.models.attention import DenseAttention
from suite.models.config import ModelConfig
from suite.models.decoder import Decoder

SHAPE = ModelConfig("llama", 22, 2048, 5632, 32, 4, 64, 32000, 2048)
OUTLIERS = 0.0045
DRAWN = 64
"""Rows of a matrix that are drawn; the others repeat them."""


def random_decoder() -> Decoder:
    """In bf16, with weights of a size that keeps activations finite."""
    with torch.device("meta"):
        decoder = Decoder(SHAPE).cast_weights(torch.bfloat16)
    decoder = decoder.to_empty(device="cpu")
    for parameter in decoder.parameters():
        if parameter.dim() == 1:
            nn.init.ones_(parameter)
            continue
        rows = torch.randn(DRAWN, parameter.shape[1]) * parameter.shape[1] ** -0.5
        parameter.copy_(rows.repeat(-(-len(parameter) // DRAWN), 1)[: len(parameter)])
    return decoder


def random_codes(decoder: Decoder, bits: int) -> dict[str, LutLinear]:
    """What takes the place of the decoder's matrices, by name."""
    made = {}
    for name, linear in plain_linears(decoder).items():
        outputs, inputs = linear.weight.shape
        entries = round(OUTLIERS * inputs)
        tensors = {
            "packed": torch.randint(-(2**15), 2**15, (outputs, row_words(inputs, bits)), dtype=torch.int16),
            "tables": (torch.randn(outputs, 2**bits) * inputs**-0.5).bfloat16(),
            "starts": torch.arange(0, outputs + 1, dtype=torch.int32) * entries,
            "columns": torch.randint(0, inputs, (outputs, entries), dtype=torch.int32).sort(1).values.flatten(),
            "values": (torch.randn(outputs * entries) * inputs**-0.5).bfloat16(),
        }
        made[name] = LutLinear(inputs, tensors)
    return made


def decode(decoder: Decoder, packed: Mapping[str, LutLinear], ids: list[int], count: int) -> Stamps:
    """Times in ns of `count` tokens behind a prompt, with these matrices; none: the decoder's own."""
    with torch.inference_mode(), swapped(decoder, packed) if packed else nullcontext():
        attention, cache = DenseAttention(SHAPE), decoder.new_cache(1, len(ids) + count)
        times = [time.perf_counter_ns()]
        fed = torch.tensor([ids])
        for _ in range(count):
            fed = decoder(fed, cache, attention).argmax(-1)[:, None]
            times.append(time.perf_counter_ns())
    return times


def bytes_read(decoder: Decoder, packed: Mapping[str, LutLinear]) -> int:
    """Bytes of the weights that one token reads, the head's included and the embedding's not."""
    own = sum(linear.weight.nbytes for linear in plain_linears(decoder).values())
    layers = sum(linear.weight_bytes() for linear in packed.values()) if packed else own
    return decoder.head.weight.nbytes + layers
