"""Searches with a verifier: what tells each of them from the shortcut that looks like it."""

from __future__ import annotations

from statistics import fmean

import pytest

from suite.methods.search import parallel_tempering, particle_filtering, particle_gibbs
from suite.methods.search.astar_decoding import AStarConfig, AStarDecoding, edge
from suite.methods.search.beam_search import BeamSearch
from suite.methods.search.best_of_n import BestOfN
from suite.methods.search.dvts import DVTS
from suite.methods.search.frontier import Frontier, Node
from suite.methods.search.mcts import MCTS
from suite.methods.search.parallel_tempering import ParallelTempering
from suite.methods.search.particle_filtering import Cloud, ParticleFiltering, weights
from suite.methods.search.particle_gibbs import ParticleGibbs
from suite.methods.search.step_best_of_n import StepBestOfN
from suite.methods.search.trace import Problem, Trace
from suite.methods.search.weighted_voting import WeightedVoting
from tests.methods.searching import Tree, path


def trap(where):
    """The best first step leads nowhere: from the third step on all of it is bad. The second best leads to the end."""
    if where[0] == 0:
        return 0.9 if len(where) < 3 else 0.05
    return 0.7 if where[0] == 1 else 0.1


def test_particles_weigh_by_odds():
    odds, raw = weights([0.9, 0.1], 1.0), weights([0.9, 0.1], 1.0, "raw")
    assert odds[0] / odds[1] == pytest.approx(81)
    assert raw[0] / raw[1] == pytest.approx(2.2255, rel=1e-3)
    assert weights([0.9, 0.1], 2.0)[0] / weights([0.9, 0.1], 2.0)[1] == pytest.approx(9)


def test_equal_particles_survive_by_chance():
    """N draws with replacement leave 0.63 N; picking the best N would leave all, and picking one none."""
    n, survivors = 16, []
    for seed in range(60):
        tree = Tree(depth=2)
        tree.search(ParticleFiltering(), seed, samples=n)
        assert len(tree.drawn) == 2
        survivors.append(len(set(tree.drawn[1])))
    assert fmean(survivors) == pytest.approx(n * (1 - (1 - 1 / n) ** n), rel=0.05)


def test_particles_fork_before_they_are_finished():
    """Resampled only when they are whole, they would be best of n, and no row would ever change its parent."""
    moved = []
    for seed in range(20):
        tree = Tree(lambda where: 0.9 if where[0] % 4 == 0 else 0.1)
        tree.search(ParticleFiltering(), seed, samples=8)
        moved.append(fmean(parent != (place,) for place, parent in enumerate(tree.drawn[1])))
        assert tree.ledger.extra["ess"] < 8
    assert fmean(moved) > 0.3


@pytest.mark.parametrize("stays", [True, False])
def test_finished_particles_stay_in_the_pool(stays):
    """The first particle ends at once and is by far the best: it takes the others' places, and its text never grows."""
    tree = Tree(lambda where: 0.99 if where == (0,) else 0.02, ends=lambda where: where == (0,))
    answer = tree.search(ParticleFiltering(), samples=8, resample_finished=stays)
    copies = sum(path(trace) == (0,) for trace in answer.pool)
    assert copies == (8 if stays else 1)
    assert all((0,) not in parents for parents in tree.drawn)
    assert path(answer.trace) == (0,)


def test_a_bad_particle_that_finished_early_is_replaced():
    """Without its place in the pool it would be immortal."""
    tree = Tree(lambda where: 0.01 if where == (0,) else 0.99, ends=lambda where: where == (0,))
    answer = tree.search(ParticleFiltering(), samples=8)
    assert all(path(trace) != (0,) for trace in answer.pool)


def test_a_reward_is_that_of_the_whole_prefix_and_counts_once(monkeypatch):
    seen = []

    def watched(scores, temperature, kind):
        seen.append(list(scores))
        return weights(scores, temperature, kind)

    monkeypatch.setattr(particle_filtering, "weights", watched)
    tree = Tree(lambda where: (0.9, 0.8, 0.5, 0.5)[len(where) - 1])
    tree.search(ParticleFiltering(), aggregate="prod", samples=2)
    assert seen == [pytest.approx([r] * 2) for r in (0.9, 0.72, 0.36)]


def test_the_gibbs_reference_is_never_lost(monkeypatch):
    """In every later iteration its prefix competes at every step, and the whole of it is there in the end."""
    pools = []
    resample, filtered = particle_filtering._resample, particle_filtering.filtered

    def watched(cloud, pool, *rest):
        pools.append((cloud.reference, list(pool)))
        return resample(cloud, pool, *rest)

    async def checked(policy, verifier, clouds, config):
        first = len(pools)
        await filtered(policy, verifier, clouds, config)
        reference = clouds[0].reference
        assert len(clouds[0].particles) + (reference is not None) == 4
        if reference is not None:
            assert reference in clouds[0].pool()
            for step, (_, pool) in enumerate(pools[first:], start=1):
                assert reference.lineage[min(step, reference.depth) - 1] in pool

    monkeypatch.setattr(particle_filtering, "_resample", watched)
    monkeypatch.setattr(particle_gibbs, "filtered", checked)
    tree = Tree(lambda where: 0.9 if where[-1] == 0 else 0.3, ends=lambda where: where[-1] == 3)
    answer = tree.search(ParticleGibbs(), samples=4, iterations=4)
    assert sum(reference is not None for reference, _ in pools) >= 3
    assert len(answer.pool) == 4


def test_chains_step_side_by_side_and_exchange_references():
    tree = Tree(lambda where: 0.9 if where[0] == 0 else 0.2, depth=3)
    tree.search(ParallelTempering(), samples=8, chains=2, iterations=1)
    assert [len(parents) for parents in tree.drawn] == [8, 8, 8]
    assert tree.ledger.sequential == 3


@pytest.mark.parametrize("better", ["hot", "cold"])
def test_the_colder_chain_gets_the_better_reference(better):
    """It always does, and gives it back with probability exp((l_x - l_y) (1/T_k - 1/T_l)), here 81 to 1."""
    problem = Problem("p", "", (1,), 9)
    good, bad = (Trace(problem, None, (1,)) for _ in range(2))

    class Known:
        async def scores(self, traces):
            return [0.9 if trace is good else 0.1 for trace in traces]

    class Chance:
        def random(self):
            return 0.5

    hot, cold = Cloud(2, float("inf"), [], good), Cloud(2, 1.0, [], bad)
    if better == "cold":
        hot.reference, cold.reference = bad, good
    with pytest.raises(StopIteration):
        parallel_tempering._exchange([hot, cold], Known(), Chance()).send(None)
    assert cold.reference is good


def test_astar_jumps_back_where_a_greedy_walk_is_caught():
    """Of three steps each; the step-wise best of three cannot leave the branch, nor can a beam of one."""
    jumping, caught = Tree(trap), Tree(trap)
    answer = jumping.search(AStarDecoding(), samples=3)
    assert path(answer.trace)[0] == 1
    assert answer.trace.finished
    assert jumping.ledger.extra["back_jump_rate"] > 0
    assert path(caught.search(StepBestOfN(), samples=3).trace)[0] == 0


def test_astar_returns_the_first_goal_that_is_popped():
    """The goal that is there first is a bad one; an open state is better."""
    tree = Tree(lambda where: 0.1 if where == (0,) else 0.9, ends=lambda where: where == (0,), depth=3)
    answer = tree.search(AStarDecoding(), samples=2)
    assert path(answer.trace) == (1, 0, 0)
    assert answer.scores[0] == 0.9
    assert answer.scores[-1] == 0.1  # the other goal it knew of


@pytest.mark.parametrize(
    ("cost", "g"),
    [
        ("worsening", [0.1, 0.4, 0.4, 0.7]),
        ("improving", [0.0, 0.0, 0.2, 0.2]),
        ("zero", [0.0, 0.0, 0.0, 0.0]),
        ("step", [0.05, 0.1, 0.15, 0.2]),
    ],
)
def test_astar_costs(cost, g):
    """The card's sequence, from a root with h = 0."""
    config, node, found = AStarConfig(cost=cost), Node(Trace(Problem("p", "", (1,), 9)), 1.0, 0.0), []
    for r in (0.9, 0.6, 0.8, 0.5):
        node = Node(node.trace, r, node.g + edge(node.r, r, config), node)
        found.append(node)
    assert [node.g for node in found] == pytest.approx(g)
    if cost == "worsening":
        assert [node.f(0.0) for node in found] == pytest.approx([0.2, 0.8, 0.6, 1.2])


def test_astar_scores_a_state_once_and_counts_what_it_left():
    tree = Tree(trap)
    tree.search(AStarDecoding(), samples=3)
    expansions = tree.ledger.extra["expansions"]
    assert tree.ledger.generated == 3 * expansions == sum(map(len, tree.drawn))
    assert tree.ledger.verifier_passes == len(tree.scored) == len(set(tree.scored)) == 3 * expansions


def test_astar_goes_deeper_where_all_is_equal():
    tree = Tree(depth=6)
    assert tree.search(AStarDecoding(), samples=2).trace.depth == 6
    assert [parents[0] for parents in tree.drawn] == [(0,) * depth for depth in range(6)]


def test_astar_reopens_what_went_on():
    """With two siblings there are, and a penalty that is small, the root is asked again before bad states go on."""

    def score(where):
        return 0.95 if where[0] == 3 else 0.3

    plain, again = Tree(score), Tree(score)
    assert path(plain.search(AStarDecoding(), samples=2).trace)[0] < 2
    answer = again.search(AStarDecoding(), samples=2, reopen_delta=0.1)
    assert path(answer.trace)[0] == 3
    assert again.ledger.extra["reopened"] > 0
    few = Tree(lambda where: 0.3, siblings=2)
    few.search(AStarDecoding(), samples=4, reopen_delta=0.01)
    assert len(few.scored) == len(set(few.scored))  # what was said before is dropped


def test_astar_out_of_budget_ends_greedily():
    tree = Tree(trap, depth=9)
    answer = tree.search(AStarDecoding(), samples=2, expansions=2)
    assert tree.ledger.extra["budget_exhausted"] == 1
    assert tree.temperatures[-1] == 0.0
    assert answer.trace.finished
    assert Tree(trap).search(AStarDecoding(), samples=2, tokens=3).trace.finished


def test_astar_batched_draws_for_several_states_at_once():
    tree = Tree(trap)
    tree.search(AStarDecoding(), samples=3, width=2)
    assert max(len(set(parents)) for parents in tree.drawn) == 2
    narrow = Tree(trap)
    narrow.search(AStarDecoding(), samples=3, frontier=1)
    assert narrow.ledger.extra["back_jump_rate"] == 0


def test_a_goal_is_popped_alone():
    root = Trace(Problem("p", "", (1,), 9))
    better, goal = (
        Node(Trace(root.problem, root, (place,), "", (0.0,), end), r, 0.0)
        for place, (end, r) in enumerate(((None, 0.9), ("eos", 0.8)))
    )
    frontier = Frontier(0.0, None)
    for node in (goal, better):
        frontier.push(node)
    assert frontier.pop(2) == [better]
    assert frontier.pop(2) == [goal]


def test_beam_draws_all_its_rows_at_every_depth():
    tree = Tree(lambda where: 1 / (2 + sum(where)))
    answer = tree.search(BeamSearch(), samples=8, beams=2)
    assert [len(parents) for parents in tree.drawn] == [8] * 4
    assert [len(set(parents)) for parents in tree.drawn] == [1, 2, 2, 2]
    assert path(answer.trace) == (0, 0, 0, 0)


def test_what_finished_waits_beside_the_beam():
    tree = Tree(lambda where: 0.8 if where[-1] == 0 else 0.4, ends=lambda where: where == (0,))
    answer = tree.search(BeamSearch(), samples=4, beams=2)
    assert path(answer.trace) == (0,)
    assert len(answer.pool) > 1
    assert all((0,) not in parents for parents in tree.drawn)
    assert [len(set(parents)) for parents in tree.drawn] == [1, 1, 2, 2]  # nor does it take a place of the beam


def test_a_beam_holds_no_step_twice():
    tree = Tree(lambda where: 1 / (2 + sum(where)), siblings=2)
    tree.search(BeamSearch(), samples=4, beams=2)
    assert [len(set(parents)) for parents in tree.drawn] == [1, 2, 2, 2]


def test_a_beam_out_of_steps_answers_with_what_finished():
    tree = Tree(lambda where: 0.4 if where == (1,) else 0.8, ends=lambda where: where == (1,))
    answer = tree.search(BeamSearch(), samples=2, beams=2, steps=2)
    assert path(answer.trace) == (1,)


def test_trees_of_dvts_do_not_mix():
    """The best of all first steps is in the first tree; the second goes on from its own."""
    tree = Tree(lambda where: 0.9 if where[0] < 2 else 0.2)
    answer = tree.search(DVTS(), samples=4, width=2)
    assert [set(parents) for parents in tree.drawn[:2]] == [{()}, {(0,), (2,)}]
    assert len(answer.pool) == 4


def test_mcts_comes_back_to_its_nodes():
    tree = Tree(lambda where: 0.6 if where[0] == 0 else 0.5, depth=3)
    answer = tree.search(MCTS(), samples=2, simulations=6)
    assert tree.ledger.extra["most_visits"] > 1
    assert {(0,), (1,)} <= {parents[0] for parents in tree.drawn}  # both were looked into
    assert answer.trace.finished


def test_mcts_leaves_a_branch_that_turns_bad():
    assert path(Tree(trap).search(MCTS(), samples=3, simulations=20).trace)[0] == 1


def test_the_sum_of_scores_decides_a_weighted_vote():
    """One confident chain against two that agree."""
    scores, answers = (0.55, 0.4, 0.3, 0.3), ("5", "7", "7", "none")

    def tree():
        return Tree(lambda where: scores[where[0]], text=lambda where: f"END ANS {answers[where[0]]}")

    assert path(tree().search(WeightedVoting(), samples=4).trace) == (1,)
    assert path(tree().search(WeightedVoting(), samples=4, min_max=True).trace) == (0,)  # 1 against 0.4
    assert path(tree().search(BestOfN(), samples=4).trace) == (0,)
