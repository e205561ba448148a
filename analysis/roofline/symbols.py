"""Symbols that record what is computed with them: a function of numbers, called with symbols, leaves its formula.

The analytic model is plain arithmetic on numbers or arrays. Called with symbols it writes every operation into a
`Graph`, whose nodes a page can evaluate for any numbers: one model, no second copy in another language.
A symbol is true, as a count that may be something. Of a comparison the graph must have been told how it goes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

UFUNCS = {
    np.add: "add",
    np.subtract: "sub",
    np.multiply: "mul",
    np.divide: "div",
    np.power: "pow",
    np.minimum: "min",
    np.maximum: "max",
    np.less: "lt",
    np.less_equal: "le",
    np.greater: "gt",
    np.greater_equal: "ge",
}
OPERATIONS = ("constant", "input", *UFUNCS.values(), "eq", "floordiv", "mod", "where")
"""What a node can do; whoever evaluates a graph knows these."""
CONDITIONS = ("lt", "le", "gt", "ge", "eq")
NEUTRAL: dict[str, tuple[float | None, float | None]] = {
    "add": (0, 0), "sub": (None, 0), "mul": (1, 1), "div": (None, 1), "floordiv": (None, 1)
}  # fmt: skip
"""The left and the right operand that leave the other as it is."""
ABSORBING = {"mul": 2, "div": 1, "floordiv": 1}
"""So many of the first operands make the result 0 when they are."""


class Graph:
    """Operations on inputs and constants, each once: `nodes[i]` is (operation, arguments), which come before i.

    The argument of an input is its place in `inputs`, that of a constant its value, all others are nodes.
    """

    def __init__(self) -> None:
        self.nodes: list[tuple[str, tuple[float, ...]]] = []
        self.inputs: list[str] = []
        self._symbols: dict[tuple[str, tuple[float, ...]], Symbol] = {}
        self._known: dict[Symbol, bool] = {}

    def input(self, name: str) -> Any:
        """The symbol of a number that is given by this name."""
        if name not in self.inputs:
            self.inputs.append(name)
        return self._node("input", self.inputs.index(name))

    def assume(self, condition: Any, truth: bool) -> None:
        """From here on an `if` that asks for this symbol goes this way."""
        self._known[condition] = truth

    def truth(self, symbol: Symbol) -> bool:
        """Which way an `if` goes; `TypeError` for a comparison that nothing was assumed of."""
        operation = self.nodes[symbol.node][0]
        if symbol not in self._known and operation in CONDITIONS:
            raise TypeError(f"a traced formula branches on {operation!r} of symbols; write it as arithmetic")
        return self._known.get(symbol, True)

    def node(self, value: Any) -> int:
        """The node of a symbol or of a number."""
        if isinstance(value, Symbol):
            return value.node
        number = float(value)
        return self._node("constant", int(number) if number.is_integer() else number).node

    def apply(self, operation: str, *values: Any) -> Any:
        """The symbol of an operation; a number or an operand where that is plain."""
        if not all(isinstance(value, Symbol) for value in values):
            if operation in ABSORBING and any(_is(value, 0) for value in values[: ABSORBING[operation]]):
                return 0.0
            if operation == "mod" and _is(values[1], 1):  # of whole numbers, which are all that is divided so
                return 0.0
            for place, neutral in enumerate(NEUTRAL.get(operation, ())):
                if neutral is not None and _is(values[place], neutral):
                    return values[1 - place]
        return self._node(operation, *map(self.node, values))

    def _node(self, operation: str, *arguments: float) -> Symbol:
        key = (operation, arguments)
        if key not in self._symbols:
            self._symbols[key] = Symbol(self, len(self.nodes))
            self.nodes.append(key)
        return self._symbols[key]


def _is(value: Any, number: float) -> bool:
    return not isinstance(value, Symbol) and bool(value == number)


def _operator(operation: str) -> Callable[[Symbol, Any], Any]:
    return lambda self, other: self.graph.apply(operation, self, other)


def _reflected(operation: str) -> Callable[[Symbol, Any], Any]:
    return lambda self, other: self.graph.apply(operation, other, self)


class Symbol:
    """A number that is not known yet: one node of a graph. Equal nodes are the same object."""

    __slots__ = ("graph", "node")

    def __init__(self, graph: Graph, node: int) -> None:
        self.graph, self.node = graph, node

    __add__, __radd__ = _operator("add"), _reflected("add")
    __sub__, __rsub__ = _operator("sub"), _reflected("sub")
    __mul__, __rmul__ = _operator("mul"), _reflected("mul")
    __truediv__, __rtruediv__ = _operator("div"), _reflected("div")
    __floordiv__, __rfloordiv__ = _operator("floordiv"), _reflected("floordiv")
    __mod__, __rmod__ = _operator("mod"), _reflected("mod")
    __pow__, __rpow__ = _operator("pow"), _reflected("pow")
    __lt__, __le__, __gt__, __ge__ = _operator("lt"), _operator("le"), _operator("gt"), _operator("ge")
    __eq__ = _operator("eq")

    def __hash__(self) -> int:
        return hash(self.node)

    def __neg__(self) -> Any:
        return self.graph.apply("sub", 0.0, self)

    def __bool__(self) -> bool:
        return self.graph.truth(self)

    def __getitem__(self, key: tuple[()]) -> Symbol:
        """`np.where(...)[()]` makes a number of an array without dimensions."""
        return self

    def __array_ufunc__(self, ufunc: Any, method: str, *values: Any, **options: Any) -> Any:
        return self.graph.apply(UFUNCS[ufunc], *values)

    def __array_function__(self, function: Any, types: Any, values: Any, options: Any) -> Any:
        if function is not np.where:
            return NotImplemented
        return self.graph.apply("where", *values)
