"""What the family's methods read, for the analytic roofline: their options in its terms, at the least."""

from __future__ import annotations

from typing import Any

import numpy as np

from suite.cost import Count, MethodCost, Situation
from suite.models.recipes.chunkllm import adapter_dim


def actqkv(config: Any, at: Situation) -> MethodCost:
    """Sinks, recent tokens and blocks on average, by the representations of all blocks."""
    tokens = config.n_init + config.n_local + config.topk * config.block
    return _selecting(at, tokens, vectors=at.heads * at.tokens / config.block, prefill_kept=at.prompt_share(tokens))


def chunkllm(config: Any, at: Situation) -> MethodCost:
    """Chunks as long as they may be; the keys of all are read once per chunk."""
    elements = at.layers * adapter_dim(at.hidden) * at.tokens / config.longest / config.longest
    kept = np.maximum(config.retention, at.share(config.budget))
    return MethodCost(kept, index_bytes=elements * at.element_bytes, index_flops=2 * elements)


def dhsa(config: Any, at: Situation) -> MethodCost:
    """Tokens per block of queries."""
    if config.density is None:
        return MethodCost(prefill_kept=at.prompt_share(config.budget))
    return MethodCost(prefill_kept=at.prompt_share(np.maximum(config.least, config.density * at.tokens)))


def dhsa_block(config: Any, at: Situation) -> MethodCost:
    """Blocks of keys per block of queries."""
    tokens = config.density * at.tokens if config.budget is None else config.budget
    return MethodCost(prefill_kept=at.prompt_share(tokens))


def longheads(config: Any, at: Situation) -> MethodCost:
    """Query heads that choose apart share nothing of what they read; the representations of all chunks are read."""
    A, apart = config.attention_length, config.selection == "per_query_head"
    return _selecting(
        at,
        A,
        vectors=at.heads * at.tokens / config.chunk,
        read=at.share(at.group * A if apart else A),
        prefill_kept=at.prompt_share(A),
    )


def oracle(config: Any, at: Situation) -> MethodCost:
    """Every key, to choose among them."""
    return _selecting(at, config.budget, vectors=at.kv_heads * at.tokens)


def qwen2_5_1m(config: Any, at: Situation) -> MethodCost:
    """Columns and diagonals, in prompts longer than `sparse_from`."""
    listed = at.prompt_share(config.verticals + config.slashes)
    return MethodCost(prefill_kept=1 - at.beyond(config.sparse_from) * (1 - listed))


def random(config: Any, at: Situation) -> MethodCost:
    """The budget, without an index."""
    return _selecting(at, config.budget)


def streaming(config: Any, at: Situation) -> MethodCost:
    """Sinks and window; nothing else is kept."""
    tokens = config.sinks + config.window
    return MethodCost(at.share(tokens), prefill_kept=at.prompt_share(tokens), stored=at.share(tokens))


def uniform(config: Any, at: Situation) -> MethodCost:
    """The budget, by the mean keys of all blocks."""
    return _selecting(at, config.budget, vectors=at.kv_heads * at.tokens / config.block)


def _selecting(at: Situation, tokens: int, *, vectors: Count = 0.0, **more: Any) -> MethodCost:
    """`tokens` per query; beyond so many, `vectors` of a layer with D elements each are read to choose."""
    scored = at.beyond(tokens) * at.layers * vectors * at.head_dim
    return MethodCost(at.share(tokens), index_bytes=scored * at.element_bytes, index_flops=2 * scored, **more)
