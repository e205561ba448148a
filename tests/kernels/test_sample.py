"""Softmax statistics and sampling: costs by hand, the distribution itself, and the shortcuts the cards warn of."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from kernels import counting
from kernels.cost import Cost
from kernels.sample import reference, sample, statistics
from kernels.sample.cost import sample_cost, statistics_cost

INF = float("inf")
VOCABULARY = 12
LOGITS = torch.tensor([0.3, -1.2, 2.0, 0.9, -0.4, 1.6, -3.0, 0.1, 1.1, -0.8, 2.3, -2.1])
SETTINGS = [(1.0, 0, 1.0), (0.7, 0, 1.0), (1.0, 5, 1.0), (1.0, 0, 0.8), (1.5, 7, 0.6), (2.0, 0, 0.97)]


def uniforms(count: int) -> Tensor:
    """The middles of `count` equal parts of [0, 1)."""
    return (torch.arange(count) + 0.5) / count


def drawn(logits: Tensor, u: Tensor, temperature: float, top_k: int, top_p: float) -> Tensor:
    """One token of the same row for each uniform number."""
    return sample(logits.expand(len(u), -1), u, temperature=temperature, top_k=top_k, top_p=top_p)


def test_costs_by_hand() -> None:
    """3 rows of 10 bf16 logits; a top 4 of ids and logits, 4 bytes each."""
    assert statistics_cost(3, 10, 4, 2) == Cost(6 * 30, 60, 3 * (4 + 4 + 4 * 8))
    assert sample_cost(3, 10, 2) == Cost(4 * 30, 60 + 12, 12)
    assert sample_cost(3, 10, 2, logprobs=True) == Cost(4 * 30, 60 + 12, 24)


def test_dispatchers_record_their_cost() -> None:
    logits, u = torch.randn(3, 10), torch.rand(3)
    with counting.counting() as counter:
        statistics(logits, k=4)
        sample(logits, u, logprobs=torch.empty(3))
    assert counter.costs == {"statistics": statistics_cost(3, 10, 4, 4), "sample": sample_cost(3, 10, 4, logprobs=True)}


@pytest.mark.parametrize("vocabulary", [1, 2, 100, 5000])
def test_entropy_of_uniform_logits_is_the_logarithm_of_their_number_in_nats(vocabulary: int) -> None:
    found = statistics(torch.full((2, vocabulary), -7.5))
    assert found.entropy.tolist() == pytest.approx([math.log(vocabulary)] * 2)
    assert found.logsumexp.tolist() == pytest.approx([math.log(vocabulary) - 7.5] * 2)


def test_entropy_is_that_of_the_whole_vocabulary() -> None:
    """Not of the k tokens that are listed."""
    expected = torch.distributions.Categorical(logits=LOGITS).entropy().item()
    for k in (1, 3, VOCABULARY):
        assert statistics(LOGITS[None], k=k).entropy.item() == pytest.approx(expected)


def test_certainty_has_no_entropy() -> None:
    logits = torch.full((2, 3000), -INF)
    logits[0, 2111], logits[1] = 5.0, torch.zeros(3000)
    logits[1, 2111] = 1e4
    found = statistics(logits)
    assert found.entropy.tolist() == [0, 0]
    assert found.argmax.tolist() == [2111, 2111]
    assert found.logsumexp.tolist() == [5, 1e4]


def test_forbidden_tokens_add_nothing() -> None:
    logits = torch.cat((LOGITS, torch.full((2000,), -INF), torch.full((9,), torch.nan)))
    with_holes, without = statistics(logits[None], k=20), statistics(LOGITS[None], k=VOCABULARY)
    torch.testing.assert_close(with_holes[:2], without[:2])
    assert with_holes.top[0].tolist() == [*without.top[0].tolist(), *range(12, 20)]
    assert with_holes.top_logits[0, VOCABULARY:].tolist() == [-INF] * 8


def test_an_empty_row_is_told_apart() -> None:
    found = statistics(torch.full((1, 50), -INF), k=2)
    assert (found.logsumexp.item(), found.entropy.item(), found.top.tolist()) == (-INF, 0, [[0, 1]])
    logprobs = torch.empty(1)
    assert sample(torch.full((1, 50), -INF), torch.tensor([0.9]), logprobs=logprobs).item() == 0
    assert logprobs.item() == 0


@pytest.mark.parametrize("size", [1e4, 1e30, 3e38])
@pytest.mark.parametrize("temperature", [1e-40, 1e-38, 1.0])
def test_nothing_overflows(size: float, temperature: float) -> None:
    logits = torch.tensor([[-size, size, size, 0.0]])
    found = statistics(logits, k=2)
    assert found.entropy.item() == pytest.approx(math.log(2))
    assert found.logsumexp.item() == pytest.approx(size + math.log(2))
    tokens = drawn(logits[0], uniforms(4), temperature, 0, 1.0)
    assert tokens.tolist() == [1, 1, 2, 2]


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_ties_go_to_the_lower_id(rows: int, temperature: float) -> None:
    """Far apart, so that they are found in different vectors, blocks and parts of threads."""
    logits = torch.zeros(rows, 9000)
    logits[:, [17, 1500, 8999]] = 3.0
    assert statistics(logits, k=5).top.tolist() == [[17, 1500, 8999, 0, 1]] * rows
    tokens = sample(logits, torch.full((rows,), 0.99), temperature=temperature, top_k=1)
    assert tokens.tolist() == [17] * rows
    assert sample(logits, torch.full((rows,), 0.99), temperature=temperature, top_p=1e-5).tolist() == [17] * rows


@pytest.mark.parametrize("token", [0, 15, 1023, 1024, 2047, 2999])
def test_temperature_0_takes_the_largest_wherever_it_is(token: int) -> None:
    logits = torch.randn(2, 3000)
    logits[:, token] = 9.0
    assert sample(logits, torch.tensor([0.0, 0.999]), temperature=0).tolist() == [token, token]
    assert sample(logits, torch.tensor([0.0, 0.999]), top_k=1).tolist() == [token, token]


def defined(temperature: float, top_k: int, top_p: float) -> list[float]:
    """Probabilities of LOGITS by the definition, in plain Python."""
    ranking = sorted(range(VOCABULARY), key=lambda i: (-float(LOGITS[i]), i))[: top_k or VOCABULARY]
    weights = {i: math.exp(float(LOGITS[i]) / temperature) for i in ranking}
    total, mass, nucleus = sum(weights.values()), 0.0, []
    for i in ranking:
        if mass < top_p:
            nucleus.append(i)
        mass += weights[i] / total
    return [weights[i] / sum(weights[j] for j in nucleus) if i in nucleus else 0.0 for i in range(VOCABULARY)]


@pytest.mark.parametrize("setting", SETTINGS, ids=str)
def test_the_reference_follows_the_definition(setting: tuple[float, int, float]) -> None:
    torch.testing.assert_close(reference.restrict(LOGITS, *setting).tolist(), defined(*setting))


@pytest.mark.parametrize("setting", SETTINGS, ids=str)
def test_tokens_are_the_inverse_cdf_of_the_restricted_distribution(setting: tuple[float, int, float]) -> None:
    probabilities = reference.restrict(LOGITS, *setting)
    u = uniforms(10007)
    edges = probabilities.cumsum(0)
    clear = (u[:, None] - edges).abs().amin(dim=1) > 1e-6
    expected = (edges <= u[:, None]).sum(dim=1)
    assert clear.sum() > 10000
    assert torch.equal(drawn(LOGITS, u, *setting)[clear], expected[clear].int())


@pytest.mark.parametrize("setting", SETTINGS, ids=str)
def test_frequencies_pass_a_chi_square_test(setting: tuple[float, int, float]) -> None:
    """11 degrees of freedom at most: beyond 35, one in 5000."""
    probabilities, count = reference.restrict(LOGITS, *setting), 40000
    u = torch.rand(count, generator=torch.Generator().manual_seed(5))
    found = drawn(LOGITS, u, *setting).bincount(minlength=VOCABULARY)
    possible = probabilities > 0
    assert found[~possible].sum() == 0
    wanted = count * probabilities[possible]
    assert ((found[possible] - wanted).square() / wanted).sum() < 35


@settings(max_examples=60)
@given(st.data())
def test_nucleus_is_the_smallest_that_has_the_mass(data: st.DataObject) -> None:
    """Every token of the nucleus, and no other, is drawn for some uniform number; one that is in at least."""
    values = data.draw(st.lists(st.integers(-3, 3), min_size=1, max_size=20))
    top_k, share = data.draw(st.integers(0, 21)), data.draw(st.sampled_from([1e-6, 0.137, 0.518, 0.911, 1.0]))
    logits = torch.tensor(values).float()
    kept = reference.restrict(logits, 1.0, top_k, share).nonzero()[:, 0].tolist()
    assert sorted(set(drawn(logits, uniforms(4000), 1.0, top_k, share).tolist())) == kept


def test_a_row_is_the_same_alone_and_in_a_batch() -> None:
    logits, u = 4 * torch.randn(6, 5000), torch.rand(6)
    temperature, top_k = torch.tensor([0.0, 1.0, 0.5, 2.0, 1.0, 1.0]), torch.tensor([0, 0, 9, 0, 300, 0]).int()
    top_p, logprobs, own = torch.tensor([1, 1, 0.9, 0.5, 1, 0.9]), torch.empty(6), torch.empty(1)
    together = statistics(logits, k=7)
    tokens = sample(logits, u, temperature=temperature, top_k=top_k, top_p=top_p, logprobs=logprobs)
    for row in range(6):
        one = slice(row, row + 1)
        alone = statistics(logits[one], k=7)
        assert all(torch.equal(part[one], single) for part, single in zip(together, alone, strict=True))
        setting = {"temperature": temperature[row].item(), "top_k": int(top_k[row]), "top_p": top_p[row].item()}
        assert torch.equal(sample(logits[one], u[one], **setting, logprobs=own), tokens[one])
        assert torch.equal(own, logprobs[one])


def test_results_do_not_depend_on_the_number_of_threads() -> None:
    logits, u = 4 * torch.randn(5, 30000), torch.rand(5)
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        results.append([*statistics(logits, k=9), sample(logits, u, top_p=0.9)])
    for other in results[1:]:
        assert all(torch.equal(part, first) for part, first in zip(other, results[0], strict=True))


def test_logprobs_are_those_of_the_restricted_distribution() -> None:
    """As speculative acceptance needs them; of a greedy token 0."""
    u = uniforms(50)
    for temperature, top_k, top_p in SETTINGS:
        logprobs = torch.empty(len(u))
        rows = LOGITS.expand(len(u), -1)
        tokens = sample(rows, u, temperature=temperature, top_k=top_k, top_p=top_p, logprobs=logprobs)
        expected = reference.restrict(LOGITS, temperature, top_k, top_p).log().float()
        torch.testing.assert_close(logprobs, expected[tokens.long()], atol=1e-6, rtol=1e-6)
    sample(LOGITS[None], torch.tensor([0.5]), temperature=0, logprobs=logprobs[:1])
    assert logprobs[0] == 0


@pytest.mark.parametrize("u", [0.0, 1 - 2**-24, 1.0])
def test_the_ends_of_the_cdf_are_tokens_of_some_probability(u: float) -> None:
    logits = torch.full((1, 3000), -INF)
    logits[0, [5, 700, 2500]] = 1.0
    for top_k, top_p in ((0, 1.0), (3, 1.0), (0, 0.999), (3, 0.999)):
        token = sample(logits, torch.tensor([u]), top_k=top_k, top_p=top_p).item()
        assert token == (5 if u == 0 else 2500)


def test_results_go_where_they_are_wanted() -> None:
    logits, u, out = torch.randn(2, 9), torch.rand(2), torch.empty(2, dtype=torch.int32)
    assert sample(logits, u, out=out) is out
    assert torch.equal(out, sample(logits, u))
    wide = torch.empty(2, dtype=torch.int64)
    assert torch.equal(sample(logits, u, out=wide), out.long())


def test_other_dtypes_and_layouts_take_the_reference() -> None:
    logits, u = torch.randn(9, 2).T, torch.rand(2)
    assert torch.equal(sample(logits, u), sample(logits.contiguous(), u))
    assert statistics(logits.double(), k=2).entropy.dtype is torch.float64
    torch.testing.assert_close(statistics(logits, k=2), statistics(logits.contiguous(), k=2))


@pytest.mark.parametrize("k", [-1, 13])
def test_an_impossible_top_is_refused(k: int) -> None:
    with pytest.raises(ValueError, match=f"there is no top {k} of 12 logits"):
        statistics(LOGITS[None], k=k)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"temperature": -1.0}, "temperature -1.0 is out of range"),
        ({"top_k": -1}, "top_k -1 is out of range"),
        ({"top_p": 0.0}, "top_p 0.0 is out of range"),
        ({"top_p": 1.5}, "top_p 1.5 is out of range"),
        ({"temperature": torch.nan}, "temperature nan is out of range"),
        ({"top_p": torch.ones(2)}, r"top_p is \[2\]: give a number, or one for each of 1 rows"),
    ],
    ids=str,
)
def test_impossible_settings_are_refused(setting: dict[str, float | Tensor], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sample(LOGITS[None], torch.rand(1), **setting)  # type: ignore[arg-type]


@pytest.mark.parametrize(("rows", "vocabulary", "numbers"), [(1, 12, 2), (2, 0, 2)])
def test_shapes_that_do_not_fit_are_refused(rows: int, vocabulary: int, numbers: int) -> None:
    with pytest.raises(ValueError, match="do not fit: a uniform number for each row"):
        sample(torch.zeros(rows, vocabulary), torch.rand(numbers))


def test_statistics_need_a_logit() -> None:
    with pytest.raises(ValueError, match="no top 0 of 0 logits"):
        statistics(torch.zeros(2, 0), k=0)


def test_settings_of_rows_are_clamped() -> None:
    """Tensors are not looked into: that would wait for a GPU."""
    rows, u = LOGITS.expand(3, -1), torch.full((3,), 0.999)
    tokens = sample(rows, u, temperature=torch.tensor([-1.0, 1.0, 1.0]), top_k=torch.tensor([0, -4, 0]))
    assert tokens.tolist() == [10, *drawn(LOGITS, u[:2], 1.0, 0, 1.0).tolist()]
    nucleus = sample(rows, u, top_p=torch.tensor([0.0, -1.0, 7.0]))
    assert nucleus.tolist() == [10, 10, tokens[1].item()]
