r"""Are two LaTeX answers the same mathematics? A small reader of LaTeX into sympy, and the process that runs it.

The reader knows numbers, fractions, roots, powers, pi, products with and without a sign, a few functions, tuples,
intervals, sets, matrices, equations and inequalities, and nothing else: `UnreadableError` for the rest. Text is never
evaluated as code. Run as a program it answers lines of JSON, `[a, b]` with `true`, `false` or `null` (unreadable), and
ends itself at a question that needs more processor time than its argument allows, in seconds. It must run without its
package.
Source: card `_verifiers.md`, section 2.
"""

from __future__ import annotations

import json
import re
import resource
import signal
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import sympy

TOLERANCE = 1e-4
"""Relative, where one of two numbers is written with a decimal point."""
MEMORY_BYTES = 4 << 30
MAX_DEPTH = 200
_WORD = re.compile(r"(?<![\\A-Za-z])(?<!\\begin\{)(?<!\\end\{)[A-Za-z]{4,}")
"""Not a product of variables."""

_TOKEN = re.compile(
    r"\\(?:begin|end)\{[A-Za-z]+\}|\d+\.\d+|\.\d+|\d+|\\\\|\\[A-Za-z]+|\\[{}|]|[A-Za-z]|[-+*/^_=<>(){}\[\]|,&!:]"
)
_SPACE = re.compile(r"(?:\s|\\[ ,;:!]|\\q?quad(?![A-Za-z])|\\(?:left|right|displaystyle)(?![A-Za-z])|~)+")
_OPEN = {"(": ")", "[": "]", "\\{": "\\}", "{": "}"}
_RELATIONS = {"=": "=", "<": "<", ">": ">", "\\le": "<=", "\\leq": "<=", "\\ge": ">=", "\\geq": ">=", "\\lt": "<",
              "\\gt": ">", "\\in": "in"}  # fmt: skip
_CONSTANTS: Mapping[str, Any] = {"\\pi": sympy.pi, "\\infty": sympy.oo, "i": sympy.I, "e": sympy.E}
_FUNCTIONS: Mapping[str, Callable[..., Any]] = {
    "\\sin": sympy.sin, "\\cos": sympy.cos, "\\tan": sympy.tan, "\\cot": sympy.cot, "\\sec": sympy.sec,
    "\\csc": sympy.csc, "\\arcsin": sympy.asin, "\\arccos": sympy.acos, "\\arctan": sympy.atan, "\\ln": sympy.log,
    "\\log": sympy.log, "\\exp": sympy.exp,
}  # fmt: skip
_GREEK = frozenset({"\\alpha", "\\beta", "\\gamma", "\\delta", "\\theta", "\\lambda", "\\mu", "\\phi", "\\omega"})
_TIMES = frozenset({"*", "\\cdot", "\\times"})
_OVER = frozenset({"/", "\\div"})
_FRACTIONS = frozenset({"\\frac", "\\dfrac", "\\tfrac", "\\cfrac"})
_MATRICES = {f"\\begin{{{name}}}": f"\\end{{{name}}}" for name in ("matrix", "pmatrix", "bmatrix", "Bmatrix")}


class UnreadableError(ValueError):
    """LaTeX that the reader does not know."""


@dataclass(frozen=True)
class Group:
    """Several values: `kind` is the pair of brackets ("()", "[)", ...), "set", "matrix", or a relation such as "=".

    Sets are compared without order; a list without brackets is a set.
    """

    kind: str
    items: tuple[Any, ...]


def read(text: str) -> Any:
    """The LaTeX as a sympy expression, or as a `Group` of them."""
    reader = _Reader(text)
    value = reader.listed()
    if reader.token is not None:
        raise UnreadableError(f"{reader.token} is out of place")
    return value


def equal(a: str, b: str) -> bool | None:
    """True if both are the same mathematics, None if one of them cannot be read."""
    try:
        return _same(read(a), read(b))
    except (
        UnreadableError,
        ArithmeticError,
        ValueError,
        TypeError,
        AttributeError,
        RecursionError,
        NotImplementedError,
    ):
        return None  # sympy itself raises many of these for what has no value


class _Reader:
    """Recursive descent over tokens; `token` is the next one, None at the end."""

    def __init__(self, text: str) -> None:
        self._tokens: list[str] = []
        self._place = self._depth = 0
        if word := _WORD.search(text):
            raise UnreadableError(f"{word[0]} is a word")
        position = _skip(text, 0)
        while position < len(text):
            found = _TOKEN.match(text, position)
            if found is None:
                raise UnreadableError(f"{text[position]} is not known")
            self._tokens.append(found[0])
            position = _skip(text, found.end())

    @property
    def token(self) -> str | None:
        return self._tokens[self._place] if self._place < len(self._tokens) else None

    def listed(self) -> Any:
        """One or more relations with commas between them."""
        items = [self._relation()]
        while self._take(","):
            items.append(self._relation())
        return items[0] if len(items) == 1 else Group("set", tuple(items))

    def _next(self) -> str:
        if (token := self.token) is None:
            raise UnreadableError("it ends too early")
        self._place += 1
        return token

    def _take(self, *wanted: str) -> bool:
        if self.token not in wanted:
            return False
        self._place += 1
        return True

    def _expect(self, *wanted: str) -> str:
        if (token := self._next()) not in wanted:
            raise UnreadableError(f"{token} stands where {wanted[0]} should")
        return token

    def _relation(self) -> Any:
        left = self._sum()
        if self.token not in _RELATIONS:
            return left
        kind, right = _RELATIONS[self._next()], self._sum()
        if kind == "in":  # "x in [0, 1]" says the interval
            return right
        if self.token in _RELATIONS:
            raise UnreadableError("a chain of relations")
        return Group(kind.replace(">", "<"), (right, left) if kind[0] == ">" else (left, right))

    def _sum(self) -> Any:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise UnreadableError("too deep")
        value = self._product()
        while self.token in ("+", "-"):
            value = value + self._product() if self._take("+") else value - self._negated()
        self._depth -= 1
        return value

    def _negated(self) -> Any:
        self._expect("-")
        return self._product()

    def _product(self) -> Any:
        if self._take("-"):
            return -self._product()
        self._take("+")
        value, mixed = self._power(), False
        while (token := self.token) is not None:
            if token in _TIMES:
                self._next()
                value = value * self._signed()
            elif token in _OVER:
                self._next()
                value = value / self._signed()
            elif token in ("+", "-", ",", "&", ":", "_", "|") or token in _RELATIONS or token in _CLOSERS:
                break
            else:
                part = self._power()
                mixed = not mixed and _mixed_number(value, token, part)
                value = value + part if mixed else value * part
        return value

    def _signed(self) -> Any:
        return -self._signed() if self._take("-") else self._power()

    def _power(self) -> Any:
        value = self._atom()
        while True:
            if self._take("^"):
                value = value ** self._argument()
            elif self._take("!"):
                value = sympy.factorial(value)
            else:
                return value

    def _argument(self) -> Any:
        """What a command or a power applies to: a group in braces, or one token, of a number its first digit."""
        if self.token == "{":
            return self._braced()
        if self._take("-"):
            return -self._argument()
        token = self._next()
        self._place -= 1
        if token.isdigit() and len(token) > 1:
            self._tokens[self._place : self._place + 1] = [token[0], token[1:]]
        return self._atom()

    def _braced(self) -> Any:
        self._expect("{")
        value = self._sum()
        self._expect("}")
        return value

    def _atom(self) -> Any:
        token = self._next()
        if token[0].isdigit() or token[0] == ".":
            return self._number(token)
        if token in _CONSTANTS:
            return _CONSTANTS[token]
        if token in _FRACTIONS:
            above = self._argument()
            return above / self._argument()
        if token == "\\sqrt":
            return self._root()
        if token in _FUNCTIONS:
            return self._function(token)
        if token in _OPEN:
            return self._bracketed(token)
        if token == "|":
            value = self._sum()
            self._expect("|")
            return sympy.Abs(value)
        if token in _MATRICES:
            return self._matrix(_MATRICES[token])
        if token.isalpha() or token in _GREEK:
            return self._symbol(token)
        raise UnreadableError(f"{token} is not known")

    def _number(self, digits: str) -> Any:
        if self._take("_"):  # to another base
            return sympy.Symbol(f"{digits}_{self._argument()}")
        return sympy.Integer(digits) if digits.isdigit() else sympy.Float(f"0{digits}", 30)

    def _symbol(self, name: str) -> Any:
        if self._take("_"):
            name = f"{name}_{self._argument()}"
        return sympy.Symbol(name.lstrip("\\"))

    def _root(self) -> Any:
        if not self._take("["):
            return sympy.sqrt(self._argument())
        degree = self._sum()
        self._expect("]")
        return sympy.root(self._argument(), degree)

    def _function(self, name: str) -> Any:
        base = (self._argument(),) if name == "\\log" and self._take("_") else ()
        power = self._argument() if self._take("^") else 1
        alone = self.token in _OPEN
        value = self._power()
        while not alone and (token := self.token) is not None and (token.isalnum() or token in _CONSTANTS):
            value = value * self._power()
        return _FUNCTIONS[name](value, *base) ** power

    def _bracketed(self, opening: str) -> Any:
        value = self.listed()
        closing = self._expect(*((")", "]") if opening in ("(", "[") else (_OPEN[opening],)))
        several = isinstance(value, Group) and value.kind == "set"
        if opening == "\\{":
            return value if several else Group("set", (value,))
        if several and opening != "{":
            return Group(opening + closing, value.items)
        if opening in _OPEN and _OPEN[opening] != closing:
            raise UnreadableError("brackets do not match")
        return value

    def _matrix(self, end: str) -> Any:
        rows = [[self._sum()]]
        while not self._take(end):
            if self._take("&"):
                rows[-1].append(self._sum())
            else:
                self._expect("\\\\")
                if self.token != end:
                    rows.append([self._sum()])
        return Group("matrix", tuple(Group("row", tuple(row)) for row in rows))


_CLOSERS = frozenset({")", "]", "}", "\\}", "\\\\", *_MATRICES.values()})


def _skip(text: str, position: int) -> int:
    found = _SPACE.match(text, position)
    return found.end() if found else position


def _mixed_number(value: Any, token: str, part: Any) -> bool:
    r"""3\frac{1}{2} is three and a half."""
    return token in _FRACTIONS and value.is_Integer and part.is_Rational and bool(0 < part < 1)


def _same(a: Any, b: Any) -> bool:
    x, y = _right_side(a), _right_side(b)
    if (x is not a or y is not b) and _same(x, y):
        return True
    if not isinstance(a, Group) or not isinstance(b, Group):
        return not isinstance(a, Group) and not isinstance(b, Group) and _same_value(a, b)
    if a.kind != b.kind or len(a.items) != len(b.items):
        return False
    if a.kind == "=":
        left, right = (one.items[0] - one.items[1] for one in (a, b))
        return _same_value(left, right) or _same_value(left, -right)
    if a.kind == "set":
        return _same_set(a.items, list(b.items))
    return all(_same(x, y) for x, y in zip(a.items, b.items, strict=True))


def _right_side(value: Any) -> Any:
    """Of `x = 5` the 5: that one writes the unknown's name and the other does not is no difference."""
    named = isinstance(value, Group) and value.kind == "=" and value.items[0].is_Symbol
    return value.items[1] if named else value


def _same_set(items: tuple[Any, ...], others: list[Any]) -> bool:
    for item in items:
        found = next((index for index, other in enumerate(others) if _same(item, other)), None)
        if found is None:
            return False
        others.pop(found)
    return True


def _same_value(a: Any, b: Any) -> bool:
    if a == b:
        return True
    if a.is_number and b.is_number and (a.has(sympy.Float) or b.has(sympy.Float)):
        x, y = complex(a.evalf(20)), complex(b.evalf(20))
        return abs(x - y) <= TOLERANCE * max(abs(x), abs(y))
    return bool(sympy.simplify(a - b) == 0)


def main(limit_s: float) -> None:
    """Serves until its input ends. A question over its time, or out of memory, ends the process: nobody need watch."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, whose end closes the pipe
    signal.signal(signal.SIGPROF, signal.SIG_DFL)  # ends the process, also in the middle of C code
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGPROF})
    print("ready", flush=True)
    for line in sys.stdin:
        signal.setitimer(signal.ITIMER_PROF, limit_s)
        answer = equal(*json.loads(line))
        signal.setitimer(signal.ITIMER_PROF, 0)
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main(float(sys.argv[1]))
