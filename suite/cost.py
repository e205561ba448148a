"""What a method changes of a forward pass's work, in the terms the analytic roofline counts in.

A method says it in `Method.cost`; one that says nothing costs what dense decoding does. Every figure may be an array,
one value per point of a sweep.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Count = float | NDArray[np.float64]
"""A number, or one per point of a sweep."""


@dataclass(frozen=True)
class Situation:
    """Where a cost is asked for: `tokens` of context, the model's dimensions, bytes of an activation.

    The first `prompt` tokens are the prompt; None: all of them.
    """

    tokens: Count
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    element_bytes: float = 2.0
    prompt: Count | None = None

    @property
    def group(self) -> int:
        """Query heads per KV head."""
        return self.heads // self.kv_heads

    def share(self, read: Count) -> Count:
        """The share of the cached tokens that `read` of them are; at most 1."""
        return np.minimum(1.0, read / self.tokens)

    def prompt_share(self, read: Count) -> Count:
        """The share of all (query, key) pairs of a prompt in which no query reads more than `read` tokens."""
        kept = self.share(read)
        return kept * (2 - kept)

    def distinct(self, chains: int) -> Count:
        """The share of the texts of several answers to one prompt that differs: the prompt is common to all."""
        common = 1.0 if self.prompt is None else self.share(self.prompt)
        return 1 - common * (1 - 1 / chains)

    def beyond(self, tokens: float) -> Count:
        """1 where the context is longer than this, else 0."""
        return np.where(np.greater(self.tokens, tokens), 1.0, 0.0)[()]


@dataclass(frozen=True)
class Drafter:
    """What drafts for a model: before each pass `steps` steps of the model `name`.

    Without a name it is the first `layers` of the model itself, or as many of that size, with the first `vocab` rows of
    its head (0: all) and weights of `weight_bits` (None: as asked for). `shared` layers are the model's own modules,
    packed as a weights method packs them.
    """

    steps: int
    name: str = ""
    layers: int = 1
    vocab: int = 0
    weight_bits: float | None = None
    shared: bool = False


@dataclass(frozen=True)
class MethodCost:
    """A method beside dense decoding. The defaults are dense decoding.

    A query of a decode step reads the share `kept` of the keys; all query heads together read `read` of them, where
    those of a group choose apart (None: `kept`). To choose, `index_bytes` are read per sequence and step, over all
    layers, with `index_flops`. Prefill keeps `prefill_kept` of its (query, key) pairs; `stored` of the cache stays.
    The layers' matrices have `weight_bits` (None: as asked for) and, per output row, `row_bytes` of table or scales.
    A pass verifies `drafted` tokens beside the newest one, which `drafter` made, or a look-up that costs nothing.
    `vectors` layers add a steering vector; `chains` answers to one prompt are decoded together.
    """

    kept: Count = 1.0
    index_bytes: Count = 0.0
    index_flops: Count = 0.0
    read: Count | None = None
    prefill_kept: Count = 1.0
    stored: Count = 1.0
    weight_bits: float | None = None
    row_bytes: float = 0.0
    drafted: int = 0
    drafter: Drafter | None = None
    vectors: int = 0
    chains: int = 1

    @property
    def moved(self) -> Count:
        """The share of the keys that all query heads read together."""
        return self.kept if self.read is None else self.read


DENSE = MethodCost()


def together(costs: Iterable[MethodCost]) -> MethodCost:
    """Methods of different families at once: each changes figures that the others leave alone."""
    changed: dict[str, Any] = {}
    for cost in costs:
        changed |= {name: value for name, value in vars(cost).items() if value is not getattr(DENSE, name)}
    return MethodCost(**changed)
