"""ActQKV's question term (arXiv 2502.13542, taken from Q-LLM): the query of the question, before the prompt is read.

The term acts in every window of prefill, most of which come before the question does, so its queries must be had in
advance. The release cuts the question's text out of the prompt and puts it first. Here the prompt stays as it is: the
question's tokens are run once alone, behind the prompt's first token, in a pass that is timed and counted, and whose
cache is thrown away. Deviations from the card, which leaves them open: these queries have not seen the text; local
attention is that within the question; and they are rotated by the one angle of all retrieved blocks, as a probe is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor
from torch.nn import functional

from kernels.decode_layer import Tables
from suite.methods.attention.probe import LayerMemory, local_mask, local_mass, represent
from suite.models.attention import DenseAttention, Step
from suite.models.config import ModelConfig

QUESTION_TOKENS = 4
"""Question tokens per head whose queries are averaged."""


class QuestionReader(DenseAttention):
    """Dense attention over one token and a question after it; leaves the question's query in each layer's memory.

    `turn` rotates queries [T, H, D] by the one angle, to features [T, H D].
    """

    def __init__(self, config: ModelConfig, turn: Callable[[Tensor], Tensor], layers: Sequence[LayerMemory]) -> None:
        super().__init__(config)
        self._turn = turn
        self._layers = layers

    def plain(self, step: Step) -> Tables | None:
        """Every layer's queries are wanted."""
        return None

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor, step: Step) -> Tensor:
        turned = q.clone()
        attended = super().__call__(layer, turned, k, v, step)
        keys = step.cache.keys[layer][0, :, : step.width].contiguous()
        mask = local_mask(step.width, step.width, step.width)
        mass = local_mass(turned[0], keys, self.config.scale, mask)
        self._layers[layer].asked = question_query(self._turn(q[0, 1:]), mass[:, 1:])
        return attended


def question_query(h: Tensor, mass: Tensor) -> Tensor:
    """The question's query [F] in fp32, of length 1: per head the mean of its most attended tokens' queries.

    h [n, F] rotated by the one angle, mass [H, n] of local attention.
    """
    heads = h.view(len(h), len(mass), -1).transpose(0, 1)
    return represent(heads, mass, min(QUESTION_TOKENS, len(h)))


def scorer(probe: Tensor, asked: Tensor | None, weight: float) -> Tensor:
    """The vector [F] whose product with a representative of length 1 is the block's score.

    That is cos(probe, r), and with a question's query (of length 1) `weight` cos(asked, r) more.
    """
    query = functional.normalize(probe, dim=0)
    return query if asked is None else query + weight * asked
