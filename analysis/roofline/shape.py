"""What a decoder looks like to the roofline: its dimensions, read from a Hugging Face config or a preset by name.

Presets (`models.toml`) are excerpts of the published `config.json` files, so one reader serves both. Text towers only.
"""

from __future__ import annotations

import difflib
import functools
import json
import tomllib
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from analysis.roofline.operators import Precision
from suite.errors import InputError

MODELS_FILE = Path(__file__).with_name("models.toml")
ALIASES = {
    "num_hidden_layers": ("n_layer", "num_layers"),
    "hidden_size": ("n_embd",),
    "num_attention_heads": ("n_head",),
    "num_key_value_heads": ("multi_query_group_num",),
    "intermediate_size": ("ffn_dim", "ffn_hidden_size", "n_inner"),
    "vocab_size": ("padded_vocab_size",),
    "num_experts": ("num_local_experts", "n_routed_experts"),
}
UNGATED = ("opt", "gptj", "gpt2", "gpt_neox", "phi")
"""Model types whose MLP has two matrices."""
WINDOW_PERIODS = {"gemma2": 2, "gemma3": 6, "gemma3_text": 6, "llama4": 4, "llama4_text": 4, "cohere2": 4}
"""The last layer of each period attends to everything, the others have the window."""


@dataclass(frozen=True)
class Experts:
    """A mixture of experts in `layers` of the layers: `per_token` of `count` experts of width `intermediate`.

    Besides, every token passes through shared experts of width `shared`, in all.
    """

    layers: int
    count: int
    per_token: int
    intermediate: int
    shared: int = 0


@dataclass(frozen=True)
class Latent:
    """Multi-head latent attention: a token's cache is one latent of `rank` and one rotated key of `rope` elements.

    Keys of a head have `plain` + `rope` elements, values `value`. `query_rank` is 0 where queries are not compressed.
    """

    rank: int
    rope: int
    plain: int
    value: int
    query_rank: int = 0


@dataclass(frozen=True)
class ModelShape:
    """Dimensions of a decoder. `windows[l]` is layer l's sliding window in tokens, None for none.

    `intermediate` is the width of the layers without experts; an MLP that is not `gated` has two matrices, not three.
    """

    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    tied: bool = False
    windows: tuple[int | None, ...] = ()
    gated: bool = True
    experts: Experts | None = None
    latent: Latent | None = None

    @classmethod
    def from_hf(cls, config: Mapping[str, Any]) -> ModelShape:
        """From the dictionary of a Hugging Face `config.json`; `InputError` names a missing field."""
        fields = _Fields(config)
        try:
            heads, layers = int(fields["num_attention_heads"]), int(fields["num_hidden_layers"])
            hidden = int(fields["hidden_size"])
            return cls(
                layers=layers,
                hidden=hidden,
                intermediate=int(fields.get("intermediate_size_mlp") or fields["intermediate_size"]),
                heads=heads,
                kv_heads=int(fields.get("num_key_value_heads") or heads),
                head_dim=int(fields.get("head_dim") or hidden // heads),
                vocab=int(fields["vocab_size"]),
                tied=bool(fields.get("tie_word_embeddings", fields.kind.startswith("gemma"))),
                windows=_windows(fields, layers),
                gated=fields.kind not in UNGATED,
                experts=_experts(fields, layers),
                latent=_latent(fields),
            )
        except KeyError as missing:
            raise InputError(f"the model's config has no field {missing}, which a Llama-family one has.") from missing
        except (TypeError, ValueError, ZeroDivisionError) as error:
            raise InputError(f"the model's config has a field of the wrong kind: {error}.") from error

    def shortened(self, layers: int) -> ModelShape:
        """The same model with fewer layers, experts in the same share of them."""
        mixed = self.experts.layers * layers // self.layers if self.experts else 0
        experts = replace(self.experts, layers=mixed) if self.experts and mixed else None
        return replace(self, layers=layers, windows=self.windows[:layers], experts=experts)

    def layers_by_window(self) -> Counter[int | None]:
        """How many layers have each window."""
        return Counter(self.windows) if self.windows else Counter({None: self.layers})

    @property
    def dense_layers(self) -> int:
        """Layers without experts."""
        return self.layers - (self.experts.layers if self.experts else 0)

    @property
    def matrices(self) -> int:
        """Matrices of an MLP."""
        return 3 if self.gated else 2

    @property
    def attention_parameters(self) -> int:
        """Weights of one layer's attention projections, the norms inside latent attention included."""
        if (latent := self.latent) is None:
            return 2 * self.hidden * (self.heads + self.kv_heads) * self.head_dim
        queries, rank = self.heads * (latent.plain + latent.rope), latent.query_rank
        asked = rank * (self.hidden + queries + 1) if rank else self.hidden * queries
        kept = self.hidden * (latent.rank + latent.rope) + latent.rank
        return asked + kept + self.heads * (latent.rank * (latent.plain + latent.value) + latent.value * self.hidden)

    @property
    def layer_parameters(self) -> int:
        """Weights of one layer without experts: attention, MLP, two norms."""
        return self.attention_parameters + self.matrices * self.hidden * self.intermediate + 2 * self.hidden

    @property
    def expert_layer_parameters(self) -> int:
        """Weights of one layer with experts: attention, all experts, router, two norms; 0 where there is none."""
        if (experts := self.experts) is None:
            return 0
        width = experts.count * experts.intermediate + experts.shared
        return self.attention_parameters + self.hidden * (self.matrices * width + experts.count + 2)

    @property
    def parameters(self) -> int:
        """All weights; a tied embedding counts once."""
        embeddings = self.vocab * self.hidden * (1 if self.tied else 2)
        mixed = self.experts.layers if self.experts else 0
        layers = self.dense_layers * self.layer_parameters + mixed * self.expert_layer_parameters
        return layers + self.hidden + embeddings

    @property
    def kv_width(self) -> int:
        """Elements that one token adds to one layer's cache."""
        if self.latent is not None:
            return self.latent.rank + self.latent.rope
        return 2 * self.kv_heads * self.head_dim

    def kv_bytes_per_token(self, precision: Precision) -> float:
        """Bytes one token adds to a full cache over all layers."""
        return self.layers * self.kv_width * precision.kv


class _Fields:
    """A config under the names of the Llama family; a multimodal one gives its text tower's."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        self._config = {**config, **(config.get("text_config") or {})}
        self.kind = str(self._config.get("model_type", ""))

    def get(self, name: str, default: Any = None) -> Any:
        names = (name, *ALIASES.get(name, ()))
        return next((self._config[one] for one in names if self._config.get(one) is not None), default)

    def __getitem__(self, name: str) -> Any:
        if (value := self.get(name)) is None:
            raise KeyError(name)
        return value


def _windows(fields: _Fields, layers: int) -> tuple[int | None, ...]:
    """Llama 4's chunks of attention count as windows, which is what their last token reads: an upper bound."""
    window = fields.get("sliding_window") or fields.get("attention_chunk_size")
    off = fields.get("use_sliding_window") is False
    if not window or off or (fields.kind.startswith("qwen") and not fields.get("use_sliding_window")):
        return ()
    if kinds := fields.get("layer_types"):
        return tuple(None if kind == "full_attention" else int(window) for kind in kinds)
    if period := int(fields.get("sliding_window_pattern") or WINDOW_PERIODS.get(fields.kind, 0)):
        return tuple(int(window) if (layer + 1) % period else None for layer in range(layers))
    first = int(fields.get("max_window_layers", 0)) if fields.kind.startswith("qwen") else 0
    return tuple(int(window) if layer >= first else None for layer in range(layers))


def _experts(fields: _Fields, layers: int) -> Experts | None:
    count = int(fields.get("num_experts", 0))
    if count < 2:
        return None
    every = int(fields.get("interleave_moe_layer_step") or fields.get("decoder_sparse_step") or 1)
    plain = int(fields.get("first_k_dense_replace", 0)) + len(fields.get("mlp_only_layers", ()))
    width = int(fields.get("moe_intermediate_size") or fields["intermediate_size"])
    shared = int(fields.get("shared_expert_intermediate_size", 0)) or width * int(fields.get("n_shared_experts", 0))
    if fields.kind.startswith("llama4"):
        shared = width
    return Experts((layers - plain) // every, count, int(fields["num_experts_per_tok"]), width, shared)


def _latent(fields: _Fields) -> Latent | None:
    if not fields.get("kv_lora_rank"):
        return None
    return Latent(
        rank=int(fields["kv_lora_rank"]),
        rope=int(fields["qk_rope_head_dim"]),
        plain=int(fields["qk_nope_head_dim"]),
        value=int(fields["v_head_dim"]),
        query_rank=int(fields.get("q_lora_rank", 0)),
    )


@functools.cache
def _presets() -> dict[str, dict[str, Any]]:
    return tomllib.loads(MODELS_FILE.read_text())


def preset_names() -> list[str]:
    """Names of all presets, in the file's order."""
    return list(_presets())


def load_preset(name: str, also: Iterable[str] = ()) -> ModelShape:
    """The shape of a published model; `InputError` with a suggestion for an unknown name, from `also` too."""
    presets = _presets()
    if name in presets:
        return ModelShape.from_hf(presets[name])
    known = list(dict.fromkeys([*also, *presets]))
    near = difflib.get_close_matches(name.lower(), known, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}."
    raise InputError(f"unknown model {name!r}; {hint}")


def read_config(path: Path) -> ModelShape:
    """The shape a `config.json` describes; no weights are read."""
    try:
        document = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"{path} is no model config: {error}.") from error
    if not isinstance(document, dict):
        raise InputError(f"{path} is no model config: it holds no object.")
    return ModelShape.from_hf(document)
