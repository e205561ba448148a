"""Problems in MATH's schema: six subjects, each a chain of one to five exact operations, which is the level.

The solution has a step for every operation, with blank lines between them, and ends in the boxed answer.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from fractions import Fraction
from typing import NamedTuple

LEVELS = range(1, 6)
SQUARE_FREE = (2, 3, 5, 6, 7)
CROWDS = ("painters", "singers", "runners", "cooks", "pilots")


class Solved(NamedTuple):
    """A problem, what is found out step by step, and the answer, all with LaTeX."""

    problem: str
    steps: list[str]
    answer: str

    @property
    def solution(self) -> str:
        """As the data sets write it."""
        return "\n\n".join([*self.steps, rf"The final answer is $\boxed{{{self.answer}}}$."])


def math_problem(rng: random.Random) -> dict[str, str | int]:
    """A record of MATH's schema, without its `unique_id`."""
    subject = rng.choice(list(SUBJECTS))
    made = rng.choice(SUBJECTS[subject])(rng, rng.choice(LEVELS))
    return {
        "problem": made.problem,
        "solution": made.solution,
        "answer": made.answer,
        "subject": subject,
        "level": len(made.steps),
    }


def fraction(value: Fraction) -> str:
    """In LaTeX."""
    if value.denominator == 1:
        return str(value.numerator)
    return rf"{'-' if value < 0 else ''}\frac{{{abs(value.numerator)}}}{{{value.denominator}}}"


def root(square: int) -> str:
    """The square root in LaTeX, with squares taken out of it."""
    outside = next(n for n in range(math.isqrt(square), 0, -1) if square % (n * n) == 0)
    inside = square // (outside * outside)
    return str(outside) if inside == 1 else rf"{outside if outside > 1 else ''}\sqrt{{{inside}}}"


def _linear(rng: random.Random, level: int) -> Solved:
    """Sums and products around x in turn, undone from the outside."""
    value = Fraction(rng.choice([n for n in range(-12, 13) if n]), rng.choice((1, 1, 2, 3)))
    sides, product = [("x", value)], rng.random() < 0.5
    for _ in range(level):
        inner, value = sides[-1]
        number = rng.randint(2, 9)
        if not product:
            sign = rng.choice((1, -1))
            sides.append((f"{inner}{'+' if sign > 0 else '-'}{number}", value + sign * number))
        elif rng.random() < 0.5:
            sides.append((f"{number}x" if inner == "x" else f"{number}({inner})", value * number))
        else:
            sides.append((rf"\frac{{{inner}}}{{{number}}}", value / number))
        product = not product
    equations = [f"${left} = {fraction(right)}$" for left, right in reversed(sides)]
    return Solved(f"Solve for $x$: {equations[0]}.", [f"So {one}." for one in equations[1:]], fraction(sides[0][1]))


def _quadratic(rng: random.Random, level: int) -> Solved:
    """Always three steps: the square is completed, the root taken, and the shift undone."""
    shift, times, inside = rng.choice([n for n in range(-7, 8) if n]), rng.randint(1, 4), rng.choice(SQUARE_FREE)
    square = times * times * inside
    half, constant = -shift, shift * shift - square
    answer = f"{shift}+{root(square)}"
    return Solved(
        f"What is the larger solution of $x^2 {2 * half:+d}x {constant:+d} = 0$? Give it exactly.",
        [
            f"Completing the square, $(x {half:+d})^2 = {square}$.",
            f"For the larger solution $x {half:+d} = {root(square)}$.",
            f"So $x = {answer}$.",
        ],
        answer,
    )


def _remainder(rng: random.Random, level: int) -> Solved:
    modulus = rng.choice((7, 11, 13, 17, 19, 23))
    text = str(value := rng.randint(10, 99))
    steps: list[str] = []
    for _ in range(level):
        number, before = rng.randint(2, 30), value
        sign = rng.choice(("+", r"\cdot", "^"))
        if sign == "^":
            number = rng.randint(2, 3)
        value = {"+": value + number, r"\cdot": value * number, "^": value**number}[sign] % modulus
        text = f"({text}){sign}{number}" if steps else f"{text}{sign}{number}"
        steps.append(rf"${before}{sign}{number} \equiv {value} \pmod{{{modulus}}}$.")
    return Solved(f"What is the remainder when ${text}$ is divided by ${modulus}$?", steps, str(value))


def _committee(rng: random.Random, level: int) -> Solved:
    groups = [(name, rng.randint(3, 8)) for name in rng.sample(CROWDS, level)]
    wanted = [(name, n, rng.randint(1, n - 1)) for name, n in groups]
    steps, ways = [], 1
    for name, n, chosen in wanted:
        ways *= math.comb(n, chosen)
        steps.append(
            rf"The {name} can be chosen in $\binom{{{n}}}{{{chosen}}} = {math.comb(n, chosen)}$ ways: ${ways}$."
        )
    listed = " and ".join(f"{chosen} of {n} {name}" for name, n, chosen in wanted)
    return Solved(f"A committee is made of {listed}. In how many ways can it be chosen?", steps, str(ways))


def _draws(rng: random.Random, level: int) -> Solved:
    red, blue = rng.randint(level + 1, 9), rng.randint(2, 9)
    steps, chance = [], Fraction(1)
    for drawn in range(level):
        share = Fraction(red - drawn, red + blue - drawn)
        chance *= share
        steps.append(f"Draw {drawn + 1} is red with probability ${fraction(share)}$, all so far ${fraction(chance)}$.")
    balls = "One ball is" if level == 1 else f"{level} balls are"
    asked = f"{balls} drawn at random, without putting any back. What is the probability that only red ones are drawn?"
    return Solved(f"A bag holds {red} red and {blue} blue balls. {asked}", steps, fraction(chance))


def _recursion(rng: random.Random, level: int) -> Solved:
    factor, summand, value = rng.choice((-3, -2, 2, 3)), rng.randint(-9, 9) or 5, rng.randint(1, 9)
    rule = f"$a_1 = {value}$ and $a_{{n+1}} = {factor}a_n {summand:+d}$"
    steps = [
        rf"$a_{place} = {factor}\cdot({value}) {summand:+d} = {(value := factor * value + summand)}$."
        for place in range(2, level + 2)
    ]
    return Solved(f"A sequence has {rule}. What is $a_{level + 1}$?", steps, str(value))


def _moves(rng: random.Random, level: int) -> Solved:
    """A point is moved about; where it comes to, or in the last step how far from the origin that is."""
    x, y = rng.sample(range(1, 9), 2)
    start, told, steps = f"({x},{y})", [], []
    distance = level > 1 and rng.random() < 0.5
    for _ in range(level - distance):
        right, up = rng.choice((-5, -3, 2, 4)), rng.choice((-4, -2, 3, 5))
        words, (x, y) = rng.choice((
            ("reflected in the $x$-axis", (x, -y)),
            ("reflected in the line $y = x$", (y, x)),
            (r"rotated by $90^\circ$ counterclockwise about the origin", (-y, x)),
            (f"moved by the vector $({right},{up})$", (x + right, y + up)),
        ))  # fmt: skip
        told.append(words)
        steps.append(f"{words[0].upper()}{words[1:]}, it is at $({x},{y})$.")
    path = ", then ".join(told)
    if not distance or (x, y) == (0, 0):
        return Solved(f"The point ${start}$ is {path}. At which point is it then?", steps, f"({x},{y})")
    far = root(x * x + y * y)
    steps.append(rf"Its distance is $\sqrt{{({x})^2+({y})^2}} = {far}$.")
    return Solved(f"The point ${start}$ is {path}. How far is it from the origin then? Give it exactly.", steps, far)


SUBJECTS: dict[str, tuple[Callable[[random.Random, int], Solved], ...]] = {
    "Algebra": (_linear, _quadratic),
    "Number Theory": (_remainder,),
    "Counting & Probability": (_committee, _draws),
    "Intermediate Algebra": (_recursion,),
    "Geometry": (_moves,),
}
