"""Problems in AIME's schema, whose answers are whole numbers from 0 to 999, each counted or computed exactly."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from fractions import Fraction
from itertools import product

from workloads.generators.math_problems import Solved, fraction

LARGEST = 999


def contest_problem(rng: random.Random) -> dict[str, str]:
    """A record with `problem`, `solution` and `answer`."""
    made = rng.choice(PLOTS)(rng)
    return {"problem": made.problem, "solution": made.solution, "answer": made.answer}


def _power(rng: random.Random) -> Solved:
    base, exponent = rng.choice([n for n in range(3, 60) if n % 10]), rng.randint(30, 400)
    steps, value, done = [f"In binary the exponent is ${exponent:b}$, read from the left."], 1, 0
    for bit in f"{exponent:b}":
        done, value = 2 * done + int(bit), value * value * base ** int(bit) % 1000
        steps.append(rf"${base}^{{{done}}} \equiv {value} \pmod{{1000}}$.")
    return Solved(f"Find the remainder when ${base}^{{{exponent}}}$ is divided by $1000$.", steps, str(value))


def _lattice(rng: random.Random) -> Solved:
    """Points with whole coordinates in a disc, column by column."""
    square = rng.randint(20, 300)
    steps, total = [], 0
    for x in range(math.isqrt(square) + 1):
        column = 2 * math.isqrt(square - x * x) + 1
        total += column * (1 if x == 0 else 2)
        steps.append(f"$|x| = {x}$ allows ${column}$ values of $y$; so far ${total}$ pairs.")
    return Solved(
        rf"Find the number of ordered pairs $(x, y)$ of integers such that $x^2 + y^2 \le {square}$.", steps, str(total)
    )


def _multiples(rng: random.Random) -> Solved:
    """Inclusion and exclusion over two divisors, without the multiples of a third."""
    limit, (a, b, c) = rng.randint(300, 1500), rng.sample((2, 3, 5, 7, 11), 3)
    one, two = limit // a - limit // (a * c), limit // b - limit // (b * c)
    both = limit // (a * b) - limit // (a * b * c)
    return Solved(
        f"Find the number of positive integers up to ${limit}$ that are divisible by ${a}$ or by ${b}$, "
        f"but not by ${c}$.",
        [
            f"Divisible by ${a}$ and not by ${c}$: ${limit // a} - {limit // (a * c)} = {one}$.",
            f"Divisible by ${b}$ and not by ${c}$: ${limit // b} - {limit // (b * c)} = {two}$.",
            f"By both and not by ${c}$: ${limit // (a * b)} - {limit // (a * b * c)} = {both}$.",
            f"Together ${one} + {two} - {both} = {one + two - both}$.",
        ],
        str(one + two - both),
    )


def _dice(rng: random.Random) -> Solved:
    """A probability m/n in lowest terms, of which AIME asks m + n."""
    faces, least = rng.choice((6, 8, 10)), rng.randint(5, 14)
    rolls = list(product(range(1, faces + 1), repeat=2))
    hits = sum(x + y >= least for x, y in rolls)
    chance = Fraction(hits, len(rolls))
    answer = chance.numerator + chance.denominator
    return Solved(
        f"Two fair dice with the numbers $1$ to ${faces}$ are rolled. The probability that their sum is at least "
        rf"${least}$ is $\frac{{m}}{{n}}$, where $m$ and $n$ are relatively prime positive integers. Find $m + n$.",
        [
            f"There are ${len(rolls)}$ rolls, and ${hits}$ of them have such a sum.",
            f"In lowest terms the probability is ${fraction(chance)}$.",
            f"So $m + n = {chance.numerator} + {chance.denominator} = {answer}$.",
        ],
        str(answer),
    )


def _paths(rng: random.Random) -> Solved:
    """Lattice paths around a forbidden point, modulo 1000."""
    width, height = rng.randint(5, 12), rng.randint(5, 12)
    x, y = rng.randint(1, width - 1), rng.randint(1, height - 1)
    every, to, on = math.comb(width + height, width), math.comb(x + y, x), math.comb(width + height - x - y, width - x)
    answer = (every - to * on) % (LARGEST + 1)
    return Solved(
        f"A path goes from $(0,0)$ to $({width},{height})$ in unit steps to the right or up, and never through "
        f"$({x},{y})$. Find the remainder when the number of such paths is divided by $1000$.",
        [
            rf"Without the condition there are $\binom{{{width + height}}}{{{width}}} = {every}$ paths.",
            rf"Of them ${to} \cdot {on} = {to * on}$ go through $({x},{y})$.",
            rf"The remainder of ${every - to * on}$ is ${answer}$.",
        ],
        str(answer),
    )


PLOTS: tuple[Callable[[random.Random], Solved], ...] = (_power, _lattice, _multiples, _dice, _paths)
