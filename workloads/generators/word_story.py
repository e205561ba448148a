"""A word problem while it is made: every sentence told, and every sum worked out beside it."""

from __future__ import annotations

import operator
import random
from collections.abc import Callable

from workloads.generators.world import lexicon

OPERATIONS: dict[str, Callable[[int, int], int]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "/": operator.floordiv,
}
GOODS = (
    ("apples", "in the cellar"),
    ("stamps", "in an album"),
    ("marbles", "in a jar"),
    ("candles", "on a shelf"),
    ("pencils", "in a drawer"),
    ("tulips", "in the greenhouse"),
    ("postcards", "in a shoe box"),
    ("buttons", "in a tin"),
    ("bricks", "behind the shed"),
    ("cookies", "on a tray"),
)


class Story:
    """One problem while it is told: its sentences, its sums, and who and what it is about."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.name, self.friend, self.other = rng.sample(lexicon("en")["slots"]["first"], 3)
        self.things, self.place = rng.choice(GOODS)
        self.told: list[str] = []
        self.sums: list[str] = []

    def tell(self, *ways: str) -> None:
        """One more sentence, said in one of these ways."""
        self.told.append(self.rng.choice(ways))

    def work(self, said: str, left: int, sign: str, right: int) -> int:
        """One more sum, put where `said` has its `{}`; its value."""
        value = OPERATIONS[sign](left, right)
        self.sums.append(said.format(f"{left} {sign} {right} = <<{left}{sign}{right}={value}>>{value}"))
        return value

    def share_out(self, total: int) -> int:
        """A number of equal shares that `total` can be divided into; 1 where there is none."""
        return self.rng.choice([n for n in range(2, 10) if total % n == 0] or [1])
