"""HierSpec: the tree drafter, the middle model's chains, what the target sees, and the traps of the card."""

from __future__ import annotations

import itertools
import math
import random
from collections import Counter
from dataclasses import replace
from typing import Any, ClassVar, cast

import pytest
import torch
from torch import Tensor

from kernels.counting import counting
from suite.errors import UnitError
from suite.harness.meter import RequestMeter
from suite.methods.decoding import eagle, selected, specmquant, tree_drafter
from suite.methods.decoding.context import Context
from suite.methods.decoding.drafter import distilled
from suite.methods.decoding.eagle import Eagle
from suite.methods.decoding.specmquant import HEAD, MIDDLE, MiddleFigures, MiddleModel, SpecMQuant, SpecMQuantConfig
from suite.methods.decoding.tree import TokenTree
from suite.methods.decoding.tree_drafter import TreeDrafter, check_owner, tree_head
from suite.methods.weights.linear import W4Linear, projections
from suite.methods.weights.w4g128 import W4G128
from suite.models import adapters
from suite.models.attention import DenseAttention
from suite.models.decoder import Decoder
from suite.models.language_model import LanguageModel
from suite.models.recipes import drafts
from suite.models.recipes.eagle import Fusion, TreeHead, fingerprint
from suite.models.sampling import RequestSampler
from tests.methods.drafting import VOCAB, context, dense, request, run, small_model, ties
from tests.methods.support import CONFIG, LargestTensor, tiny_model

TEXT = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8, 9, 7, 9]


def drafting(model: LanguageModel) -> tuple[Decoder, Decoder]:
    """The middle model and its head, untrained."""
    middle, digest = distilled(MIDDLE, model)
    return middle, tree_head(HEAD, model, middle, digest)


@torch.inference_mode()
def features_of(decoder: Decoder, tokens: list[int]) -> Tensor:
    return decoder.train_states(torch.tensor([tokens]))[0]


@torch.inference_mode()
def greedy(decoder: Decoder, tokens: list[int], count: int) -> list[int]:
    """Plain greedy decoding, every token from a pass over the whole text."""
    text = list(tokens)
    for _ in range(count):
        cache = decoder.new_cache(1, len(text))
        text.append(int(decoder(torch.tensor([text]), cache, DenseAttention(decoder.config))[0].argmax()))
    return text[len(tokens) :]


# ---------------------------------------------------------------- the tree drafter


@torch.inference_mode()
def alone(head: Decoder, features: Tensor, text: list[int], branch: list[int]) -> Tensor:
    """Log law [vocab] behind a branch: pair by pair, the head's own features from the branch's first token on."""
    tokens, own = text[1:], list(features)
    for token in [*branch, None]:
        cast(Fusion, head.embedding).features = torch.stack(own)[None]
        own.append(head.train_states(torch.tensor([tokens]))[0, -1])
        tokens = [*tokens, token]
    return head.to_logits(own[-1]).log_softmax(dim=-1)


def best_by_hand(head: Decoder, features: Tensor, depth: int, width: int, nodes: int) -> dict[tuple[int, ...], float]:
    """Branches of the dynamic tree with their summed log probabilities, from the definition."""
    level, tried = {(): 0.0}, dict[tuple[int, ...], float]()
    for _ in range(depth):
        new = {}
        for branch, score in level.items():
            law = alone(head, features, TEXT, list(branch)).topk(width)
            for value, token in zip(law.values.tolist(), law.indices.tolist(), strict=True):
                new[(*branch, token)] = score + value
        tried |= new
        level = dict(sorted(new.items(), key=lambda item: -item[1])[:width])
    return dict(sorted(tried.items(), key=lambda item: -item[1])[:nodes])


def branches(tree: TokenTree) -> set[tuple[int, ...]]:
    return {tuple(tree.tokens[step] for step in tree.path(node)) for node in range(len(tree))}


def confident() -> LanguageModel:
    """Its laws are peaked: children of a likely node are likelier than its siblings."""
    model = small_model(seed=3)
    model.decoder.head.weight.data.mul_(5)
    return model


@pytest.mark.parametrize(("depth", "width", "nodes"), [(1, 4, 3), (2, 3, 8), (3, 4, 12), (4, 2, 7)])
def test_a_tree_holds_the_likeliest_of_all_nodes_tried(depth, width, nodes):
    middle, head = drafting(confident())
    features = features_of(middle, TEXT[:-1])
    drafter = TreeDrafter(head, 80)
    drafter.learn(features)
    with torch.inference_mode():
        drafter.read(TEXT[:6])
        tree = drafter.expand(TEXT, depth, width, nodes)
    assert branches(tree) == set(best_by_hand(head, features, depth, width, nodes))
    assert max(tree.depths) <= depth
    assert tree.steps == depth


def test_siblings_that_see_each_other_would_be_seen(monkeypatch):
    middle, head = drafting(confident())
    features = features_of(middle, TEXT[:-1])
    monkeypatch.setattr(
        tree_drafter, "_visible",
        lambda base, slots: torch.tensor([[(0, max(map(max, slots)) + 1, 0)]] * len(slots), dtype=torch.int32),
    )  # fmt: skip
    drafter = TreeDrafter(head, 80)
    drafter.learn(features)
    with torch.inference_mode():
        tree = drafter.expand(TEXT, 3, 4, 20)
    assert branches(tree) != set(best_by_hand(head, features, 3, 4, 20))


def test_a_head_trained_for_another_model_is_refused():
    """Trap: the tree drafter of the target in place of the middle model's."""
    model = small_model()
    middle, digest = distilled(MIDDLE, model)
    with pytest.raises(UnitError, match="another model's features"):
        tree_head("eagle", model, middle, digest)
    tree_head("eagle", model, model.decoder, model.digest)
    with pytest.raises(UnitError, match="features of 64 numbers, the model makes 32"):
        check_owner(TreeHead(model.decoder, "a"), small_model(hidden=32).config, "a")


def test_the_owner_is_known_by_its_weights():
    model = small_model()
    layers = adapters.load(MIDDLE, model)
    before = layers.digest
    assert torch.equal(adapters.load(HEAD, model).owner, fingerprint(before))
    layers.layers[0].mlp.down.weight.data[0, 0] += 1e-3
    assert layers.digest != before


# ---------------------------------------------------------------- the middle model


def test_the_middle_model_reads_packed_weights_and_makes_no_dense_ones():
    """Trap: fake quantisation. Bytes of a one-token step, and no tensor as large as a matrix on the way."""
    model = tiny_model(replace(CONFIG, hidden=128))
    middle, _ = distilled(MIDDLE, model)
    packed = [getattr(owner, attribute) for _, owner, attribute in projections(middle)]
    assert all(type(matrix) is W4Linear for matrix in packed)
    sizes = [matrix.dense().numel() for matrix in packed]
    assert sum(matrix.weight_bytes() for matrix in packed) <= 0.30 * 2 * sum(sizes)
    with torch.inference_mode():
        cache = middle.new_cache(1, 8)
        middle(torch.tensor([[1, 2, 3]]), cache, DenseAttention(middle.config))
        with LargestTensor() as seen, counting() as counter:
            middle(torch.tensor([[4]]), cache, DenseAttention(middle.config))
    assert counter.calls["w4_gemm"] == len(packed)
    assert seen.elements < min(sizes)


def test_draft_models_of_fewer_tokens_than_the_target_share_its_matrices(monkeypatch):
    monkeypatch.setattr(drafts, "VOCAB", 24)
    model = small_model()
    for recipe in ("distilled", MIDDLE):
        decoder, _ = distilled(recipe, model)
        assert (decoder.config.vocab, decoder.head.weight.shape[0]) == (24, 24)
        assert decoder.head.weight.data_ptr() == model.decoder.head.weight.data_ptr()
        assert decoder.embedding is model.decoder.embedding
    assert (model.config.vocab, model.decoder.head.weight.shape[0]) == (VOCAB, VOCAB)


class Kept(SpecMQuant):
    """Remembers, chain by chain, the text before it, the chain, and the middle rounds it took."""

    def __init__(self) -> None:
        super().__init__()
        self.chains: list[tuple[list[int], TokenTree, int]] = []

    def draft(self, context: Context) -> TokenTree:
        before = self.figures.rounds
        chain = super().draft(context)
        self.chains.append((list(context.tokens), chain, self.figures.rounds - before))
        return chain


REQUESTS = [request("a", new=60), request("bb", length=11, new=45)]


@pytest.mark.parametrize("start", [False, True], ids=["tree first", "model first"])
@pytest.mark.parametrize("quick", [1, 6])
def test_a_chain_is_the_middle_models_own_greedy_text(start, quick):
    """Trap: a chain that is not. From the same prefix, fp32, after partial and full acceptances alike."""
    method = Kept()
    run(method, small_model(), REQUESTS, min_chain=quick, nodes=12, width=4, draft_model_start=start)
    assert len(method.chains) > 10
    for text, chain, _ in method.chains:
        assert list(chain.tokens) == greedy(method._middle, text, len(chain))


def test_a_weak_tree_drafter_needs_several_middle_rounds():
    """Trap: stopping after one tree."""
    method = Kept()
    run(method, small_model(), REQUESTS[:1], min_chain=6, nodes=4, width=2)
    whole = [(len(chain), count) for text, chain, count in method.chains if len(text) < 60]  # room for ten tokens more
    assert len(whole) > 3
    assert all(6 <= length <= 9 for length, _ in whole)
    assert sum(count for _, count in whole) >= 2 * len(whole)
    assert method.figures.rounds == sum(count for *_, count in method.chains)


class Seen(selected.TreeAttention):
    """What the target is asked to verify."""

    trees: ClassVar[list[TokenTree | None]] = []

    def plant(self, cache: Any, trees: Any) -> None:
        self.trees.extend(trees)
        super().plant(cache, trees)


def test_the_target_sees_short_chains_only(monkeypatch):
    """Trap: the target verifying trees. At most min_chain + depth + 1 tokens in a pass, none with a tree's mask."""
    middle_trees = []
    follow = specmquant.follow
    monkeypatch.setattr(specmquant, "follow", lambda tree, said: middle_trees.append(tree) or follow(tree, said))
    monkeypatch.setattr(selected, "TreeAttention", Seen)
    Seen.trees.clear()
    run(SpecMQuant(), small_model(), REQUESTS, min_chain=3, depth=2, nodes=10, width=4)
    planted = [tree for tree in Seen.trees if tree is not None]
    assert all(tree.is_chain and len(tree) <= 3 + 2 for tree in planted)
    assert any(not tree.is_chain for tree in middle_trees)
    assert max(map(len, middle_trees)) == 9


def test_no_more_is_accepted_than_was_drafted(monkeypatch):
    """Trap: the padding of a fixed number of slots taken for drafted tokens. Here everybody always says the same."""
    model, said = small_model(), []
    model.decoder.head.weight.data.zero_()
    follow = specmquant.follow
    monkeypatch.setattr(specmquant, "follow", lambda *args: said.append(follow(*args)) or said[-1])
    method = Kept()
    done = run(method, model, [request("a", new=50)], min_chain=4, nodes=6, width=2)[0]
    assert set(done.token_ids) == {0}
    for _, chain, count in method.chains:  # trees gave all tokens but perhaps the first
        assert len(chain) - sum(len(verdict.tokens) for verdict in said[:count]) in (0, 1)
        del said[:count]
    last = method.chains[-1][1]
    assert done.drafts.drafted == done.drafts.accepted
    assert done.drafts.accepted <= sum(len(chain) for _, chain, _ in method.chains)
    assert done.drafts.accepted > sum(len(chain) for _, chain, _ in method.chains) - len(last)


class Audited(TreeDrafter):
    """Compares what it knows with what a fresh drafter would, before every tree."""

    owner: ClassVar[Decoder]
    worst: ClassVar[list[float]] = []

    def expand(self, tokens: Any, depth: int, width: int, nodes: int) -> TokenTree:
        features, fresh = features_of(self.owner, list(tokens[:-1])), TreeDrafter(self._head, len(tokens))
        fresh.learn(features)
        fresh.read(tokens)
        self.worst.append(float((self._features[: self.known] - features).abs().max()))
        tree = super().expand(tokens, depth, width, nodes)
        for ours, new in ((self._cache.keys, fresh._cache.keys), (self._cache.values, fresh._cache.values)):
            own, other = (storage[0][:, :, : len(tokens) - 1] for storage in (ours, new))
            self.worst.append(float((own - other).abs().max()))
        return tree


@pytest.mark.parametrize("kind", [SpecMQuant, Eagle])
def test_a_drafter_knows_after_many_rounds_what_a_fresh_one_would(kind, monkeypatch):
    """After partial and full acceptances: features and cache are those of the text as it stands."""
    model, module = small_model(), specmquant if kind is SpecMQuant else eagle
    monkeypatch.setattr(module, "TreeDrafter", Audited)
    Audited.owner, _ = (distilled(MIDDLE, model)) if kind is SpecMQuant else (model.decoder, None)
    Audited.worst.clear()
    run(kind(), model, [request("a", new=90)], nodes=6, width=3)
    assert len(Audited.worst) > 60
    assert max(Audited.worst) < 1e-4


@pytest.mark.parametrize("kind", [SpecMQuant, Eagle])
def test_greedy_text_on_an_int4_target_is_that_of_the_int4_target(kind):
    model, weights = small_model(), W4G128()
    config = weights.Config()
    weights.prepare(model, config)
    with weights.attach(model, config) as generator:
        plain = list(generator.generate(REQUESTS, RequestMeter()))
        ours = run(kind(), model, REQUESTS)
        assert ties(model, REQUESTS, ours, plain) == 0
    assert [done.token_ids for done in ours] != [done.token_ids for done in dense(model, *REQUESTS)]


def test_prefill_of_the_middle_model_is_noted():
    method = SpecMQuant()
    run(method, small_model(), REQUESTS)
    assert method.figures.prefill_ns > 0


# ---------------------------------------------------------------- sampling


def middle_chain(decoder: Decoder, head: Decoder, seed: int, options: SpecMQuantConfig) -> TokenTree:
    one = context(TEXT, seed=seed, temperature=0.8, new=20)
    writer = MiddleModel(decoder, head, one, options)
    with torch.inference_mode():
        writer.prefill()
        one.tokens.append(7)
        return writer.chain(MiddleFigures())


def test_a_drawn_chain_carries_the_middle_models_laws():
    decoder, head = drafting(small_model(seed=4))
    sampler = RequestSampler(request(temperature=0.8))
    for seed in range(4):
        chain = middle_chain(decoder, head, seed, SpecMQuantConfig(min_chain=5, nodes=12, width=4))
        assert len(chain.laws) == len(chain) >= 5
        for place, law in enumerate(chain.laws):
            text = [*TEXT, 7, *chain.tokens[:place]]
            logits = decoder.to_logits(features_of(decoder, text)[-1:])
            torch.testing.assert_close(law, sampler.probabilities(logits)[0], atol=1e-5, rtol=1e-4)


CHAINS = 1200


def chain_error() -> float:
    """Total variation between the first two tokens of CHAINS drawn chains and their law, in units of its noise.

    The second token is one that a tree was drafted for.
    """
    decoder, head = drafting(small_model(seed=4, vocab=6))
    sampler, counts, law = RequestSampler(request(temperature=0.8)), Counter[tuple[int, ...]](), {}
    text = [token % 6 for token in TEXT]
    for said in itertools.product(range(6), repeat=2):
        p = 1.0
        for place in range(2):
            logits = decoder.to_logits(features_of(decoder, [*text, 1, *said[:place]])[-1:])
            p *= float(sampler.probabilities(logits)[0, said[place]])
        law[said] = p
    one, seeds = context([*text, 1], temperature=0.8, said=1), random.Random(0)
    writer = MiddleModel(decoder, head, one, SpecMQuantConfig(min_chain=2, nodes=4, width=2, depth=1))
    with torch.inference_mode():
        one.tokens.pop()
        writer.prefill()
        one.tokens.append(1)
        for _ in range(CHAINS):
            seed = seeds.getrandbits(30)  # generators of neighbouring small seeds begin alike
            one.sampler = RequestSampler(request(seed=seed, temperature=0.8))
            counts[writer.chain(MiddleFigures()).tokens[:2]] += 1
            writer.keep()
    noise = 0.5 * sum((2 * p * (1 - p) / (math.pi * CHAINS)) ** 0.5 for p in law.values())
    return 0.5 * sum(abs(counts[said] / CHAINS - p) for said, p in law.items()) / noise


def test_drawn_chains_have_the_middle_models_law():
    assert chain_error() < 1.3


def test_a_chain_that_takes_what_the_tree_likes_would_be_seen(monkeypatch):
    """The drafted token taken with the middle model's probability of it, the likeliest one after a refusal."""
    follow = specmquant.follow

    def greedily(tree: TokenTree, said: list[int]) -> Any:
        return follow(tree, [tree.tokens[0], *said[1:]])

    monkeypatch.setattr(specmquant, "follow", greedily)
    assert chain_error() > 2
