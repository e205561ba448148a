"""One model on several devices: what one of them holds and computes, and what they tell each other (alpha-beta model).

Tensor parallelism divides heads, MLP width and vocabulary, at two all-reduces per layer. Expert parallelism divides the
batch outside the experts and the experts themselves, at two all-to-alls per layer with experts. Pipeline stages hold a
share of the layers each, and work on a share of the batch each. Formulas: `methods/_roofline.md` section 4.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from analysis.roofline.operators import Operator, Precision
from analysis.roofline.shape import ModelShape
from suite.cost import Count
from suite.errors import InputError


@dataclass(frozen=True)
class Parallel:
    """Degrees of the three kinds of parallelism; their product is the number of devices."""

    tensor: int = 1
    pipeline: int = 1
    expert: int = 1

    @property
    def devices(self) -> int:
        """Devices in all."""
        return self.tensor * self.pipeline * self.expert

    def check(self, shape: ModelShape) -> None:
        """`InputError` where the model cannot be divided so."""
        if shape.heads % self.tensor or shape.intermediate % self.tensor:
            raise InputError(
                f"--tensor {self.tensor} does not divide {shape.heads} heads and a width of {shape.intermediate}."
            )
        if self.pipeline > shape.layers:
            raise InputError(f"--pipeline {self.pipeline} has more stages than the model has layers, {shape.layers}.")
        if self.expert > 1 and (shape.experts is None or shape.experts.count % self.expert):
            count = shape.experts.count if shape.experts else 0
            raise InputError(f"--expert {self.expert} does not divide the {count} experts of the model evenly.")

    def device_shape(self, shape: ModelShape) -> ModelShape:
        """What one device holds of every layer; KV heads that are too few for all devices are held by several."""
        t, experts = self.tensor, shape.experts
        if t == 1:
            return shape
        return replace(
            shape,
            heads=shape.heads // t,
            kv_heads=np.maximum(1, shape.kv_heads // t),
            intermediate=shape.intermediate // t,
            vocab=-(-shape.vocab // t),
            experts=experts and replace(experts, intermediate=experts.intermediate // t, shared=experts.shared // t),
        )

    def device_batch(self, batch: Count) -> Count:
        """Sequences one device works on at a time; never less than one."""
        parts = self.expert * self.pipeline
        return batch if parts == 1 else np.maximum(1.0, batch / parts)

    def stage_layers(self, shape: ModelShape) -> int:
        """Layers of the largest stage."""
        return -(-shape.layers // self.pipeline)

    def gathered(self, shape: ModelShape, precision: Precision, rows: Count) -> Operator:
        """Collecting the logits of `rows` tokens, of which every device has a part of the vocabulary."""
        t, logits = self.tensor, rows * shape.vocab * precision.activation
        return Operator("all_gather", 1, 0.0, link_bytes=(t - 1) / t * logits, link_steps=t - 1)

    def collectives(self, shape: ModelShape, precision: Precision, tokens: Count) -> Iterator[Operator]:
        """What the devices send in the layers of one pass over `tokens` tokens each."""
        t, e, hidden = self.tensor, self.expert, tokens * shape.hidden * precision.activation
        if t > 1:
            reduced = Operator("all_reduce", 1, 0.0, link_bytes=2 * (t - 1) / t * hidden, link_steps=2 * (t - 1))
            yield reduced * (2 * shape.layers + 1)
        if e > 1 and shape.experts is not None:
            routed = (e - 1) / e * hidden * shape.experts.per_token
            yield Operator("all_to_all", 1, 0.0, link_bytes=routed, link_steps=e - 1) * (2 * shape.experts.layers)
        if self.pipeline > 1:
            yield Operator("send", 1, 0.0, link_bytes=hidden, link_steps=1) * (self.pipeline - 1)


ALONE = Parallel()
