"""`distilled` and `distilled-w4`: small draft models, the target's first layers trained to say what the target says.

Their embedding and head are the target's own and never saved. `distilled-w4` is the middle model of HierSpec
(arXiv 2505.22179; card `methods/specmquant.md`), whose matrices are stored as int4 in groups of 128.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from kernels.w4_gemm import dequantise
from suite.models.decoder import Decoder
from suite.models.int4 import round_to_int4
from suite.models.recipes.drafts import DraftRecipe, draft_vocab, soft_cross_entropy
from suite.models.twins import copied_layer, with_layers


class DraftLayers(nn.Module):
    """Layers in fp32 that began as the target's first ones, and a final norm."""

    def __init__(self, decoder: Decoder, count: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(copied_layer(decoder, index) for index in range(count))
        self.norm = copy.deepcopy(decoder.norm).requires_grad_(True)

    def decoder(self, target: Decoder) -> Decoder:
        """A model of these layers between the target's embedding and head."""
        return with_layers(target, list(self.layers), self.norm, draft_vocab(target))

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Takes packed matrices for what they stand for."""
        whole = {name: value for name, value in state_dict.items() if not name.endswith((".packed", ".scales"))}
        shapes = {name: parameter.shape for name, parameter in self.named_parameters()}
        for name in (key.removesuffix(".packed") for key in state_dict if key.endswith(".packed")):
            packed, scales = state_dict[f"{name}.packed"], state_dict[f"{name}.scales"]
            whole[f"{name}.weight"] = dequantise(packed, scales, shapes[f"{name}.weight"][1], torch.float32)
        return super().load_state_dict(whole, strict, assign)

    def packed(self) -> dict[str, Tensor]:
        """The state with every matrix as int4 codes and scales."""
        state: dict[str, Tensor] = {}
        for name, value in self.state_dict().items():
            if value.dim() == 2:
                stem = name.removesuffix(".weight")
                state[f"{stem}.packed"], state[f"{stem}.scales"] = round_to_int4(value)
            else:
                state[name] = value
        return state

    def rounded(self) -> DraftLayers:
        """A copy that is what it will be when it was saved as int4."""
        twin = copy.deepcopy(self)
        twin.load_state_dict(self.packed())
        return twin

    @property
    def digest(self) -> str:
        """sha256 over all weights: who was trained on these layers' states knows them by it."""
        found = hashlib.sha256()
        for name, value in sorted(self.state_dict().items()):
            found.update(name.encode())
            found.update(value.float().contiguous().numpy().tobytes())
        return found.hexdigest()


class DistilledRecipe(DraftRecipe[DraftLayers]):
    """One layer, saved in bf16: soft cross-entropy under the target's law over the draft's own vocabulary."""

    name = "distilled"
    summary = "the first layer of the target, trained to its law: a small draft model"
    layers: ClassVar[int] = 1

    @property
    def owner(self) -> Decoder:
        """The target."""
        return self.model.decoder

    def build(self) -> DraftLayers:
        """The target's first layers, at least one fewer than it has."""
        return DraftLayers(self.model.decoder, max(1, min(self.layers, self.model.config.layers - 1)))

    def distance(self, draft: DraftLayers, ids: Tensor, states: Tensor) -> Tensor:
        student = draft.decoder(self.model.decoder)
        return soft_cross_entropy(student.train_logits(ids), student.to_logits(states))

    def choices(self, draft: DraftLayers, ids: Tensor, states: Tensor) -> tuple[Tensor, Tensor]:
        own = draft.decoder(self.model.decoder).train_logits(ids)
        return own.argmax(dim=-1), self.model.decoder.to_logits(states).argmax(dim=-1)

    def describe(self, draft: DraftLayers) -> dict[str, Any]:
        return {**super().describe(draft), "layers": len(draft.layers)}

    def save(self, draft: DraftLayers, directory: Path) -> None:
        """Matrices in bf16, norms in fp32."""
        state = {name: value.bfloat16() if value.dim() == 2 else value for name, value in draft.state_dict().items()}
        save_file(state, directory / "model.safetensors")


class DistilledW4Recipe(DistilledRecipe):
    """Four layers, trained in fp32 and judged and saved as int4."""

    name = "distilled-w4"
    summary = "the first four layers of the target, trained to its law, in int4: the middle model of specmquant"
    layers = 4

    def evaluate(self, draft: DraftLayers) -> dict[str, float]:
        """As it will be saved."""
        return super().evaluate(draft.rounded())

    def save(self, draft: DraftLayers, directory: Path) -> None:
        """Packed matrices with their scales; norms in fp32."""
        save_file(draft.packed(), directory / "model.safetensors")
