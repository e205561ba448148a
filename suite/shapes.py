"""What the analytic roofline needs to know of a loaded model."""

from __future__ import annotations

from analysis.roofline.shape import ModelShape
from suite.models.config import ModelConfig


def shape_of(config: ModelConfig) -> ModelShape:
    """The shape of a model with this config."""
    return ModelShape(
        config.layers, config.hidden, config.intermediate, config.heads, config.kv_heads, config.head_dim, config.vocab,
        config.tied, config.windows,
    )  # fmt: skip
