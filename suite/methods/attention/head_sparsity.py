"""How much each head keeps in vertical-slash prefill: the same for all, or figures of its own from a file."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from torch import Tensor

from suite.errors import InputError
from suite.methods.attention.vertical_slash import Sparsity
from suite.models.config import ModelConfig
from suite.models.language_model import LanguageModel


class HeadFile(BaseModel):
    """The file: columns, diagonals and measured attention recall by layer and query head."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str
    model_digest: str
    verticals: list[list[int]]
    slashes: list[list[int]]
    recall: list[list[float]] = []


@dataclass
class HeadSparsity:
    """verticals and slashes int64 [layers, H], the forced first columns and nearest diagonals among them.

    recall [layers, H]: the share of attention mass measured with them; empty where nothing was measured.
    """

    verticals: Tensor
    slashes: Tensor
    sinks: int
    near: int
    recall: Tensor = field(default_factory=lambda: torch.empty(0, 0))

    def layer(self, layer: int) -> Sparsity:
        """One layer's part."""
        return Sparsity(self.verticals[layer], self.slashes[layer], self.sinks, self.near)

    @classmethod
    def uniform(cls, model: ModelConfig, config: Any) -> HeadSparsity:
        """The config's figures for every head."""
        shape = (model.layers, model.heads)
        verticals, slashes = torch.full(shape, config.verticals), torch.full(shape, config.slashes)
        return cls(verticals, slashes, config.sinks, config.near)

    @classmethod
    def read(cls, path: Path, model: LanguageModel, config: Any) -> HeadSparsity:
        """`InputError` for a file that is none, or is another model's."""
        try:
            document = HeadFile.model_validate_json(path.read_text(encoding="utf-8"))
            counts = [torch.tensor(x, dtype=torch.int64) for x in (document.verticals, document.slashes)]
        except (OSError, ValueError, ValidationError) as error:
            raise InputError(f"{path} is no per-head sparsity file: {str(error).splitlines()[0]}.") from error
        expected = (model.config.layers, model.config.heads)
        if document.model_digest != model.digest or any(count.shape != expected for count in counts):
            raise InputError(f"{path} was made for {document.model}, not for {model.name}; give another file name.")
        return cls(counts[0], counts[1], config.sinks, config.near)

    def write(self, path: Path, model: LanguageModel) -> None:
        """As `read` reads it."""
        document = HeadFile(
            model=model.name,
            model_digest=model.digest,
            verticals=self.verticals.tolist(),
            slashes=self.slashes.tolist(),
            recall=self.recall.round(decimals=4).tolist(),
        )
        path.write_text(json.dumps(document.model_dump()) + "\n", encoding="utf-8")
