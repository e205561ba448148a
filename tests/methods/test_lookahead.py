"""Lookahead's tries and drafts: the card's rules and its toy traps."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from suite.methods.decoding import trie as tries
from suite.methods.decoding.context import Context, Round
from suite.methods.decoding.lookahead import Lookahead, LookaheadConfig
from suite.methods.decoding.tree import EMPTY, MOST_DRAFTED, ROOT, TokenTree
from suite.methods.decoding.trie import Branches, Node, Trie
from tests.methods.drafting import context, dense, request, run, small_model

END = 39


def attached(**options: Any) -> Lookahead:
    method = Lookahead()
    method.begin(small_model(eos=(END,)), LookaheadConfig(**options))
    return method


def answered(method: Lookahead, *answers: Sequence[int]) -> None:
    """Requests whose prompt is one token long, and which gave these answers in one round."""
    for answer in answers:
        one = context([0])
        method.start([one])
        one.tokens += answer
        method.update(one, Round(EMPTY, (), tuple(answer)))
        method.finish(one)


def drafted(method: Lookahead, tokens: Sequence[int], prompt: Sequence[int] = (0,), **fields: Any) -> TokenTree:
    """The draft of a request that has said `tokens` behind its prompt; the request goes on."""
    one = context([*prompt], **fields)
    method.start([one])
    one.tokens += tokens
    return method.draft(one)


def paths(tree: TokenTree) -> set[tuple[int, ...]]:
    leaves = set(range(len(tree))) - set(tree.parents)
    return {tuple(tree.tokens[node] for node in tree.path(leaf)) for leaf in leaves}


# ---------------------------------------------------------------- retrieval


def test_two_continuations_of_one_prefix_are_one_tree_with_a_shared_prefix():
    method = attached()
    answered(method, [7, 1, 2, 3], [7, 1, 2, 4])
    tree = drafted(method, [7])
    assert paths(tree) == {(1, 2, 3), (1, 2, 4)}
    assert len(tree) == 4
    mask = [[int(bits >> column & 1) for column in range(1, 5)] for bits in tree.masks().tolist()[1:]]
    assert mask == [[1, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0], [1, 1, 0, 1]]


def test_the_longer_match_comes_first_and_a_shorter_one_fills_up():
    method = attached(decoding_length=5, branch_length=4)
    answered(method, [5, 7, 1], [6, 7, 2], [6, 7, 2], [6, 7, 3])
    tree = drafted(method, [5, 7])
    assert tree.tokens == (1, 2, 3)  # the rare one that follows "5 7" before the frequent ones behind "7"
    assert method.hits == {2: 1}


def test_a_longer_match_that_finds_enough_is_left_alone():
    method = attached(branch_length=4)
    answered(method, [5, 7, 1, 2, 3], [6, 7, 9])
    assert paths(drafted(method, [5, 7])) == {(1, 2, 3)}
    assert paths(drafted(method, [8, 7])) == {(1, 2, 3), (9,)}
    assert method.hits == {2: 1, 1: 1}


def test_a_longer_match_is_not_replaced_by_a_smaller_one():
    """As the published code does: here the shorter query's trie has lost what the longer one's still has."""
    method = attached()
    answered(method, [5, 7, 1, 2])
    del method.trie.trees[7]
    method.trie.insert_answer(7, [9])
    assert paths(drafted(method, [5, 7])) == {(1, 2), (9,)}
    method = attached(mode="one")
    answered(method, [5, 7, 1, 2])
    del method.trie.trees[7]
    method.trie.insert_answer(7, [9])
    assert paths(drafted(method, [5, 7])) == {(1, 2)}


def test_the_best_nodes_are_kept_and_of_equal_ones_the_shallower():
    method = attached(decoding_length=5, branch_length=6)
    answered(method, [7, 1, 2, 3, 4], [7, 1, 2, 3, 4], [7, 5], [7, 6])
    assert paths(drafted(method, [7])) == {(1, 2, 3, 4)}  # frequency 2 all along
    method = attached(decoding_length=5, branch_length=6)
    answered(method, [7, 1, 2, 3, 4], [7, 5], [7, 6])
    assert paths(drafted(method, [7])) == {(1, 2), (5,), (6,)}


def test_a_draft_is_laid_out_depth_first_with_siblings_by_falling_score():
    method = attached()
    answered(method, [7, 1, 2], [7, 3, 4], [7, 3, 4], [7, 3, 5])
    tree = drafted(method, [7])
    assert (tree.tokens, tree.parents) == ((3, 4, 5, 1, 2), (ROOT, 0, 0, ROOT, 3))


def test_the_prompt_outranks_what_was_generated():
    prompt = [0, 7, 5, 6]
    method = attached(decoding_length=3)
    answered(method, *[[7, 1, 2]] * 50)
    assert drafted(method, [7], prompt).tokens == (5, 6)
    for source, tokens in (("input", (5, 6)), ("output", (1, 2))):
        method = attached(decoding_length=3, source=source)
        answered(method, *[[7, 1, 2]] * 50)
        assert drafted(method, [7], prompt).tokens == tokens


def test_nothing_known_is_an_ordinary_step():
    method = attached()
    assert drafted(method, [7]) == EMPTY
    assert method.hits == {0: 1}


def test_a_stop_token_alone_is_no_query_and_starts_no_branch_of_an_answer():
    """In the tests' tokenizer ids are characters: a newline is token 10, a space token 32."""
    method = attached()
    answered(method, [7, 10, 1, 2], [8, 10, 3])
    assert 10 not in method.trie.trees
    assert drafted(method, [6, 10]) == EMPTY
    assert paths(drafted(method, [7, 10])) == {(1, 2)}
    prompt = attached()
    assert drafted(prompt, [9, 10], [0, 10, 4, 5]) == EMPTY
    assert 10 in prompt.trie.trees  # a prompt's stop tokens do start branches, for longer queries alone


def test_prompts_go_in_without_their_first_token_short_tails_included():
    method = attached(branch_length=3)
    drafted(method, [9], [4, 1, 2, 3, 1, 5])
    found = {first: set(walk(tree.root)) for first, tree in method.trie.trees.items()}
    assert found == {1: {(2, 3, 1, 5), (5,)}, 2: {(3, 1, 5)}, 3: {(1, 5)}}


def walk(node: Node, path: tuple[int, ...] = ()) -> Iterator[tuple[int, ...]]:
    """All root-to-leaf paths."""
    if not node.children and path:
        yield path
    for token, child in node.children.items():
        yield from walk(child, (*path, token))


def test_nothing_is_learnt_across_an_end_of_text():
    method = attached()
    answered(method, [7, 1, END])
    assert paths(drafted(method, [7], [0, 5, END, 6, 8, 2])) == {(1,)}
    assert drafted(method, [5], [0, 5, END, 6]) == EMPTY
    assert paths(drafted(method, [6], [0, 5, END, 6, 8, 2])) == {(8, 2)}  # a chat template's later parts count


def test_branches_end_where_the_request_must():
    method = attached()
    answered(method, [7, 1, 2, 3, 4, 5, 6])
    assert drafted(method, [7], new=4).tokens == (1, 2)  # one is said, the target's own token is one
    assert drafted(method, [7], new=40).tokens == (1, 2, 3, 4, 5, 6)


def test_branches_are_no_deeper_than_asked_for():
    method = attached(branch_length=2)
    answered(method, [7, 1, 2, 3, 4])
    assert drafted(method, [7]).tokens == (1, 2)
    assert drafted(method, [7, 1]).tokens == (2, 3)  # the tries hold one token more, for queries of two


def test_a_batch_shares_the_draft_length_and_answers_not_prompts():
    method = attached(decoding_length=8)
    answered(method, [7, 1, 2, 3, 4, 5, 6])
    rows = [Context(row, 2, [0, 7, 9 + row, 7], 3, 50, context([0]).sampler) for row in (0, 1)]
    method.start(rows)
    trees = [method.draft(one) for one in rows]
    assert [len(tree) for tree in trees] == [3, 3]  # 8 / 2 tokens, roots included
    assert [tree.tokens[0] for tree in trees] == [9, 10]
    assert all(1 in tree.tokens for tree in trees)


def test_a_draft_fits_the_kernel_at_the_largest_setting():
    method = attached(decoding_length=64, branch_length=32)
    answered(method, *[[7, *random.Random(i).choices(range(30), k=40)] for i in range(20)])
    assert len(drafted(method, [7])) == MOST_DRAFTED


# ---------------------------------------------------------------- modes


def modes(**options: Any) -> dict[str, TokenTree]:
    found = {}
    for mode in ("hier", "par", "one"):
        method = attached(mode=mode, **options)
        answered(method, [7, 1, 2, 3], [7, 1, 2, 3], [7, 1, 2, 4], [7, 1, 5], [7, 6])
        found[mode] = drafted(method, [7])
    return found


def test_modes_have_the_same_branches_side_by_side_or_one():
    found = modes(decoding_length=20)
    assert paths(found["hier"]) == paths(found["par"]) == {(1, 2, 3), (1, 2, 4), (1, 5), (6,)}
    assert (len(found["hier"]), len(found["par"])) == (6, 9)
    assert found["one"] == TokenTree.chain([1, 2, 3])


def test_branches_side_by_side_use_no_more_tokens():
    found = modes(decoding_length=7)
    assert len(found["hier"]) == len(found["par"]) == 6
    assert paths(found["par"]) == {(1, 2, 3), (1, 2, 4)}


@pytest.mark.parametrize("mode", ["hier", "par", "one"])
def test_every_mode_says_what_plain_decoding_says(mode):
    model, requests = small_model(), [request("a", new=80), request("bb", length=17, new=60)]
    ours = run(Lookahead(), model, requests, mode=mode)
    assert [done.token_ids for done in ours] == [done.token_ids for done in dense(model, *requests)]
    assert sum(done.drafts.accepted for done in ours) > 10


def test_the_published_pruning_forgets_the_prompt_when_there_is_much():
    prompt = [0, 7, 30, 31, 32]
    for compat, expected in ((False, 30), (True, None)):
        method = attached(decoding_length=6, compat_pruning=compat)
        answered(method, *[[7, first, first + 1] for first in range(1, 20, 2) for _ in range(2)])
        tokens = drafted(method, [7], prompt).tokens
        assert (tokens[0] == expected) if expected else 30 not in tokens


# ---------------------------------------------------------------- requests come and go


def test_a_prompts_branches_are_gone_with_its_request():
    method = attached()
    one, other = context([0, 7, 1, 2, 3], batch=2), context([0, 8], row=1, batch=2)
    method.start([one, other])
    other.tokens += [7]
    assert method.draft(other) == EMPTY  # nor does another request see them meanwhile
    one.tokens += [7]
    assert paths(method.draft(one)) == {(1, 2, 3)}
    method.finish(one)
    method.finish(other)
    assert drafted(method, [7]) == EMPTY
    assert method.trie.nodes == 0


def test_a_prompts_branches_that_were_said_too_stay():
    method = attached()
    one = context([0, 7, 1, 2, 3])
    method.start([one])
    one.tokens += [7, 1, 2]
    method.update(one, Round(EMPTY, (), (7, 1, 2)))
    method.finish(one)
    assert paths(drafted(method, [7])) == {(1, 2)}
    assert method.trie.nodes == 3


def test_prompts_that_are_never_cleared_would_be_seen(monkeypatch):
    monkeypatch.setattr(Trie, "forget_prompt", lambda trie, source: None)
    method = attached()
    one = context([0, 7, 1, 2, 3])
    method.start([one])
    method.finish(one)
    assert method.trie.nodes > 0


def test_an_answer_is_learnt_while_it_is_written():
    """Repetition inside one answer raises the tokens per pass within that answer."""
    done = run(Lookahead(), small_model(), [request(new=120)], source="output")[0]
    assert done.drafts.emitted / done.drafts.rounds > 1.1


def test_answers_learnt_at_their_end_only_would_be_seen(monkeypatch):
    monkeypatch.setattr(Lookahead, "update", lambda *args: None)
    done = run(Lookahead(), small_model(), [request(new=120)], source="output")[0]
    assert done.drafts.emitted == done.drafts.rounds


def learnt(method: Lookahead) -> set[tuple[int, ...]]:
    """All branches of the tries, with their first tokens."""
    return {(first, *path) for first, tree in method.trie.trees.items() for path in walk(tree.root)}


def test_only_what_was_said_is_learnt_as_said():
    method, model = Lookahead(), small_model()
    done = run(method, model, [request(new=100)], branch_length=4)[0]
    assert done.drafts.drafted > done.drafts.accepted
    said = done.token_ids
    expected = {said[i : i + 6] for i in range(len(said) - 1) if said[i] not in (10, 32)}
    kept = {path for path in expected if not any(path != p and p[: len(path)] == path for p in expected)}
    assert learnt(method) == kept


def test_drafted_tokens_learnt_as_said_would_be_seen(monkeypatch):
    update = Lookahead.update

    def eager(method: Lookahead, context: Context, outcome: Round) -> None:
        method.trie.insert_answer(context.tokens[-1], outcome.tree.tokens)
        update(method, context, outcome)

    monkeypatch.setattr(Lookahead, "update", eager)
    method = Lookahead()
    said = run(method, small_model(), [request(new=100)], branch_length=4)[0].token_ids
    real = {said[i : i + size] for size in range(1, 7) for i in range(len(said))}
    assert not learnt(method) <= real


def test_streaming_in_rounds_learns_what_one_insertion_learns():
    whole, parts = attached(branch_length=3), attached(branch_length=3)
    answer = random.Random(1).choices(range(12), k=40)
    answered(whole, answer)
    one = context([0])
    parts.start([one])
    while len(one.tokens) < 41:
        piece = answer[len(one.tokens) - 1 :][: 1 + len(one.tokens) % 4]
        one.tokens += piece
        parts.update(one, Round(EMPTY, (), tuple(piece)))
    parts.finish(one)
    assert frequencies(parts.trie) == frequencies(whole.trie)


def frequencies(trie: Trie) -> dict[tuple[int, ...], float]:
    def below(node: Node, path: tuple[int, ...]) -> Iterator[tuple[tuple[int, ...], float]]:
        for token, child in node.children.items():
            yield (*path, token), child.answers
            yield from below(child, (*path, token))

    return {key: value for first, tree in trie.trees.items() for key, value in below(tree.root, (first,))}


def test_what_is_known_stays_while_attached_and_no_longer():
    model, method, one = small_model(), Lookahead(), request("a", new=60)
    config = LookaheadConfig(source="output")
    rounds = []
    for _ in range(2):
        with method.attach(model, config) as generator:
            for _ in range(2):
                from suite.harness.meter import RequestMeter

                done = next(iter(generator.generate([one], RequestMeter())))
                rounds.append(done.drafts.rounds)
    assert rounds[1] < rounds[0]
    assert rounds[2:] == rounds[:2]


# ---------------------------------------------------------------- pruning


def test_pruning_halves_what_was_said_often_and_drops_the_rest(monkeypatch):
    monkeypatch.setattr(tries, "CLEAN_UP", 1)
    trie = Trie(1000, 3)
    for tail in ([1, 2], [1, 2], [1, 2], [1, 3], [4, 5]):
        trie.insert_answer(7, tail)
    assert (trie.trees[7].nodes, trie.trees[7].answers) == (5, 5)
    trie.clean_up()
    assert frequencies(trie) == {(7, 1): 2.0, (7, 1, 2): 1.5}
    assert (trie.trees[7].nodes, trie.trees[7].answers) == (2, 2)


def test_a_running_prompt_survives_the_pruning_of_its_branches(monkeypatch):
    """The bookkeeping does: what was dropped is not dropped again when the request ends."""
    monkeypatch.setattr(tries, "CLEAN_UP", 1)
    trie = Trie(1, 1)
    trie.insert_prompt(0, 7, [1, 2, 3])
    trie.insert_answer(7, [1])
    trie.insert_answer(7, [1])
    trie.clean_up()
    assert trie.nodes == 1
    trie.insert_prompt(1, 7, [1, 2])
    trie.forget_prompt(0)
    assert trie.nodes == 2
    trie.forget_prompt(1)
    assert frequencies(trie) == {(7, 1): 1.0}
    assert trie.nodes == 1


def stream(trie: Trie, tokens: int, vocabulary: int, piece: int = 2000) -> None:
    """Random text with one frequent phrase, in answers of `piece` tokens, as `Lookahead` learns them."""
    draw = random.Random(0)
    for _ in range(tokens // piece):
        answer = draw.choices(range(vocabulary), k=piece)
        answer[10:15] = [7, 1, 2, 3, 4]
        for place in range(piece - 1):
            trie.insert_answer(answer[place], answer[place + 1 : place + 4])
        trie.clean_up()


def test_a_million_random_tokens_leave_a_bounded_trie_with_the_frequent_branches():
    trie = Trie(64, 64)
    stream(trie, 1_000_000, 1500)
    assert trie.nodes < 1500 * (64 + 200)
    assert trie.nodes == sum(1 for tree in trie.trees.values() for _ in tree.root.below())
    branches = Branches(3)
    branches.add_best(trie.trees[7].root, lambda node: node.answers, 3)
    assert branches.depth_first()[0] == [1, 2, 3]


def test_a_trie_that_is_never_pruned_would_be_seen(monkeypatch):
    monkeypatch.setattr(Trie, "clean_up", lambda trie: None)
    trie = Trie(64, 64)
    stream(trie, 300_000, 1500)
    assert trie.nodes > 1500 * (64 + 200)


def test_bytes_grow_with_what_is_known():
    method = attached()
    answered(method, [7, 1, 2])
    few = method.held_bytes()
    answered(method, [8, 1, 2, 3, 4, 5])
    assert 0 < few < method.held_bytes()
