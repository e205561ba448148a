"""Chimera's drafter: the traps of its card, training against drafting, and both rules of acceptance."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from kernels.decode_layer import LayerStack
from suite.harness.meter import RequestMeter
from suite.methods.decoding import chimera_drafts, trigrams
from suite.methods.decoding.chimera import SHAPES, Chimera, ChimeraConfig
from suite.methods.decoding.chimera_drafts import ContextStates
from suite.methods.decoding.chimera_typical import ChimeraTypical
from suite.methods.decoding.context import Context
from suite.methods.decoding.rounds import Batch
from suite.methods.decoding.tree import ROOT, TokenTree
from suite.methods.decoding.tree_shape import TreeShape
from suite.methods.decoding.trigrams import TrigramTable
from suite.models.attention import DenseAttention
from suite.models.chimera import HEADS, ChimeraDrafter, MedusaHeads, last_three
from suite.models.decoder import STACK_ROWS, Layers
from suite.models.language_model import LanguageModel
from suite.models.recipes.chimera import level_loss, right_at, unrolled
from tests.methods.drafting import context, dense, request, run, small_model
from tests.methods.support import tiny_model
from tests.methods.test_decoding import FEW, chi_square, drawn, sequence_law, total_variation

__all__ = ["sequence_law"]
TOKENS = 24


@pytest.fixture(autouse=True)
def _no_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


def shaken(drafter: nn.Module, seed: int = 1) -> Any:
    """Nothing is zero or the identity any more."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in drafter.parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        parameter.data.add_(noise * parameter.shape[-1] ** -0.5 if parameter.dim() == 2 else 0.1 * noise)
    return drafter.requires_grad_(False).eval()


def made(model: LanguageModel, kind: str = "chimera") -> Any:
    torch.manual_seed(0)
    parts = {"chimera-no-trigram": {"trigram": False}, "chimera-no-context": {"context": False}}
    return shaken(
        MedusaHeads(model.config) if kind == "medusa" else ChimeraDrafter(model.config, **parts.get(kind, {}))
    )


def text_of(model: LanguageModel, count: int = TOKENS, seed: int = 3) -> tuple[Tensor, Tensor]:
    """Random token ids [T] and the target's final-norm states [T, d]."""
    ids = torch.randint(0, model.config.vocab, (count,), generator=torch.Generator().manual_seed(seed))
    seen: list[Tensor] = []

    class Watching(DenseAttention):
        def observe(self, layer: int, hidden: Tensor, step: Any) -> None:
            if layer == self.config.layers - 1:
                seen.append(model.decoder.norm(hidden))

    model.decoder(ids[None], model.decoder.new_cache(1, count), Watching(model.config))
    return ids, seen[0][0]


def begun(model: LanguageModel, drafter: Any, contexts: list[Context], **options: Any) -> Chimera:
    method = Chimera()
    method.drafter = drafter
    method.begin(model, ChimeraConfig(**options))
    method.start(contexts)
    return method


class Said:
    """What heads said, level by level, before it became tokens."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.merged: list[Tensor] = []
        right = chimera_drafts.ranked

        def spy(merged: Tensor, *others: Any) -> Any:
            self.merged.append(merged.clone())
            return right(merged, *others)

        patch.setattr(chimera_drafts, "ranked", spy)


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> Said:
    return Said(monkeypatch)


def drafted(model: LanguageModel, drafter: Any, ids: Tensor, states: Tensor, tree: str = "chain") -> TokenTree:
    """The draft behind ids [T], whose last one is the root, given states of the others."""
    one = context(ids.tolist(), said=1)
    method = begun(model, drafter, [one], tree=tree)
    method.observe(one, states[: len(ids) - 1])
    return method.draft(one)


# ---------------------------------------------------------------- the card's traps


@pytest.mark.parametrize("kind", ["chimera", "chimera-no-trigram", "chimera-no-context", "medusa"])
def test_later_heads_depend_on_what_was_drafted_unless_they_are_medusas(kind, said):
    """Trap: Medusa with extra layers. The root changes, the target's states do not."""
    model = tiny_model()
    ids, states = text_of(model)
    other = ids.clone()
    other[-1] = (ids[-1] + 1) % model.config.vocab
    for tokens in (ids, other):
        drafted(model, made(model, kind), tokens, states)
    first, second = torch.stack(said.merged[: len(said.merged) // 2]), torch.stack(said.merged[len(said.merged) // 2 :])
    assert torch.equal(first, second) == (kind == "medusa")


@pytest.mark.parametrize("kind", ["chimera", "chimera-no-trigram", "chimera-no-context", "medusa"])
def test_training_and_drafting_are_one_computation(kind, said):
    """Masks, positions, trigrams and whose tokens are fed: every row of training is a draft. Traps: teacher forcing."""
    model, drafter = tiny_model(), made(tiny_model(), kind)
    ids, states = text_of(model)
    levels = list(unrolled(drafter, model, ids[None], states[None], model.config.vocab))
    for row in (0, 1, 2, 7, TOKENS - 2 - HEADS):
        said.merged.clear()
        tree = drafted(model, drafter, ids[: row + 2], states)
        ours = torch.cat([merged.reshape(-1, model.config.hidden) for merged in said.merged])
        logits = functional.linear(ours, model.decoder.head.weight)
        for k, level in enumerate(levels):
            torch.testing.assert_close(level.logits[0, row], logits[k], atol=1e-4, rtol=1e-4)
            assert int(level.logits[0, row].argmax()) == tree.tokens[k]


def test_labels_are_no_input():
    """Trap: teacher forcing on labels at level 2 and beyond."""
    model, drafter = tiny_model(), made(tiny_model())
    ids, states = text_of(model)
    last = TOKENS - 2 - HEADS
    other = ids.clone()
    other[last + 2 :] = (ids[last + 2 :] + 1) % model.config.vocab
    for one, two in zip(*(unrolled(drafter, model, x[None], states[None], 128) for x in (ids, other)), strict=True):
        assert torch.equal(one.logits, two.logits)


def test_heads_start_as_the_targets_own_matrix():
    """Trap: random heads. W1 starts as zero, and W2 hands on the newest token."""
    model = tiny_model()
    torch.manual_seed(0)
    drafter = ChimeraDrafter(model.config)
    ids, states = text_of(model)
    for level in unrolled(drafter, model, ids[None], states[None], model.config.vocab):
        rows = level.logits.shape[1]
        expected = functional.linear(states[:rows] + level.feature[0], model.decoder.head.weight)
        torch.testing.assert_close(level.logits[0], expected, atol=1e-6, rtol=1e-6)
    assert torch.equal(drafter.encode(model.decoder.embed(ids[None, -3:]))[0], model.decoder.embed(ids[-1]))


def test_the_last_state_is_the_one_the_target_speaks_from():
    """Trap: the state before the final norm."""
    model, seen = small_model(), list[Tensor]()
    model.decoder.norm.weight.copy_(torch.linspace(0.1, 2.0, model.config.hidden))  # else both say the same

    class Watched(Chimera):
        def observe(self, one: Context, hidden: Tensor) -> None:
            seen.append(hidden[-1])
            super().observe(one, hidden)

    text = run(Watched(), model, [request(new=40)])[0].token_ids
    spoken = functional.linear(torch.stack(seen), model.decoder.head.weight).argmax(dim=-1).tolist()
    places = iter(text)
    assert all(token in places for token in spoken)  # each is the token behind an accepted path, in order
    assert len(spoken) > 10


def test_training_on_one_text_makes_every_head_say_it():
    """Trap: labels off by one. Drafts behind the text's beginnings are its next tokens."""
    model = tiny_model()
    torch.manual_seed(0)
    drafter = ChimeraDrafter(model.config)
    ids, states = text_of(model)
    optimizer = torch.optim.AdamW(drafter.parameters(), lr=3e-3, weight_decay=0.0)
    learned = torch.ones(1, TOKENS, dtype=torch.bool)
    with torch.enable_grad():
        for _ in range(60):
            levels = unrolled(drafter, model, ids[None], states[None], model.config.vocab)
            losses = [level_loss(x, k, ids[None], states[None], learned, 0.0) for k, x in enumerate(levels, 1)]
            optimizer.zero_grad()
            torch.stack(losses).sum().backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    for k, level in enumerate(unrolled(drafter, model, ids[None], states[None], model.config.vocab), 1):
        rows = level.logits.shape[1]
        assert float(right_at(level, ids[None, k + 1 : k + 1 + rows], learned[:, :rows])[0]) == 1.0
    for root in (1, 5, 12):
        draft = drafted(model, drafter.eval(), ids[: root + 1], states)
        assert list(draft.tokens) == ids[root + 1 : root + 1 + HEADS].tolist()


def test_the_context_cache_is_that_of_a_fresh_pass_and_a_draft_reads_new_tokens_only(monkeypatch):
    """Trap: the encoder over the full prefix at each step."""
    model, widths = small_model(window=4096), list[int]()
    requests = [request("a", length=600, new=120), request("bb", length=33, new=120)]
    advance = Layers.advance

    def spy(self: Layers, x: Tensor, *others: Any) -> Tensor:
        if self.config.layers == 1:
            widths.append(x.shape[1])
        return advance(self, x, *others)

    method = Watching()
    run(method, model, requests, tree="card")
    assert method.worst < 1e-4
    monkeypatch.setattr(Layers, "advance", spy)
    run(Chimera(), model, requests, tree="card")
    assert widths[:2] == [512, 89]  # the longer prompt in pieces, and its root
    assert max(widths[2:]) == len(method.shape.passes[-1]) + 1


class Watching(Chimera):
    """Audits the context encoder's cache at every draft."""

    def __init__(self) -> None:
        self.worst = 0.0
        self.states: dict[int, list[Tensor]] = {}

    def observe(self, one: Context, hidden: Tensor) -> None:
        self.states.setdefault(one.row, []).append(hidden)
        super().observe(one, hidden)

    def drafts(self, contexts: Any) -> Any:
        trees = super().drafts(contexts)
        cache = self.drafts_of_batch.context.cache
        for one in contexts:
            states = torch.cat(self.states[one.row])
            assert cache.lengths[one.row] == len(states) == len(one.tokens) - 1
            layers = self.drafter.context
            fresh = layers.new_cache(1, len(states))
            layers.advance(states[None].clone(), fresh, DenseAttention(layers.config))
            for ours, new in ((cache.keys[0], fresh.keys[0]), (cache.values[0], fresh.values[0])):
                gap = (ours[one.row, :, : len(states)] - new[0, :, : len(states)]).abs().max()
                self.worst = max(self.worst, float(gap))
        return trees


def test_drafted_features_left_in_the_context_cache_would_be_seen(monkeypatch):
    def kept(self: ContextStates, rows: Any, known: Any, fresh: Any, tree: Any) -> Tensor:
        held = list(self.cache.lengths)
        self._tree.plant(self.cache, [tree if row in rows else None for row in range(len(held))])
        out = self._pass(rows, list(torch.cat((known, fresh), dim=1)), self._tree)
        for row in rows:
            self.cache.truncate(row, held[row] + 1)
        return out[list(rows), known.shape[1] :]

    monkeypatch.setattr(ContextStates, "level", kept)
    with pytest.raises(AssertionError):
        run(Watching(), small_model(), [request(new=20)])


def test_exact_drafts_have_the_targets_law_and_typical_ones_have_not(sequence_law):
    """Trap: calling typical acceptance lossless."""
    drafter = made(small_model(seed=5, vocab=8))
    exact = drawn(holding(Chimera(), drafter), 4000, tree="chain")
    assert chi_square(exact, sequence_law) > 1e-4
    assert total_variation(exact, sequence_law) < 1.3
    assert chi_square(drawn(holding(ChimeraTypical(), drafter), FEW, tree="chain"), sequence_law) < 1e-4
    assert Chimera.card.lossless
    assert not ChimeraTypical.card.lossless


def holding(method: Chimera, drafter: ChimeraDrafter) -> Chimera:
    """The method with this drafter."""
    method.drafter = drafter
    return method


# ---------------------------------------------------------------- the rest of the drafter


@pytest.mark.parametrize("kind", ["chimera-no-trigram", "chimera-no-context", "medusa"])
@pytest.mark.parametrize("tree", list(SHAPES))
def test_ablations_and_every_tree_are_lossless(kind, tree):
    model = small_model()
    requests = [request("a", new=40), request("bb", length=12, new=25)]
    ours = run(Chimera(), model, requests, drafter=kind, tree=tree)
    assert [done.token_ids for done in ours] == [done.token_ids for done in dense(model, *requests)]


def test_typical_acceptance_of_greedy_text_changes_nothing():
    model = small_model()
    ours = run(ChimeraTypical(), model, [request(new=40)])
    assert ours[0].token_ids == dense(model, request(new=40))[0].token_ids


def test_typical_takes_its_thresholds_from_the_options():
    model = small_model()
    rules = {"temperature": 1.0, "seed": 3}
    strict, loose = (
        run(ChimeraTypical(), model, [request(new=40, **rules)], epsilon=epsilon, delta=epsilon)[0].drafts
        for epsilon in (0.9, 0.001)
    )
    assert strict.accepted < loose.accepted


def test_the_cards_tree_loses_what_four_heads_cannot_reach():
    shape = TreeShape.of(SHAPES["card"], HEADS)
    assert len(SHAPES["card"].split()) == 25
    assert len(shape.paths) == 23
    assert [len(level) for level in shape.nodes] == [4, 8, 8, 3]
    assert [len(queries) for queries in shape.queries] == [1, 4, 4, 1]
    assert [len(tree) + 1 for tree in shape.passes] == [1, 5, 9, 10]
    for shape in (TreeShape.of(listed, HEADS) for listed in SHAPES.values()):
        assert all(path[:-1] == "" or path[:-1] in shape.paths for path in shape.paths)


def test_a_node_sees_its_own_chain_only(said):
    """The same path in a tree and in a chain: what heads say behind it is the same."""
    model, drafter = tiny_model(), made(tiny_model())
    ids, states = text_of(model)
    tree = drafted(model, drafter, ids, states, tree="card")
    in_tree, shape = list(said.merged), TreeShape.of(SHAPES["card"], HEADS)
    said.merged.clear()
    chain = drafted(model, drafter, ids, states)
    path = [shape.paths.index("0" * depth) for depth in range(1, HEADS + 1)]
    assert [tree.tokens[node] for node in path] == list(chain.tokens)
    for level, alone in enumerate(said.merged):
        query = ROOT if level == 0 else path[level - 1]
        place = shape.queries[level].index(query)
        torch.testing.assert_close(in_tree[level][0, place], alone[0, 0], atol=1e-5, rtol=1e-5)


def test_the_published_mask_hides_the_chain():
    model, drafter = tiny_model(), made(tiny_model())
    ids, states = text_of(model)
    right, quirk = (
        [level.logits for level in unrolled(drafter, model, ids[None], states[None], 128, diagonal=diagonal)]
        for diagonal in (True, False)
    )
    assert torch.equal(right[0], quirk[0])
    assert not torch.allclose(right[1], quirk[1], atol=1e-3)


def test_trigrams_at_the_start_of_a_text():
    assert [last_three([5, 6, 7, 8][:n]) for n in (1, 2, 3, 4)] == [(5, 5, 5), (5, 6, 6), (5, 6, 7), (6, 7, 8)]


def test_prompts_of_one_and_two_tokens():
    model = small_model()
    requests = [request("a", length=1, new=20), request("b", length=2, new=20)]
    ours = run(Chimera(), model, requests, tree="card")
    assert [done.token_ids for done in ours] == [done.token_ids for done in dense(model, *requests)]


def test_a_trigram_is_encoded_once(monkeypatch):
    monkeypatch.setattr(trigrams, "TRIGRAMS", 4)
    asked: list[list[list[int]]] = []

    def encode(ids: Tensor) -> Tensor:
        asked.append(ids.tolist())
        return ids.float().sum(dim=1, keepdim=True)

    table = TrigramTable(encode)
    assert table([(1, 2, 3), (1, 2, 3), (2, 3, 4)])[:, 0].tolist() == [6, 6, 9]
    assert table([(2, 3, 4), (4, 4, 4)])[:, 0].tolist() == [9, 12]
    assert asked == [[[1, 2, 3], [2, 3, 4]], [[4, 4, 4]]]
    assert (table.asked, table.hits) == (5, 2)
    assert table([(2, 3, 4), (0, 0, 1), (0, 0, 2)])[:, 0].tolist() == [9, 1, 2]  # more than fit: all anew
    assert table.held_bytes() == 3 * 4


def test_looking_on_does_not_cost_the_fused_layers(monkeypatch):
    """The target's rounds, and the drafter's levels, are one call each."""
    model, calls = small_model(), {3: 0, 1: 0}
    stacked = LayerStack.run
    method = Chimera()
    method.prepare(model, ChimeraConfig())
    method.begin(model, ChimeraConfig())

    def spy(self: LayerStack, *args: Any) -> None:
        calls[len(self.layers)] += 1
        stacked(self, *args)

    monkeypatch.setattr(LayerStack, "run", spy)
    with torch.inference_mode():
        batch = Batch(model, method, [request(length=STACK_ROWS + 10, new=40)], RequestMeter())
        batch.prefill()
        calls.update({3: 0, 1: 0})
        for _ in range(3):
            batch.round()
    assert calls == {3: 3, 1: 3 * HEADS - 1}  # the drafter's first pass reads the prompt
