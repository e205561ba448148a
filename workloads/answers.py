r"""What a text answers, and which answers are the same, by the kind of problem (card `_verifiers.md`, section 2).

An answer is the last `\boxed{...}` with balanced braces; else what follows "the final answer is" or "####"; else, in
"gsm8k" only, the last number. A reference is a text too, such as `\boxed{3}`, so both sides are read alike.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from functools import lru_cache
from typing import Final, Literal, NamedTuple

from workloads import symbolic

NO_ANSWER: Final = None
"""What a text that answers nothing answers: it is wrong and has no vote. "0" is an answer."""
STEP = "\n\n"
"""What separates the steps of a solution."""
NO_CLASS = -1

Extraction = Literal["flexible", "strict"]

_BRACES = re.compile(r"\\boxed\s*\{|\\.|[{}]", re.DOTALL)
_SAID = re.compile(r"(?:final answer is|####)[:\s]*([^\n]+)", re.IGNORECASE)
_SENTENCE_END = re.compile(r"\.(?:\s|$)")
_NUMBER = r"-?\$?(?:\d[\d,]*(?:\.\d+)?|\.\d+)"
_MARKED = re.compile(rf"####\s*({_NUMBER})")
_ANY = re.compile(rf"(?:(?<![\w)])-)?{_NUMBER.removeprefix('-?')}")
_LETTER = re.compile(r"(?:\(([A-D])\).*|([A-D])(?:[.:)].*)?)", re.DOTALL)
_CHOSEN = re.compile(r"(?i:answer)(?:\s+is|\s*:)+\s*\**\(?([A-D])\b")
_PLAIN = re.compile(r"-?\d+(?:\.\d+)?")
_TEXT = r"\\(?:text|mbox|textbf|mathrm|mathbf)\{([^{}]*)\}"
_UNIT = re.compile(rf"(?<=.)\s*{_TEXT}(?:\^\{{?\d\}}?)?$")
_REWRITES: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"\\(?:left|right)(?![A-Za-z])|(?<!\\)\\[!,;: ]|\\?\$|\\?%|\^\s*\{?\s*\\circ\s*\}?|°", ""),
        (r"\{,\}", ","),
        (r"\\[dt]frac", r"\\frac"),
        (r"\s+", " "),
    )
)
_COMPACT: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"(?<![A-Za-z]) | (?![A-Za-z])", ""),
        (r"\\frac(\w)(\w)", r"\\frac{\1}{\2}"),
        (r"\\frac(\w)\{", r"\\frac{\1}{"),
        (r"\\frac(\{[^{}]*\})(\w)", r"\\frac\1{\2}"),
        (r"\\sqrt(\w)", r"\\sqrt{\1}"),
        (r"^(-?)(\d+)/(\d+)$", r"\1\\frac{\2}{\3}"),
        (r"(?<![\d}])\.(?=\d)", "0."),
    )
)
_THOUSANDS = re.compile(r"-?\d{1,3}(?:,\d{3})+(?:\.\d+)?")
RELATIVE = Decimal("1e-4")
"""Tolerance between two numbers, one of which is written with a decimal point. The rest is exact."""
ABSOLUTE = Decimal("1e-6")


class Kind(NamedTuple):
    """How answers of one kind of problem are found, and compared once they are found."""

    extract: Callable[[str], str | None]
    equivalent: Callable[[str, str], bool]


def extract(kind: str, text: str) -> str | None:
    """What `text` answers, or `NO_ANSWER`. `KeyError` for a kind that is not in `KINDS`."""
    return KINDS[kind].extract(text)


def equivalent(kind: str, a: str | None, b: str | None) -> bool:
    """True if both extracted answers are the same; `NO_ANSWER` is the same as nothing, itself included."""
    return a is not None and b is not None and (a == b or KINDS[kind].equivalent(a, b))


def correct(kind: str, text: str, reference: str) -> bool:
    """True if `text` answers as `reference` does; both are whole texts."""
    return equivalent(kind, extract(kind, text), extract(kind, reference))


def classes(kind: str, answers: Sequence[str | None]) -> list[int]:
    """The class of each extracted answer, by the index of its first member, its representative; -1 for `NO_ANSWER`.

    Every answer is compared with representatives only, in order: equality with a tolerance is not transitive.
    """
    found: list[int] = []
    for index, answer in enumerate(answers):
        same = (one for one in dict.fromkeys(found) if one >= 0 and equivalent(kind, answers[one], answer))
        found.append(NO_CLASS if answer is None else next(same, index))
    return found


def boxed(text: str) -> str | None:
    r"""What stands in the last `\boxed{...}` whose braces are balanced; None without one, or if it is blank."""
    opened: list[int] = []
    last, found = 0, ""
    for mark in _BRACES.finditer(text):
        if mark[0] == "}":
            start = opened.pop() if opened else 0
            if start > last:
                last, found = start, text[start : mark.start()]
        elif mark[0][-1] == "{" and mark[0] != "\\{":
            opened.append(0 if mark[0] == "{" else mark.end())
    return found.strip() or None


def final_number(text: str, extraction: Extraction = "flexible") -> Decimal | None:
    """The number behind the first `####`, as in GSM8K's own code; else, if "flexible", the last number of the text.

    Dollar signs, commas and a full stop at the end do not count, and 18.00 is 18; the original compares strings.
    """
    marked = _MARKED.search(text)
    if marked is None and extraction == "strict":
        return None
    found = marked[1] if marked else next(reversed(_ANY.findall(text)), None)
    return None if found is None else Decimal(found.replace(",", "").replace("$", ""))


def normalise(latex: str) -> str:
    r"""The LaTeX of an answer without what does not count: spaces, signs of money and percent, degrees, units."""
    for pattern, replacement in _REWRITES:
        latex = pattern.sub(replacement, latex)
    latex = re.sub(_TEXT, r"\1", _UNIT.sub("", latex.strip().rstrip("."))).strip()
    for pattern, replacement in _COMPACT:
        latex = pattern.sub(replacement, latex)
    return latex.replace(",", "") if _THOUSANDS.fullmatch(latex) else latex


def _said(text: str) -> str | None:
    """What follows the last "final answer is" or "####", to the end of its sentence."""
    found = [match[1] for match in _SAID.finditer(text)]
    return (_SENTENCE_END.split(found[-1])[0].strip(" *") or None) if found else None


def _math(text: str) -> str | None:
    found = boxed(text) or _said(text)
    return None if found is None else normalise(found) or None


def _number(text: str) -> str | None:
    found = final_number(boxed(text) or "")
    if found is None and "####" not in text and (first := _ANY.search((_said(text) or "").rsplit("=")[-1])):
        found = final_number(first[0])
    found = final_number(text) if found is None else found
    return None if found is None else f"{found:f}"


def _same_number(a: str, b: str) -> bool:
    return abs(Decimal(a) - Decimal(b)) <= ABSOLUTE


def _aime(text: str) -> str | None:
    """A whole number from 0 to 999, without leading zeros."""
    found = re.fullmatch(r"(?:[^=]{1,2}=)?0*([0-9]{1,3})", _math(text) or "")
    return None if found is None else str(int(found[1]))


def _letter(text: str) -> str | None:
    r"""A, B, C or D from `\boxed{(B)}`, `\boxed{\text{B}}`, "the final answer is B" or the last "Answer: B"."""
    for found in (boxed(text), _said(text)):
        if found is not None:
            match = _LETTER.fullmatch(re.sub(_TEXT, r"\1", found).strip(" $*"))
            return (match[1] or match[2]) if match else None
    return next(reversed(_CHOSEN.findall(text)), None)


@lru_cache(maxsize=65536)
def _same_math(a: str, b: str) -> bool:
    """Normalised LaTeX: equal as text, as numbers, or as sympy has it. A hundredfold is another answer."""
    x, y = _plain(a), _plain(b)
    if x is not None and y is not None:
        exact = "." not in a + b
        return x == y if exact else abs(x - y) <= RELATIVE * max(abs(x), abs(y))
    return a == b or bool(symbolic.equal(a, b))


def _plain(latex: str) -> Decimal | None:
    """The value of a number that is written in digits."""
    return Decimal(latex) if _PLAIN.fullmatch(latex) else None


KINDS: Mapping[str, Kind] = {
    "gsm8k": Kind(_number, _same_number),
    "math": Kind(_math, _same_math),
    "aime": Kind(_aime, operator.eq),
    "letter": Kind(_letter, operator.eq),
}
