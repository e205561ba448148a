"""The toy traps of methods/squeezellm.md, section 7, and its edge cases."""

from __future__ import annotations

import pytest
import torch

from kernels.lut_gemv import pack, unpack
from suite.methods.weights.base import Site
from suite.methods.weights.calibration import Statistics
from suite.methods.weights.kmeans import _lloyd, _prefix, codebooks, nearest
from suite.methods.weights.linear import LutLinear
from suite.methods.weights.squeezellm import SqueezeLLM, SqueezeLLMConfig, most_sensitive, thresholds

DENSE_ONLY = {"sensitive": 0.0, "outliers": 0.0}


def matrix(outputs: int = 24, features: int = 257) -> tuple[torch.Tensor, torch.Tensor]:
    """Heavy-tailed weights, and Fisher information that knows nothing of their size."""
    generator = torch.Generator().manual_seed(3)
    weight = torch.randn(outputs, features, generator=generator) ** 3 / 10
    return weight, torch.rand(outputs, features, generator=generator) ** 8


def quantised(weight, fisher, parts=None, **options) -> LutLinear:
    method, config = SqueezeLLM(), SqueezeLLMConfig(**options)
    parts = parts or (len(weight),)
    method._thresholds = thresholds({"w": list(weight.split(parts))}, config.outliers)
    site = Site(parts, statistics=Statistics(fisher, torch.randn(4, weight.shape[1])))
    return method.quantize("w", weight, site, config)


def objective(weight, fisher, made) -> float:
    return float((fisher * (weight - made.dense()).square()).sum())


@pytest.mark.parametrize("bits", [3, 4])
def test_codebooks_mind_the_fisher_information(bits):
    weight, fisher = matrix()
    ours = quantised(weight, fisher, bits=bits, **DENSE_ONLY)
    for other in (torch.ones_like(fisher), weight.abs(), fisher[:, torch.randperm(257)]):
        theirs = quantised(weight, other, bits=bits, **DENSE_ONLY)
        assert objective(weight, fisher, ours) < 0.8 * objective(weight, fisher, theirs)
        assert not torch.equal(ours.packed, theirs.packed)


def test_a_step_of_lloyd_is_the_naive_one():
    weight, fisher = matrix(5, 90)
    values, order = weight.double().sort(dim=1)
    weights = fisher.double().gather(1, order)
    centroids = values[:, ::12].contiguous()
    moved = _lloyd(values, _prefix(weights), _prefix(weights * values), centroids)
    for row in range(5):
        codes = (values[row, :, None] - centroids[row]).abs().argmin(1)
        for k in range(centroids.shape[1]):
            mine = codes == k
            mean = (weights[row, mine] * values[row, mine]).sum() / weights[row, mine].sum()
            torch.testing.assert_close(moved[row, k], mean if mine.any() else centroids[row, k])


def test_codebooks_are_where_another_step_changes_little_and_begin_with_seed_0():
    weight, fisher = matrix()
    tables = codebooks(weight, fisher, 8)
    assert torch.equal(tables, codebooks(weight, fisher, 8))
    assert (tables.diff(dim=1) >= 0).all()

    def cost(entries):
        return (fisher * (weight - entries.gather(1, nearest(weight, entries).long())).square()).sum()

    even = torch.quantile(weight, torch.linspace(0.06, 0.94, 8), dim=1).T.contiguous()
    assert cost(tables) < 0.5 * cost(even)


def test_every_output_row_has_its_own_table():
    weight, fisher = matrix()
    for bits in (3, 4):
        tables = quantised(weight, fisher, bits=bits).tables
        assert tables.shape == (24, 2**bits)
        assert len(tables.unique(dim=0)) == 24


@pytest.mark.parametrize(("bits", "published"), [(3, 3.24), (4, 4.27)])
def test_average_bits_are_those_of_the_paper(bits, published):
    """LLaMA-7B's shapes, fewer rows of them: three quarters of the weights have 4096 inputs, the rest 11008."""
    stored = weights = 0
    for features, rows in ((4096, 157), (11008, 17)):
        entries = round(0.0045 * features) * rows
        tensors = {
            "packed": pack(torch.zeros(rows, features, dtype=torch.uint8), bits),
            "tables": torch.zeros(rows, 2**bits, dtype=torch.bfloat16),
            "starts": torch.zeros(rows + 1, dtype=torch.int32),
            "columns": torch.zeros(entries, dtype=torch.int32),
            "values": torch.zeros(entries, dtype=torch.bfloat16),
        }
        stored += LutLinear(features, tensors).weight_bytes()
        weights += rows * features
    assert 8 * stored / weights == pytest.approx(published, abs=0.01)


@pytest.mark.parametrize("bits", [3, 4])
@pytest.mark.parametrize("features", [512, 257])
def test_stored_bytes_are_the_formula_and_codes_come_back(bits, features):
    """b + 16 2^b / in + 48 s + row pointers, in bf16; codes that fill no block cost what pads them."""
    weight, fisher = matrix(64, features)
    made = quantised(weight.bfloat16(), fisher, bits=bits)
    count = len(made.values)
    share, padded = count / weight.numel(), {3: 16, 4: 4}[bits]
    words = -(-features // padded) * padded / features
    formula = bits * words + 16 * 2**bits / features + 48 * share + 32 * 65 / (64 * features)
    assert 8 * made.weight_bytes() / weight.numel() == pytest.approx(formula, rel=0.01)
    codes = unpack(made.packed, bits, features)
    expected = weight.bfloat16().float()
    rows = torch.repeat_interleave(torch.arange(64), made.starts.diff())
    expected[rows, made.columns.long()] = 0
    assert torch.equal(codes, nearest(expected, made.tables))


def test_extracted_weights_come_back_exactly_and_count_for_no_centroid():
    """The zero fix: a taken place has the code nearest to 0, and the sparse value is the rest."""
    weight, fisher = matrix()
    made = quantised(weight, fisher, bits=3, sensitive=0.01, outliers=0.02)
    taken = torch.zeros_like(weight, dtype=torch.bool)
    taken[torch.repeat_interleave(torch.arange(24), made.starts.diff()), made.columns.long()] = True
    assert 0.02 < float(taken.float().mean()) < 0.04
    torch.testing.assert_close(made.dense()[taken], weight[taken], atol=1e-7, rtol=1e-6)
    given = made.tables.gather(1, unpack(made.packed, 3, 257).long())
    nearest_to_zero = made.tables.abs().amin(1, keepdim=True).expand_as(given)
    torch.testing.assert_close(given.abs()[taken], nearest_to_zero[taken])
    alone = codebooks(weight, fisher.masked_fill(taken, 0), 8)
    torch.testing.assert_close(made.tables, alone)
    assert not torch.allclose(made.tables, codebooks(weight, fisher, 8))


def test_outliers_are_those_of_the_matrix_not_of_the_row():
    """A row of small weights has none; a threshold is symmetric, and of the original matrix."""
    weight, _ = matrix(64, 400)
    weight[7] *= 0.01
    fisher = torch.ones_like(weight)
    made = quantised(weight, fisher, sensitive=0.0, outliers=0.01)
    counts = made.starts.diff()
    assert counts[7] == 0
    assert int(counts.sum()) == pytest.approx(0.01 * weight.numel(), rel=0.05)
    (limit,) = thresholds({"w": [weight]}, 0.01)["w"]
    assert int((weight.abs() >= limit).sum()) == int(counts.sum())
    assert (weight >= limit).any()
    assert (weight <= -limit).any()


def test_one_factor_for_the_model_gives_each_original_matrix_its_own_threshold():
    """q, k and v are stored as one matrix here; k is ten times as large, and no more of it are outliers."""
    q, k, v = (matrix(40, 300)[0] for _ in range(3))
    limits = thresholds({"qkv": [q, 10 * k, v]}, 0.01)["qkv"]
    assert limits[1] == pytest.approx(10 * limits[0], rel=1e-4)
    made = quantised(torch.cat((q, 10 * k, v)), torch.ones(120, 300), (40, 40, 40), sensitive=0.0, outliers=0.01)
    shares = made.starts.diff().view(3, 40).sum(1)
    assert shares[0] == shares[1] == shares[2]


def test_sensitive_values_are_strictly_above_the_kth_of_their_matrix():
    fisher = torch.arange(1000.0).view(10, 100)
    assert int(most_sensitive(fisher, 0.01).sum()) == 9
    assert not most_sensitive(fisher, 0.0).any()
    assert not most_sensitive(torch.ones(10, 100), 0.01).any()


def test_the_sparse_part_has_the_size_of_its_entries():
    weight, fisher = matrix(64, 400)
    sizes = []
    for share in (0.005, 0.01, 0.02):
        made = quantised(weight, fisher, sensitive=0.0, outliers=share)
        assert len(made.values) == len(made.columns) == int(made.starts[-1])
        sizes.append(made.values.nbytes + made.columns.nbytes)
    assert sizes[0] * 1.8 < sizes[1]
    assert sizes[1] * 1.8 < sizes[2]
    without = quantised(weight, fisher, **DENSE_ONLY)
    assert without.tensors().keys() == {"packed", "tables"}
    assert without.matrix.outliers is None


def test_rows_of_few_values_or_no_weight_and_ties():
    few = torch.tensor([[1.0, 2.0] * 20, [0.0] * 40])
    made = quantised(few, torch.zeros_like(few), bits=3, **DENSE_ONLY)
    torch.testing.assert_close(made.dense(), few)
    assert nearest(torch.tensor([[0.5, 0.500001]]), torch.tensor([[0.0, 1.0]])).tolist() == [[0, 1]]


def test_a_cluster_without_weight_keeps_its_centroid():
    values, weights = torch.tensor([[0.0, 1.0, 10.0]]).double(), torch.tensor([[1.0, 1.0, 0.0]]).double()
    moved = _lloyd(values, _prefix(weights), _prefix(weights * values), torch.tensor([[0.5, 9.0]]).double())
    assert moved.tolist() == [[0.5, 9.0]]


def test_options_out_of_range_are_refused():
    for options in ({"bits": 5}, {"sensitive": 0.5}, {"outliers": -0.1}):
        with pytest.raises(ValueError, match=next(iter(options))):
            SqueezeLLMConfig(**options)
