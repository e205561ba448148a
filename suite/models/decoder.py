"""A Llama-family decoder: Llama, Mistral, Qwen2, Qwen3, Gemma 2 and Gemma 3 in one readable file.

Shapes: B batch, T new tokens, H query heads, G KV heads, D head dim. Projections that read the same input are stored
as one matrix (q|k|v and gate|up). What a layer attends to is decided by the `Attention` passed to `forward`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Self, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from kernels import gate, gemv, rms_norm
from kernels.decode_layer import Caches, LayerStack, NewTokens
from suite.models.attention import Attention, Step, TrainingAttention
from suite.models.cache import KVCache
from suite.models.config import ModelConfig
from suite.models.fused import layer_stack

M = TypeVar("M", bound=nn.Module)
STACK_ROWS = 64  # of a pass that may run all layers in one call; more are prefill, which has a kernel of its own


class Linear(nn.Module):
    """y = x Wᵀ (+ b) (+ residual); few rows run on the bandwidth-bound kernel, many on a matrix product."""

    def __init__(self, inputs: int, outputs: int, bias: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(outputs, inputs))
        self.bias = nn.Parameter(torch.zeros(outputs)) if bias else None
        nn.init.normal_(self.weight, std=inputs**-0.5)

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        return gemv.linear(x, self.weight, self.bias, residual)


class RMSNorm(nn.Module):
    """Root-mean-square norm over the last dimension (1910.07467); the weight stays in fp32."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            return functional.rms_norm(x, x.shape[-1:], self.weight, self.eps)
        return rms_norm.rms_norm(x, self.weight, self.eps)


class AttentionBlock(nn.Module):
    """Projections around the attention slot, with the biases and q/k norms of the architecture."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        H, G, D = config.heads, config.kv_heads, config.head_dim
        self.layer, self.sizes, self.head_dim = layer, [H * D, G * D, G * D], D
        self.qkv = Linear(config.hidden, sum(self.sizes), config.qkv_bias)
        self.out = Linear(H * D, config.hidden, config.output_bias)
        self.q_norm = RMSNorm(D, config.rms_eps) if config.qk_norm else None
        self.k_norm = RMSNorm(D, config.rms_eps) if config.qk_norm else None

    def forward(self, x: Tensor, attention: Attention, step: Step, residual: Tensor | None) -> Tensor:
        attended = attention(self.layer, *self.project(x), step)
        return cast(Tensor, self.out(attended.flatten(-2), residual))

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x [..., hidden] -> q [..., H, D], k and v [..., G, D], normed and not rotated."""
        q, k, v = (part.unflatten(-1, (-1, self.head_dim)) for part in self.qkv(x).split(self.sizes, dim=-1))
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        return q, k, v


class MLP(nn.Module):
    """Gated feed-forward network: down(act(gate(x)) * up(x))."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.activation = config.activation
        self.gate_up = Linear(config.hidden, 2 * config.intermediate)
        self.down = Linear(config.intermediate, config.hidden)

    def forward(self, x: Tensor, residual: Tensor | None) -> Tensor:
        return cast(Tensor, self.down(self._gated(x), residual))

    def _gated(self, x: Tensor) -> Tensor:
        """act(gate(x)) * up(x); few rows in one kernel that reads the weights once."""
        rows = x.shape[:-1].numel()
        plain = type(self.gate_up) is Linear  # and not quantised
        if plain and gemv.fast(x) and not torch.is_grad_enabled():
            return gemv.gated_gemv(x.reshape(rows, -1), self.gate_up.weight, self.activation).view(*x.shape[:-1], -1)
        gate_up = cast(Tensor, self.gate_up(x))
        if not torch.is_grad_enabled():
            return gate.gate(gate_up.view(rows, -1), self.activation).view(*x.shape[:-1], -1)
        gated, up = gate_up.chunk(2, dim=-1)
        active = functional.silu(gated) if self.activation == "silu" else functional.gelu(gated, approximate="tanh")
        return active * up


class Layer(nn.Module):
    """One decoder layer. Gemma normalises the outputs of both halves too (`post_norms`)."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(config.hidden, config.rms_eps)
        self.attention = AttentionBlock(config, layer)
        self.mlp_norm = RMSNorm(config.hidden, config.rms_eps)
        self.mlp = MLP(config)
        self.post_attention_norm = RMSNorm(config.hidden, config.rms_eps) if config.post_norms else None
        self.post_mlp_norm = RMSNorm(config.hidden, config.rms_eps) if config.post_norms else None

    def forward(self, x: Tensor, attention: Attention, step: Step) -> Tensor:
        if self.post_attention_norm is None or self.post_mlp_norm is None:
            x = self.attention(self.attention_norm(x), attention, step, x)
            return cast(Tensor, self.mlp(self.mlp_norm(x), x))
        x = x + self.post_attention_norm(self.attention(self.attention_norm(x), attention, step, None))
        return cast(Tensor, x + self.post_mlp_norm(self.mlp(self.mlp_norm(x), None)))


class Layers(nn.Module):
    """Decoder layers over states of any origin: a `Decoder`'s over its embeddings, a drafter's over a target's."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.layers = nn.ModuleList(Layer(config, layer) for layer in range(config.layers))
        self._stack: LayerStack | None = None

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of weights and activations (norm weights stay fp32)."""
        return cast(Layer, self.layers[0]).mlp.down.weight.dtype

    def cast_weights(self, dtype: torch.dtype) -> Self:
        """Casts everything but the norms, which every architecture computes in fp32."""
        return cast_weights(self, dtype)

    def new_cache(self, batch: int, capacity: int) -> KVCache:
        """An empty cache for `batch` rows of up to `capacity` tokens (more are allowed; then it grows).

        A new batch begins: what has been done to the modules since the last one is taken notice of.
        """
        self.restack()
        return KVCache(self.config, batch, self.dtype, capacity)

    def restack(self) -> None:
        """Takes notice of other weights or modules in the layers, for caches that are there already."""
        self._stack = layer_stack(self)

    def advance(self, x: Tensor, cache: KVCache, attention: Attention, counts: Sequence[int] | None = None) -> Tensor:
        """One pass over the states of new tokens [B, T, hidden], which it may overwrite; row b has `counts[b]`.

        Returns the last layer's output [B, T, hidden], before any norm.
        """
        B, T, _ = x.shape
        counts = [T] * B if counts is None else counts
        attention.begin(cache, counts)
        step = Step(cache, counts, T)
        cache.reserve(max(step.stops))
        x = self._through(x, attention, step)
        cache.advance(step.counts)
        return x

    def _through(self, x: Tensor, attention: Attention, step: Step) -> Tensor:
        rows = x.shape[0] * x.shape[1]
        some = rows <= gemv.MAX_ROWS or (rows <= STACK_ROWS and gemv.lanes(x.dtype))
        few = some and step is not None and step.full
        if self._stack is not None and few and not torch.is_grad_enabled():
            return self._fused_layers(self._stack, x, attention, step)
        for index, layer in enumerate(self.layers):
            x = layer(x, attention, step)
            attention.observe(index, x, step)
        return x

    def _fused_layers(self, stack: LayerStack, x: Tensor, attention: Attention, step: Step) -> Tensor:
        """Few rows: all layers in one call if the attention is plain, else two calls around each attention."""
        flat = x.flatten(0, 1)
        tables = attention.plain(step)
        if tables is not None:
            caches = Caches(step.cache.keys, step.cache.values)
            new = NewTokens(step.rows, step.slots.flatten(), step.positions.flatten(), step.visible, step.turned)
            for part in _parts(step.watched, len(self.layers)):
                stack.run(flat, caches, tables, new, part, step.queries)
                attention.observe(part.stop - 1, x, step)
            return x
        sizes = [self.config.heads, self.config.kv_heads, self.config.kv_heads]
        for layer in range(len(self.layers)):
            qkv = stack.project(layer, flat).view(*x.shape[:2], -1, self.config.head_dim)
            q, k, v = torch.split(qkv, sizes, dim=2)
            attended = attention(layer, q, k, v, step)
            stack.finish(layer, flat, attended.view(flat.shape[0], -1))
            attention.observe(layer, x, step)
        return x


class Decoder(Layers):
    """Token ids to logits. Weights come in one dtype (bf16 or fp32); logits are fp32."""

    def __init__(self, config: ModelConfig) -> None:
        nn.Module.__init__(
            self
        )  # the embedding is made before the layers: the order of random weights is part of recipes
        self.config = config
        self.embedding = nn.Embedding(config.vocab, config.hidden)
        self.layers = nn.ModuleList(Layer(config, layer) for layer in range(config.layers))
        self.norm = RMSNorm(config.hidden, config.rms_eps)
        self.head = Linear(config.hidden, config.vocab)
        self._stack: LayerStack | None = None
        nn.init.normal_(self.embedding.weight, std=0.02)
        if config.tied:
            self.head.weight = cast(nn.Parameter, self.embedding.weight)

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of weights and activations (norm weights stay fp32)."""
        return self.embedding.weight.dtype

    def forward(
        self,
        tokens: Tensor,
        cache: KVCache,
        attention: Attention,
        counts: Sequence[int] | None = None,
        logits: Literal["last", "all"] = "last",
    ) -> Tensor:
        """One pass over new tokens [B, T], row b having `counts[b]` of them (default: all T).

        Returns fp32 logits: [B, vocab] of each row's last new token, or [B, T, vocab].
        """
        B, T = tokens.shape
        counts = [T] * B if counts is None else counts
        x = self.advance(self.embed(tokens), cache, attention, counts)
        if logits == "last":
            x = x[torch.arange(B), torch.tensor(counts) - 1] if T > 1 else x[:, 0]
        return self.to_logits(self.norm(x))

    def train_logits(self, tokens: Tensor) -> Tensor:
        """Logits [B, T, vocab] of whole sequences with gradients, without a cache."""
        return self.to_logits(self.train_states(tokens))

    def train_states(self, tokens: Tensor) -> Tensor:
        """The same up to the final norm: [B, T, hidden], what the head reads."""
        step = cast(Step, None)  # TrainingAttention neither caches nor pads
        x: Tensor = self.norm(self._through(self.embed(tokens), TrainingAttention(self.config), step))
        return x

    def embed(self, tokens: Tensor) -> Tensor:
        """What the first layer sees of tokens [...]: their embeddings [..., hidden]."""
        x: Tensor = self.embedding(tokens)
        if self.config.embedding_scale != 1.0:
            # The reference models round the factor to the activations' dtype.
            x = x * torch.tensor(self.config.embedding_scale, dtype=x.dtype)
        return x

    def to_logits(self, states: Tensor) -> Tensor:
        """States behind the final norm [..., hidden] -> fp32 logits [..., vocab]."""
        logits = gemv.linear(states, self.head.weight, out_dtype=torch.float32)
        if self.config.logit_softcap:
            logits = self.config.logit_softcap * torch.tanh(logits / self.config.logit_softcap)
        return logits


def _parts(watched: Sequence[int], layers: int) -> list[range]:
    """All layers, cut behind the watched ones."""
    stops = sorted({*(layer + 1 for layer in watched), layers})
    return [range(first, stop) for first, stop in zip([0, *stops], stops, strict=False)]


def cast_weights(module: M, dtype: torch.dtype) -> M:
    """Casts the matrices of a module and leaves its norms in fp32; without gradients from now on."""
    for part in module.modules():
        if isinstance(part, Linear | nn.Embedding):
            part.to(dtype)
    return module.requires_grad_(False).eval()
