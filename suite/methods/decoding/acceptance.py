"""Which drafted tokens the target accepts, and the token of its own that follows them.

Exact rules leave the law of the text what it is without a draft (`_speculative.md` section 3). p is the target's law at
a node, q the law a token was drawn from, both after temperature, top-k and top-p.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from kernels.sample.reference import draw
from suite.methods.decoding.tree import ROOT, TokenTree
from suite.models.sampling import RequestSampler

EPSILON, DELTA = 0.09, 0.3  # of typical acceptance; some public defaults have the two swapped

Law = Callable[[int], Tensor]
"""The target's law fp64 [vocab] behind a node, or behind `ROOT`."""


class Verdict(NamedTuple):
    """The accepted nodes from the root down, and the emitted tokens: theirs, and one of the target."""

    path: tuple[int, ...]
    tokens: tuple[int, ...]


def accept(tree: TokenTree, logits: Tensor, sampler: RequestSampler) -> Verdict:
    """The exact rule for this draft; logits [1 + N, vocab] of the root and the nodes. Uses up what it drew."""
    if tree.laws is not None and not sampler.greedy:
        laws = sampler.probabilities(logits)
        return accept_drawn(tree, lambda node: laws[node + 1], sampler.uniform)
    verdict = follow(tree, sampler.choose(logits, [0, *tree.depths]))
    sampler.use(len(verdict.tokens))
    return verdict


def follow(tree: TokenTree, choices: Sequence[int]) -> Verdict:
    """Picked tokens: `choices[i + 1]` is what the target emits behind node i, `choices[0]` behind the root.

    If that is a child, go there. Greedy decoding, teacher forcing, and sampling one token p ~ y per place, which is
    rejection sampling with a point mass as q. Branches may repeat each other's beginnings (lookahead's mode `par`):
    the walk stays on all of them as long as they agree.
    """
    alive, tokens = [ROOT], [choices[0]]
    while True:
        deeper = [child for node in alive for child in tree.children.get(node, ()) if tree.tokens[child] == tokens[-1]]
        if not deeper:
            return Verdict(tree.path(alive[0]), tuple(tokens))
        alive = deeper
        tokens.append(choices[alive[0] + 1])


def accept_drawn(tree: TokenTree, law: Law, uniform: Callable[[], float]) -> Verdict:
    """Drawn tokens: speculative sampling (Leviathan, Chen) along a chain, SpecInfer's several tries where it branches.

    Child after child is accepted with probability min(1, P / q), where P is p, less what the refused ones have
    already had their chance at; if none is, a token of P follows.
    """
    assert tree.laws is not None
    node, path = ROOT, list[int]()
    while True:
        left = law(node)
        for child in tree.children.get(node, ()):
            q, token = tree.laws[child], tree.tokens[child]
            if uniform() * float(q[token]) < float(left[token]):
                break
            left = residual(left, q)
        else:
            own = draw(left, uniform())
            return Verdict(tuple(path), (*(tree.tokens[node] for node in path), own))
        node = child
        path.append(child)


def residual(p: Tensor, q: Tensor) -> Tensor:
    """norm(max(0, p - q)), fp64 [vocab]: what is left of p when a token of q was refused."""
    left = (p - q).clamp(min=0)
    total = float(left.sum())
    return left / total if total > 0 else p  # p equals q up to rounding: a refusal had no probability


def without(q: Tensor, tokens: Sequence[int]) -> Tensor:
    """The law of the next draw from q [vocab] without replacement, when `tokens` have been drawn."""
    left = q.clone()
    left[list(tokens)] = 0
    return left / left.sum()


def accept_typical(
    tree: TokenTree, law: Law, uniform: Callable[[], float], epsilon: float = EPSILON, delta: float = DELTA
) -> Verdict:
    """**Lossy**: Medusa's typical acceptance (arXiv 2401.10774), for methods that name it in their card.

    A node is accepted if p(x) > min(epsilon, delta exp(-H(p))), H in nats; of the longest accepted paths the likeliest.
    """
    laws, likelihood = {ROOT: law(ROOT)}, {ROOT: 0.0}
    for node, (token, parent) in enumerate(zip(tree.tokens, tree.parents, strict=True)):
        p = laws.get(parent)
        if p is not None and float(p[token]) > min(epsilon, delta * math.exp(-_entropy(p))):
            laws[node], likelihood[node] = law(node), likelihood[parent] + math.log(float(p[token]))
    last = max(likelihood, key=lambda node: (0 if node == ROOT else tree.depths[node], likelihood[node]))
    path = tree.path(last)
    return Verdict(path, (*(tree.tokens[node] for node in path), draw(laws[last], uniform())))


def _entropy(p: Tensor) -> float:
    return float(-torch.special.xlogy(p, p).sum())
