"""Draft and verify: trees, exact acceptance, the cache, the meters (`_speculative.md` section 5)."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from scipy import stats
from torch import Tensor

from suite.errors import UnitError
from suite.harness.meter import RequestMeter
from suite.methods.decoding import acceptance, draft_model, drafter, rounds, verification
from suite.methods.decoding.acceptance import accept_drawn, accept_typical, follow, without
from suite.methods.decoding.base import DecodingMethod
from suite.methods.decoding.context import Round
from suite.methods.decoding.draft_model import DraftModelConfig, DraftModelSpeculation, kept_layers
from suite.methods.decoding.ngram import Ngram
from suite.methods.decoding.rounds import Batch, Tally
from suite.methods.decoding.tree import EMPTY, ROOT, TokenTree
from suite.methods.decoding.verification import TreeAttention
from suite.models.attention import DenseAttention
from suite.models.sampling import RequestSampler
from suite.registry import METHODS
from tests.methods.drafting import VOCAB, Knowing, context, dense, request, run, small_model, ties
from workloads.schema import DraftFigures

NAMES = [name for name in METHODS if issubclass(METHODS.load(name), DecodingMethod)]
BRANCHING = TokenTree((3, 4, 5, 6, 7, 8), (ROOT, 0, 0, ROOT, 3, 1))
WIDE = TokenTree(tuple(range(3, 27)), tuple((node - 2) // 2 for node in range(24)))
"""More tokens than the decoder's fused layers take: these are verified by the kernel for trees."""


# ---------------------------------------------------------------- trees


def test_depths_children_and_paths_of_a_tree():
    assert BRANCHING.depths == (1, 2, 2, 1, 2, 3)
    assert BRANCHING.children == {ROOT: [0, 3], 0: [1, 2], 3: [4], 1: [5]}
    assert BRANCHING.path(5) == (0, 1, 5)
    assert not BRANCHING.is_chain
    assert TokenTree.chain([3, 4]).is_chain
    assert EMPTY.is_chain


def test_a_node_sees_the_root_its_ancestors_and_itself():
    bits = [f"{int(mask):07b}"[::-1] for mask in BRANCHING.masks()]
    assert bits == ["1000000", "1100000", "1110000", "1101000", "1000100", "1000110", "1110001"]


@pytest.mark.parametrize("tree", [BRANCHING, WIDE, TokenTree.chain([5, 6, 7]), EMPTY])
def test_ranges_and_masks_say_the_same(tree):
    said = [sum(((1 << stop) - (1 << start)) for start, stop in ranges) for ranges in tree.runs]
    assert said == tree.masks().tolist()
    assert all(ranges[0][0] == 0 for ranges in tree.runs)


def test_a_tree_is_cut_at_a_depth_with_its_laws():
    tree = TokenTree(BRANCHING.tokens, BRANCHING.parents, torch.eye(6, dtype=torch.float64))
    cut = tree.within(1)
    assert (cut.tokens, cut.parents) == ((3, 6), (ROOT, ROOT))
    assert cut.laws.argmax(dim=1).tolist() == [0, 3]
    assert tree.within(3) is tree


@pytest.mark.parametrize(
    ("tokens", "parents", "words"),
    [((1, 2), (-1, 1), "before its child"), ((1,), (-2,), "before its child"), ((1, 2), (-1,), "as many of both"),
     (tuple(range(64)), (-1,) * 64, "at most 63")],
)  # fmt: skip
def test_what_is_no_tree_is_refused(tokens, parents, words):
    with pytest.raises(ValueError, match=words):
        TokenTree(tokens, parents)


# ---------------------------------------------------------------- one pass over a tree


def tree_gap(model: Any, tree: TokenTree) -> float:
    """Largest difference between a node's logits in one pass and those of its path alone, in dense passes."""
    attention, prompt = TreeAttention(model.config), list(range(1, 20))
    with torch.inference_mode():
        cache = model.decoder.new_cache(1, 60)
        model.decoder(torch.tensor([prompt]), cache, attention)
        attention.plant(cache, [tree])
        logits = model.decoder(torch.tensor([[2, *tree.tokens]]), cache, attention, logits="all")[0]
        worst = 0.0
        for node in range(ROOT, len(tree)):
            text = [*prompt, 2, *(tree.tokens[step] for step in tree.path(node))]
            alone = model.decoder(torch.tensor([text]), model.decoder.new_cache(1, 40), DenseAttention(model.config))[0]
            worst = max(worst, float((logits[node + 1] - alone).abs().max()))
    return worst


def double(model: Any) -> Any:
    model.decoder.double()
    return model


TREES = {"tree": BRANCHING, "wide": WIDE, "chain": TokenTree.chain([5, 6, 7]), "empty": EMPTY}


@pytest.mark.parametrize("tree", TREES.values(), ids=TREES)
def test_tree_logits_are_those_of_each_path_alone(tree):
    assert tree_gap(double(small_model()), tree) < 1e-5  # the norms are computed in fp32
    assert tree_gap(small_model(), tree) < 1e-4


@pytest.mark.parametrize("tree", [BRANCHING, WIDE], ids=["fused", "kernel"])
def test_positions_by_index_would_be_seen(tree, monkeypatch):
    monkeypatch.setattr(TokenTree, "depths", property(lambda tree: tuple(range(1, 1 + len(tree)))))
    assert tree_gap(small_model(), tree) > 1e-2


@pytest.mark.parametrize("tree", [BRANCHING, WIDE], ids=["fused", "kernel"])
def test_siblings_that_see_each_other_would_be_seen(tree, monkeypatch):
    monkeypatch.setattr(TokenTree, "masks", lambda tree: torch.tensor([(2 << i) - 1 for i in range(len(tree) + 1)]))
    monkeypatch.setattr(TokenTree, "runs", property(lambda tree: [[(0, i + 1)] for i in range(len(tree) + 1)]))
    assert tree_gap(small_model(), tree) > 1e-2


# ---------------------------------------------------------------- greedy: token for token


PROMPTS = [request(f"p{i}", length=20 + i % 17, new=100 + i % 5) for i in range(50)]


@pytest.fixture(scope="module")
def plain() -> list[Any]:
    return dense(small_model(), *PROMPTS)


@pytest.mark.parametrize("name", NAMES)
def test_greedy_text_is_that_of_plain_decoding(name, plain):
    model = small_model()
    options = {
        "lookahead": {"decoding_length": 64},  # for all requests of a batch together
        "specmquant": {"min_chain": 2, "depth": 1, "width": 2, "nodes": 3},  # many passes of tiny models take long
    }
    ours = [
        done
        for start in range(0, 50, 5)
        for done in run(METHODS.load(name)(), model, PROMPTS[start : start + 5], **options.get(name, {}))
    ]
    assert ties(model, PROMPTS, ours, plain) == 0
    assert sum(done.drafts.accepted for done in ours) > 100  # else nothing was tested


def test_taking_every_drafted_token_would_be_seen(plain, monkeypatch):
    monkeypatch.setattr(rounds.Row, "emit", taking(rounds.Row.emit))
    ours = run(Ngram(), small_model(), PROMPTS[:25])
    with pytest.raises(AssertionError, match="parts from dense"):
        ties(small_model(), PROMPTS[:25], ours, plain[:25])


def taking(emit: Callable[..., int]) -> Callable[..., int]:
    """The first emitted token is off by one, once in a while, as a stale cache would make it."""

    def off(row: Any, model: Any, verdict: Any, logits: Any, meter: Any) -> int:
        if len(row.slot.tokens) == 20:
            verdict = verdict._replace(tokens=((verdict.tokens[0] + 1) % VOCAB, *verdict.tokens[1:]))
        return emit(row, model, verdict, logits, meter)

    return off


@pytest.mark.parametrize("decoys", [True, False], ids=["tree", "chain"])
@pytest.mark.parametrize("batch", [1, 4])
def test_known_text_is_accepted_and_unchanged(decoys, batch):
    model, requests = small_model(), [request(f"q{i}", length=9 + 5 * i, new=30 + 7 * i) for i in range(batch)]
    texts = dense(model, *requests)
    ours = run(Knowing([done.token_ids for done in texts], decoys=decoys), model, requests)
    assert [done.token_ids for done in ours] == [done.token_ids for done in texts]
    assert all(done.drafts.rounds < 0.4 * len(done.token_ids) for done in ours)


def test_an_end_of_text_inside_a_draft_ends_the_request():
    text = dense(small_model(), request(new=40))[0].token_ids
    place = next(i for i, token in enumerate(text) if i > 5 and token not in text[:i])
    model = small_model(eos=(text[place],))
    for length in (2, 3, 4, 5, 6, 7):  # at some place inside, as the last of the draft, and behind it
        done = run(Knowing([text], length), model, [request(new=40)])[0]
        assert (done.token_ids, done.stop_reason) == (text[: place + 1], "eos")
        assert done.drafts.emitted == place
        assert done.drafts.accepted <= place


def test_a_stop_string_inside_a_draft_ends_the_request():
    model, text = small_model(), dense(small_model(), request(new=40))[0].token_ids
    stop = "".join(map(chr, text[8:10]))
    plain = dense(model, request(new=40, stop=(stop,)))[0]
    done = run(Knowing([text], 6), model, [request(new=40, stop=(stop,))])[0]
    assert plain.stop_reason == done.stop_reason == "stop"
    assert (done.token_ids, done.text) == (plain.token_ids, plain.text)


@pytest.mark.parametrize("new", [1, 2, 3, 4, 5, 6, 7, 8, 9])
def test_the_length_limit_is_kept_inside_a_draft(new):
    model, text = small_model(), dense(small_model(), request(new=40))[0].token_ids
    done = run(Knowing([text], 5), model, [request(new=new)])[0]
    assert (done.token_ids, done.stop_reason) == (text[:new], "length")


@pytest.mark.parametrize("name", NAMES)
def test_a_scored_text_has_the_log_probabilities_of_plain_decoding(name):
    model, target = small_model(), "".join(map(chr, [3, 9, 4, 3, 9, 4, 3, 9, 4, 11]))
    forced = [request("a", target=target), request("b", length=12, target=target[:6])]
    for mine, theirs in zip(run(METHODS.load(name)(), model, forced), dense(model, *forced), strict=True):
        assert (mine.token_ids, mine.stop_reason) == (theirs.token_ids, "scored")
        assert mine.target_logprobs == pytest.approx(theirs.target_logprobs, abs=1e-4)


@pytest.mark.parametrize("name", ["ngram", "lookahead", "chimera"])
@pytest.mark.parametrize(
    "rules", [{"temperature": 1.0}, {"temperature": 0.6, "top_p": 0.8}, {"temperature": 1.3, "top_k": 5}]
)
def test_sampled_text_with_picked_drafts_is_that_of_plain_decoding(name, rules):
    """Each place in the text uses its own number of the request's stream, whatever the draft was."""
    model = small_model()
    requests = [request(f"s{i}", new=60, seed=i, **rules) for i in range(6)]
    ours = run(METHODS.load(name)(), model, requests)
    assert [done.token_ids for done in ours] == [done.token_ids for done in dense(model, *requests)]
    assert sum(done.drafts.accepted for done in ours) > 3


# ---------------------------------------------------------------- acceptance: every outcome enumerated


V = 6


def laws(count: int, seed: int, sharp: float = 1.5) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (sharp * torch.randn(count, V, generator=generator, dtype=torch.float64)).softmax(dim=-1)


class Fork:
    """A number that is every number at once: comparisons take one way after the other, with their probabilities."""

    def __init__(self, ways: list[bool]) -> None:
        self.ways, self.taken, self.weight, self.scale = ways, 0, 1.0, 1.0

    def __call__(self) -> Fork:
        return self

    def __mul__(self, scale: float) -> Fork:
        self.scale = scale
        return self

    def __lt__(self, bound: float) -> bool:
        chance = min(1.0, bound / self.scale)
        if self.taken == len(self.ways):
            self.ways.append(True)
        way = self.ways[self.taken]
        self.taken += 1
        self.weight *= chance if way else 1 - chance
        return way


def outcomes(tree: TokenTree, law: Callable[[int], Tensor]) -> Iterator[tuple[float, tuple[int, ...]]]:
    """Probability and emitted tokens of everything that `accept_drawn` may do with a draft."""
    ways: list[bool] = []
    while True:
        fork = Fork(ways)
        last: list[Tensor] = []
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(acceptance, "draw", lambda left, number, last=last: last.append(left) or 0)
            verdict = accept_drawn(tree, law, fork)
        for token in range(V):
            yield fork.weight * float(last[0][token]), (*verdict.tokens[:-1], token)
        while ways and not ways[-1]:
            ways.pop()
        if not ways:
            return
        ways[-1] = False


def drafts(q: Tensor, children: int, kind: str) -> Iterator[tuple[float, tuple[int, ...], list[Tensor]]]:
    """Probability, tokens and laws of all ways to draw so many siblings from q."""
    for tokens in itertools.product(range(V), repeat=children):
        weight, own = 1.0, []
        for place, token in enumerate(tokens):
            if kind == "without replacement" and token in tokens[:place]:
                weight = 0.0
                break
            own.append(without(q, tokens[:place]) if kind == "without replacement" else q)
            weight *= float(own[-1][token])
        if weight:
            yield weight, tokens, own


def sibling_error(children: int, kind: str, seed: int = 0) -> float:
    """Largest difference between p and the law of the first emitted token."""
    p, q = laws(2, seed)
    law = torch.zeros(V, dtype=torch.float64)
    for weight, tokens, own in drafts(q, children, kind):
        tree = TokenTree(tokens, (ROOT,) * children, torch.stack(own))
        for chance, said in outcomes(tree, lambda node: p):
            law[said[0]] += weight * chance
    return float((law - p).abs().max())


def chain_error(length: int, seed: int = 0) -> float:
    """Largest difference between p(x1) p(x2 | x1) ... and the law of the next `length` + 1 tokens.

    Target and drafter are Markov chains; what a round does not say, the target says in plain steps afterwards.
    """
    p, q = laws(V + 1, seed), laws(V + 1, seed + 100)  # row 0 starts, row t + 1 follows token t
    joint = torch.zeros((V,) * (length + 1), dtype=torch.float64)
    exact = torch.zeros_like(joint)
    for said in itertools.product(range(V), repeat=length + 1):
        before = (0, *(token + 1 for token in said))
        exact[said] = torch.stack([p[row, token] for row, token in zip(before, said, strict=False)]).prod()
    for tokens in itertools.product(range(V), repeat=length):
        rows = [0, *(token + 1 for token in tokens)]
        weight = float(torch.stack([q[row, token] for row, token in zip(rows, tokens, strict=False)]).prod())
        tree = TokenTree.chain(tokens, q[rows[:-1]])
        for chance, said in outcomes(tree, lambda node, rows=rows: p[rows[node + 1]]):
            for rest in itertools.product(range(V), repeat=length + 1 - len(said)):
                text = (*said, *rest)
                follows = [float(p[text[i - 1] + 1, text[i]]) for i in range(len(said), len(text))]
                joint[text] += weight * chance * float(torch.tensor(follows, dtype=torch.float64).prod())
    return float((joint - exact).abs().max())


@pytest.mark.parametrize("kind", ["with replacement", "without replacement"])
@pytest.mark.parametrize("children", [1, 2, 3])
@pytest.mark.parametrize("seed", [0, 1])
def test_drawn_siblings_leave_the_law_exact(children, kind, seed):
    assert sibling_error(children, kind, seed) < 1e-9


@pytest.mark.parametrize("length", [1, 2])
def test_a_drawn_chain_leaves_the_joint_law_exact(length):
    assert chain_error(length) < 1e-9


def test_picked_children_leave_the_law_exact():
    """One draw of p, then a look at the children: whatever they are."""
    p = laws(1, 3)[0]
    tree = TokenTree((2, 5, 2), (ROOT, ROOT, ROOT))
    law = torch.zeros(V, dtype=torch.float64)
    for token in range(V):
        law[follow(tree, [token, 0, 0, 0]).tokens[0]] += p[token]
    assert float((law - p).abs().max()) == 0.0


def test_no_residual_would_be_seen(monkeypatch):
    monkeypatch.setattr(acceptance, "residual", lambda p, q: p)
    assert sibling_error(1, "with replacement") > 1e-2
    assert chain_error(1) > 1e-2


def test_laws_that_forget_the_elder_siblings_would_be_seen(monkeypatch):
    monkeypatch.setattr(f"{__name__}.without", lambda q, tokens: q)
    error = sibling_error(2, "without replacement")
    assert error > 1e-2


def test_one_node_for_two_equal_draws_would_be_seen(monkeypatch):
    """The card's "keep one" is biased where siblings are drawn with replacement."""
    draw_all = drafts

    def merged(q: Tensor, children: int, kind: str) -> Iterator[tuple[float, tuple[int, ...], list[Tensor]]]:
        for weight, tokens, own in draw_all(q, children, kind):
            kept = tuple(dict.fromkeys(tokens))
            yield weight, kept, own[: len(kept)]

    p, q = laws(2, 0)
    law = torch.zeros(V, dtype=torch.float64)
    for weight, tokens, own in merged(q, 2, "with replacement"):
        for chance, said in outcomes(TokenTree(tokens, (ROOT,) * len(tokens), torch.stack(own)), lambda node: p):
            law[said[0]] += weight * chance
    assert float((law - p).abs().max()) > 1e-3


def test_picked_tokens_accepted_by_the_drafters_probability_would_be_seen():
    """The two most likely tokens of q, tested with min(1, p / q) as if they had been drawn."""
    p, q = laws(2, 0)
    tree = TokenTree(tuple(q.topk(2).indices.tolist()), (ROOT, ROOT), q.expand(2, V))
    law = torch.zeros(V, dtype=torch.float64)
    for chance, said in outcomes(tree, lambda node: p):
        law[said[0]] += chance
    assert float((law - p).abs().max()) > 1e-2


def test_branches_that_begin_alike_are_walked_together():
    tree = TokenTree((1, 2, 1, 3), (ROOT, 0, ROOT, 2))
    assert follow(tree, [1, 3, 9, 3, 7]) == ((2, 3), (1, 3, 7))


def test_typical_acceptance_by_hand():
    sharp = torch.tensor([0.95, 0.05, 0.0], dtype=torch.float64)
    flat = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    tree = TokenTree((1, 0, 1, 2), (ROOT, ROOT, 1, 1))
    # entropy of sharp 0.2: bound min(0.09, 0.25) -> token 1 at 0.05 is out; flat: all above 0.09, the likelier is taken
    verdict = accept_typical(tree, lambda node: sharp if node == ROOT else flat, lambda: 0.0)
    assert (verdict.path, verdict.tokens) == ((1, 2), (0, 1, 0))


# ---------------------------------------------------------------- sampling, end to end


CHARACTERS, SAID, DRAWN, BATCH = 8, 3, 16_000, 1000
FEW = 4_000
"""Texts in which a broken rule shows."""
"""A text costs 0.3 to 0.5 ms, most of it the loop's own work for each row: 200,000 of them need one to two minutes.

So many are drawn in the slow test; these suffice to see each of the planted bugs."""
RULES = {"temperature": 0.7}


def peaked(vocab: int = CHARACTERS) -> Any:
    """Three layers, the middle one skipped by the drafter, and laws far from uniform."""
    model = small_model(seed=5, vocab=vocab)
    model.decoder.head.weight.mul_(1.5)
    return model


@pytest.fixture(scope="module")
def sequence_law() -> Tensor:
    """Probabilities of all texts of SAID tokens behind the prompt, [CHARACTERS ** SAID]."""
    model, sampler = peaked(), RequestSampler(sampled(0))
    texts = torch.tensor(list(itertools.product(range(CHARACTERS), repeat=SAID)))
    prompt = torch.tensor(model.encode(sampled(0)).ids).expand(len(texts), -1)
    with torch.inference_mode():
        cache = model.decoder.new_cache(len(texts), 40)
        logits = model.decoder(
            torch.cat((prompt, texts[:, :-1]), dim=1), cache, DenseAttention(model.config), logits="all"
        )[:, -SAID:]
    law = torch.ones(len(texts), dtype=torch.float64)
    for place in range(SAID):
        law *= sampler.probabilities(logits[:, place]).gather(1, texts[:, place, None])[:, 0]
    return law


def sampled(seed: int) -> Any:
    return request("s", length=1, new=SAID, seed=seed).model_copy(
        update={"id": f"s{seed}", "prompt": "\x01\x05\x02\x07\x03", **RULES}
    )


def drawn(method: DecodingMethod, texts: int = DRAWN, **options: Any) -> Tensor:
    """Counts of the texts that so many requests gave, [CHARACTERS ** SAID]."""
    model, counts = peaked(), torch.zeros(CHARACTERS**SAID, dtype=torch.float64)
    config = method.Config(**options)
    with method.attach(model, config) as generator:
        for first in range(0, texts, BATCH):
            requests = [sampled(seed) for seed in range(first, first + BATCH)]
            for done in generator.generate(requests, RequestMeter()):
                place = 0
                for token in done.token_ids:
                    place = place * CHARACTERS + token
                counts[place] += 1
    return counts


def chi_square(counts: Tensor, law: Tensor) -> float:
    """The test's p-value; cells with fewer than 5 expected are merged."""
    expected = law * counts.sum()
    rare = expected < 5
    cells = [torch.cat((x[~rare], x[rare].sum()[None])).numpy() for x in (counts, expected)]
    keep = cells[1] > 0
    return float(stats.chisquare(cells[0][keep], cells[1][keep] * cells[0].sum() / cells[1].sum()).pvalue)


def total_variation(counts: Tensor, law: Tensor) -> float:
    """Between the counts and the law, over that of so many plain samples."""
    noise = 0.5 * (2 * law * (1 - law) / (torch.pi * counts.sum())).sqrt().sum()
    return float(0.5 * (counts / counts.sum() - law).abs().sum() / noise)


@pytest.mark.parametrize("texts", [DRAWN, pytest.param(200_000, marks=pytest.mark.slow)])
def test_texts_of_a_drawn_draft_have_the_targets_law(sequence_law, texts):
    assert float(sequence_law.sum()) == pytest.approx(1.0)
    counts = drawn(DraftModelSpeculation(), texts, length=2)
    assert chi_square(counts, sequence_law) > 1e-4
    assert total_variation(counts, sequence_law) < 1.3


def _no_residual(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(acceptance, "residual", lambda p, q: p)


def _typical(patch: pytest.MonkeyPatch) -> None:
    def accept(method: Any, tree: TokenTree, logits: Tensor, sampler: RequestSampler) -> Any:
        found = sampler.probabilities(logits)
        return accept_typical(tree, lambda node: found[node + 1], sampler.uniform)

    patch.setattr(DecodingMethod, "accept", accept)


def _q_before_temperature(patch: pytest.MonkeyPatch) -> None:
    """Tokens are drawn at the temperature, and judged by the drafter's law without it."""

    def extend(chain: Any, logits: Tensor) -> None:
        chain.tokens.append(chain._sampler.draw(chain._sampler.probabilities(logits)[0]))
        chain._laws.append(logits[0].double().softmax(dim=-1))

    patch.setattr(drafter._Chain, "extend", extend)


def _bonus_of_the_drafter(patch: pytest.MonkeyPatch) -> None:
    """Behind a full acceptance the last law of the drafter is drawn from, not the target's."""
    right = acceptance.accept_drawn

    def wrong(tree: TokenTree, law: Any, uniform: Any) -> Any:
        return right(tree, lambda node: tree.laws[-1] if node == len(tree) - 1 else law(node), uniform)

    patch.setattr(acceptance, "accept_drawn", wrong)


@pytest.mark.parametrize("bug", [_no_residual, _typical, _q_before_temperature, _bonus_of_the_drafter])
def test_a_broken_rule_does_not_pass_as_exact(bug, sequence_law, monkeypatch):
    bug(monkeypatch)
    counts = drawn(DraftModelSpeculation(), FEW, length=2)
    assert chi_square(counts, sequence_law) < 1e-4


# ---------------------------------------------------------------- caches


def audit(model: Any, cache: Any, row: int, tokens: list[int]) -> float:
    """Largest difference between one row of a cache and a fresh prefill of the same tokens."""
    fresh = model.new_cache(1, len(tokens))
    model(torch.tensor([tokens]), fresh, DenseAttention(model.config))
    pairs = zip((*cache.keys, *cache.values), (*fresh.keys, *fresh.values), strict=True)
    return max(float((ours[row, :, : len(tokens)] - new[0, :, : len(tokens)]).abs().max()) for ours, new in pairs)


def worst_after_rounds(method: DecodingMethod, model: Any, requests: list[Any], count: int = 200) -> float:
    method.begin(model, method.Config())
    batch = Batch(model, method, requests, RequestMeter())
    worst = 0.0
    with torch.inference_mode():
        batch.prefill()
        for _ in range(count):
            batch.round()
        for index, row in enumerate(batch.rows):
            assert row.running
            held = batch.cache.lengths[index]
            assert held == len(row.context.tokens) - 1
            worst = max(worst, audit(model.decoder, batch.cache, index, row.context.tokens[:held]))
    assert sum(row.tally.accepted for row in batch.rows) > 0.5 * count
    return worst


@pytest.fixture(scope="module")
def long_texts() -> tuple[Any, list[Any], list[Any]]:
    model = small_model(window=4096)
    requests = [request("a", length=20, new=1200), request("bb", length=33, new=1200)]
    return model, requests, [done.token_ids for done in dense(model, *requests)]


def test_the_cache_is_that_of_a_fresh_prefill_after_200_rounds(long_texts):
    model, requests, texts = long_texts
    assert worst_after_rounds(Knowing(texts), model, requests) < 1e-4


def test_an_accepted_path_left_where_it_was_would_be_seen(long_texts, monkeypatch):
    model, requests, texts = long_texts
    monkeypatch.setattr(verification.kv_move, "compact", lambda *args: None)
    assert worst_after_rounds(Knowing(texts), model, requests, 20) > 1e-2


class Watched(DraftModelSpeculation):
    """Audits the drafter's cache at every draft."""

    def __init__(self) -> None:
        super().__init__()
        self.worst, self.owed = 0.0, set[int]()

    def drafts(self, contexts: Any) -> Any:
        cache = self._drafter._cache
        for one in contexts:
            held = one.tokens[: cache.lengths[one.row]]
            self.owed.add(len(one.tokens) - len(held))
            self.worst = max(self.worst, audit(self._drafter._decoder, cache, one.row, held))
        return super().drafts(contexts)


def test_the_drafters_cache_is_that_of_a_fresh_prefill():
    method = Watched()
    run(method, small_model(), [request("a", new=90), request("bb", length=11, new=120)], length=2)
    assert method.worst < 1e-4
    assert method.owed == {1, 2}


def test_a_drafter_that_never_reads_its_last_token_would_be_seen(monkeypatch):
    """After a full acceptance two tokens are missing; here only the newest is read."""
    read = drafter.DraftModel._pass
    monkeypatch.setattr(
        drafter.DraftModel, "_pass", lambda self, rows, pieces: read(self, rows, [p[-1:] for p in pieces])
    )
    method = Watched()
    run(method, small_model(), [request("a", new=90), request("bb", length=11, new=120)], length=2)
    assert method.worst > 1e-2


# ---------------------------------------------------------------- the draft model


def test_a_drafter_that_is_the_target_is_always_accepted(monkeypatch):
    """It then lacks two tokens at every round but the first."""
    monkeypatch.setattr(draft_model, "kept_layers", lambda layers, skipped: list(range(layers)))
    model = small_model()
    for batch in ([request("a", new=41)], [request("a", new=41), request("bb", length=11, new=26)]):
        for done in run(DraftModelSpeculation(), model, batch, length=4):
            assert done.drafts.accepted == done.drafts.drafted
            assert done.drafts.rounds == -(-(len(done.token_ids) - 1) // 5)


def test_the_skipped_layers_share_their_weights_with_the_target():
    model = small_model()
    twin = drafter.layer_subset(model.decoder, [0, 2])
    assert [layer.attention.layer for layer in twin.layers] == [0, 1]
    assert [layer.attention.layer for layer in model.decoder.layers] == [0, 1, 2]
    assert twin.layers[1].mlp is model.decoder.layers[2].mlp
    assert twin.layers[1].attention.qkv is model.decoder.layers[2].attention.qkv
    assert len(model.decoder.layers) == 3


def test_layers_are_skipped_evenly_and_never_at_the_ends():
    kept = kept_layers(30, 0.5)
    assert len(kept) == 15
    assert max(b - a for a, b in itertools.pairwise(kept)) == 3
    assert {0, 29} <= set(kept_layers(30, 0.9))
    assert kept_layers(3, 0.5) == kept_layers(3, 0.2) == [0, 2]
    assert kept_layers(2, 0.9) == [0, 1]


def test_a_model_of_two_layers_is_refused_as_its_own_drafter():
    model = small_model(layers=2)
    assert "too few" in DraftModelSpeculation().refusal(model, DraftModelConfig())
    assert DraftModelSpeculation().refusal(model, DraftModelConfig(drafter="other")) is None


def test_a_drafter_with_another_tokenizer_is_refused_in_one_sentence(monkeypatch):
    monkeypatch.setattr(draft_model, "load_model", lambda name, dtype: small_model(vocab=41))
    with pytest.raises(UnitError, match="their tokenizers differ"):
        DraftModelSpeculation().prepare(small_model(), DraftModelConfig(drafter="other"))


def test_another_model_drafts(monkeypatch):
    monkeypatch.setattr(draft_model, "load_model", lambda name, dtype: small_model(layers=1))
    model, requests = small_model(), [request("a", new=50), request("bb", length=14, new=30)]
    ours = run(DraftModelSpeculation(), model, requests, drafter="other")
    assert [done.token_ids for done in ours] == [done.token_ids for done in dense(model, *requests)]


def test_layers_with_a_window_are_refused():
    model = small_model(windows=(None, 16, None))
    for name in NAMES:
        method = METHODS.load(name)()
        assert "sliding window" in method.refusal(model, method.Config())


# ---------------------------------------------------------------- prompt lookup


def test_prompt_lookup_takes_the_latest_place_of_the_longest_suffix():
    method, one = Ngram(), context([1, 2, 3, 9, 1, 2, 4, 5, 6, 2, 8, 1, 2])
    method.begin(small_model(), Ngram.Config(length=3))
    method.start([one])
    assert method.draft(one).tokens == (4, 5, 6)  # behind the later "1 2", not behind "2"
    one.tokens += [8]
    method.update(one, Round(EMPTY, (), (8,)))
    assert method.draft(one).tokens == (1, 2, 8)  # behind "2 8"
    one.tokens += [7]
    method.update(one, Round(EMPTY, (), (7,)))
    assert method.draft(one) == EMPTY


# ---------------------------------------------------------------- hidden states, meters


class Looking(Knowing):
    """Collects the hidden states it is shown."""

    sees_hidden = True

    def begin(self, model: Any, config: Any) -> None:
        self.states: dict[int, list[Tensor]] = {}

    def observe(self, context: Any, hidden: Tensor) -> None:
        self.states.setdefault(context.row, []).append(hidden)


def test_a_drafter_sees_the_normed_state_of_every_token_once_and_in_order():
    """Prompts longer than a prefill pass, a ragged batch, and rounds with refused nodes between."""
    model = small_model(window=4096)
    requests = [request("a", length=600, new=30), request("bb", length=40, new=44)]
    texts = dense(model, *requests)
    method = Looking([done.token_ids for done in texts])
    run(method, model, requests)
    for row, (one, text) in enumerate(zip(requests, texts, strict=True)):
        ids = [*model.encode(one).ids, *text.token_ids]
        states = torch.cat(method.states[row])
        assert len(ids) - 2 <= len(states) <= len(ids) - 1
        with torch.inference_mode():
            logits = model.decoder(
                torch.tensor([ids]), model.decoder.new_cache(1, len(ids)), DenseAttention(model.config), logits="all"
            )[0, : len(states)]
            torch.testing.assert_close(states @ model.decoder.head.weight.T, logits, atol=1e-4, rtol=0)


def test_a_round_is_counted_by_the_definitions():
    tally = Tally()
    tree = TokenTree((3, 4, 5, 6), (ROOT, 0, 0, 1), steps=3)  # 4 and 5 follow 3, 6 follows 4
    tally.add(Round(tree, (0, 2), (3, 5, 9)))  # nothing stands behind 5
    tally.add(Round(tree, (0,), (3, 9)))  # refused at the second place
    tally.add(Round(tree, (0, 1), (3, 4)))  # ended on an accepted token: what follows was not decided
    tally.add(Round(EMPTY, (), (7,)))
    figures = tally.figures()
    assert (figures.rounds, figures.emitted, figures.drafted, figures.accepted) == (4, 8, 12, 5)
    assert (figures.offered_at, figures.accepted_at) == ((3, 3), (3, 2))
    assert tally.steps == 9


def test_the_ledger_adds_up():
    model, text = small_model(), dense(small_model(), request(new=40))[0].token_ids
    done = run(Knowing([text]), model, [request(new=40)])[0]
    figures = done.drafts
    assert figures.emitted == done.cost.generated_tokens - 1 == 39
    assert figures.emitted == figures.rounds + figures.accepted  # it ended on a token of the target's own
    assert done.cost.discarded_tokens == figures.drafted - figures.accepted
    assert done.cost.verifier_passes == figures.rounds
    assert done.cost.sequential_depth == 1 + figures.rounds
    assert 0 < figures.draft_ns < figures.decode_ns


def test_the_drafters_passes_are_part_of_the_sequential_depth():
    done = run(DraftModelSpeculation(), small_model(), [request(new=20)], length=3)[0]
    assert done.cost.sequential_depth > 1 + 2 * done.cost.verifier_passes


def test_plain_decoding_has_no_draft_figures():
    assert dense(small_model(), request())[0].drafts is None
    assert isinstance(run(Ngram(), small_model(), [request()])[0].drafts, DraftFigures)
