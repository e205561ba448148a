"""Reward models of the reasoning lab: decoders that say how likely a step, or a whole solution, is right.

Both score a text at every position as if a step ended there: logits [B, T] whose sigmoid is the step's probability of
being right, given what stands before it. Callers read them where a step does end. Card `_verifiers.md`, section 6.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from suite.models.decoder import Decoder
from workloads.generators.chain import NL, RIGHT, WRONG, vocabulary

CLIP = -12.0  # nats: one impossible token weighs no more than this
STEP_END = vocabulary().index(NL)
_RIGHT, _WRONG = (vocabulary().index(word) for word in (RIGHT, WRONG))


class LikelihoodPRM(nn.Module):
    """sigmoid(a + b x), x a step's log-likelihood under a good model of the task, in nats and not below CLIP.

    `a` and `b` are fitted on steps of the policy under test; the decoder stays as it is.
    """

    def __init__(self, decoder: Decoder) -> None:
        super().__init__()
        self.decoder = decoder.requires_grad_(False)
        self.a = nn.Parameter(torch.tensor(3.0))
        self.b = nn.Parameter(torch.tensor(1.0))

    def forward(self, ids: Tensor, starts: Sequence[int]) -> Tensor:
        """Token ids [B, T], padded on the right; row b's first step begins at `starts[b]` -> logits [B, T]."""
        return self.a + self.b * step_log_likelihoods(self.decoder, ids, starts)


class TokenReward(nn.Module):
    """A decoder trained to predict <right> or <wrong> where a step or a solution ends, though neither is ever read."""

    def __init__(self, decoder: Decoder) -> None:
        super().__init__()
        self.decoder = decoder

    def forward(self, ids: Tensor, starts: Sequence[int]) -> Tensor:
        """Token ids [B, T], padded on the right -> logits [B, T]."""
        return right_or_wrong(self.decoder.train_logits(ids))


def right_or_wrong(logits: Tensor) -> Tensor:
    """Logits [..., vocab] -> [...] of <right> against <wrong>."""
    return logits[..., _RIGHT] - logits[..., _WRONG]


@torch.no_grad()
def step_log_likelihoods(decoder: Decoder, ids: Tensor, starts: Sequence[int]) -> Tensor:
    """Log-likelihood [B, T] of a step that ends at each position: of the tokens behind the last step's end, clipped."""
    token = decoder.train_logits(ids[:, :-1]).log_softmax(dim=-1).gather(-1, ids[:, 1:, None])[..., 0]
    total = torch.cat((torch.zeros(len(ids), 1), token.double().cumsum(dim=1)), dim=1)
    places = torch.arange(ids.shape[1])
    begun = torch.tensor(starts)[:, None] - 1  # the last token before the first step
    ends = torch.where((ids == STEP_END) & (places > begun), places, begun)
    before = torch.cat((begun, ends[:, :-1]), dim=1).cummax(dim=1).values
    return (total - total.gather(1, before)).clamp(min=CLIP).float()


def step_ends(ids: Sequence[int], start: int) -> list[int]:
    """Positions of the last tokens of the steps from `start` on; what follows the last NL is a step too."""
    ends = [place for place in range(start, len(ids)) if ids[place] == STEP_END]
    return ends if ends and ends[-1] == len(ids) - 1 else [*ends, len(ids) - 1]
