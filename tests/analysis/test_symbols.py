"""What symbols record is what was computed, and what cannot be recorded is refused."""

from __future__ import annotations

import json
import operator
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from analysis.roofline.explorer import BITS, Choices, dimensions, explorer_document, known_choices, symbolic
from analysis.roofline.operators import Precision, causal_pairs
from analysis.roofline.shape import ModelShape, load_preset, preset_names
from analysis.roofline.symbols import OPERATIONS, Graph
from suite.cost import DENSE, MethodCost, Situation
from suite.errors import InputError

MEANING: Mapping[str, Any] = {
    "add": operator.add, "sub": operator.sub, "mul": operator.mul, "div": operator.truediv, "pow": operator.pow,
    "floordiv": operator.floordiv, "mod": operator.mod, "min": min, "max": max, "lt": operator.lt, "le": operator.le,
    "gt": operator.gt, "ge": operator.ge, "eq": operator.eq, "where": lambda one, yes, no: yes if one else no,
}  # fmt: skip


def value(graph: Graph, node: int, inputs: Mapping[str, float]) -> Any:
    """A node, evaluated plainly."""
    operation, arguments = graph.nodes[node]
    if operation == "constant":
        return arguments[0]
    if operation == "input":
        return inputs[graph.inputs[int(arguments[0])]]
    return MEANING[operation](*(value(graph, int(argument), inputs) for argument in arguments))


def formula(x: Any, y: Any) -> Any:
    """Everything that a formula may do: with numbers, with numpy's numbers, and by numpy's functions."""
    kept = np.minimum(1.0, x / y) * (2 - np.float64(3.0) * y) - x // 2 + (-y) ** 2 + 0.9**x
    chosen = np.where(np.greater(x, 5), kept, 7.0)[()] + 3.0 * (x <= y) + np.maximum(x, y) % 4
    return chosen + causal_pairs(x, y) + causal_pairs(x, y, 6) + (x < 1) - (y >= 2) + np.less_equal(x, y) + 0 * x


@given(st.integers(1, 50), st.integers(1, 50))
def test_a_recorded_formula_gives_what_numbers_give(x: int, y: int) -> None:
    graph = Graph()
    node = graph.node(formula(graph.input("x"), graph.input("y")))
    assert value(graph, node, {"x": x, "y": y}) == pytest.approx(float(formula(x, y)), rel=1e-12)


def test_every_operation_has_a_meaning() -> None:
    assert set(MEANING) == set(OPERATIONS) - {"constant", "input"}


def test_equal_nodes_are_one_and_plain_results_none() -> None:
    graph = Graph()
    x = graph.input("x")
    assert x * 2 is x * 2.0
    assert x + 0 is x
    assert 1 * x is x
    assert (0 * x, 0 // x, x % 1) == (0.0, 0.0, 0.0)
    assert [operation for operation, _ in graph.nodes] == ["input", "constant", "mul"]


def test_a_branch_on_a_comparison_is_refused_unless_something_was_assumed() -> None:
    graph = Graph()
    x = graph.input("x")
    with pytest.raises(TypeError, match="branches on 'gt'"):
        max(1, x)
    graph.assume(x > 1, True)
    assert max(1, x) is x
    graph.assume(x == 1, False)
    assert not x == 1  # noqa: SIM201
    assert x  # a count may be something
    with pytest.raises(TypeError):
        float(x)


@pytest.mark.parametrize("name", preset_names())
def test_a_shape_of_symbols_has_the_shape_s_numbers(name: str) -> None:
    shape, graph = load_preset(name), Graph()
    traced = symbolic(shape, graph)
    inputs = {f"model.{name}": number for name, number in dimensions(shape).items()}

    def number(symbol: Any) -> Any:
        return value(graph, graph.node(symbol), inputs)

    for field in fields(ModelShape):
        one, other = getattr(shape, field.name), getattr(traced, field.name)
        if field.name in ("experts", "latent") and one is not None:
            assert {key: number(symbol) for key, symbol in vars(other).items()} == vars(one)
        elif field.name != "windows":
            assert one is other or number(other) == one
    spans = [(window and number(window), number(count)) for window, count in traced.layers_by_window().items()]
    assert spans == list(shape.layers_by_window().items())
    assert number(traced.dense_layers) == shape.dense_layers
    assert traced.kv_width is not None
    assert number(traced.kv_bytes_per_token(Precision())) == shape.kv_bytes_per_token(Precision())


def test_a_method_that_branches_on_the_length_is_refused_in_a_sentence() -> None:
    branching = Choices({"tiny": ModelShape(2, 8, 8, 2, 1, 4, 16)}, {"mine": _branching}, {})
    with pytest.raises(InputError, match=r"method 'mine' cannot be traced: .* branches on 'gt'"):
        explorer_document(branching, {})


def _branching(at: Situation) -> MethodCost:
    return DENSE if at.tokens > 64 else MethodCost(kept=0.5)


def test_the_document_is_small_and_names_what_is_known() -> None:
    document = explorer_document(known_choices(), {"tokens": 1000})
    assert len(json.dumps(document, separators=(",", ":"), allow_nan=False)) < 500_000
    assert set(document["models"]) == set(preset_names())
    assert document["selected"]["tokens"] == 1000
    assert document["selected"].keys() >= {*BITS, "model", "hardware", "method", "batch"}
    assert len(document["programs"]) < 2 * len(document["models"])  # models share them
