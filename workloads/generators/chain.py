"""The chain tasks of the reasoning lab: problems, the traces models are trained on, and the exact oracle of any trace.

A chain applies operations one after the other to a state: a number mod 97 (prime, so that errors do not cancel by
themselves), or six letters. A trace restates the problem, then works line by line (card `_verifiers.md`, section 5):

    prompt   5 L0 *7 L1 +1 |
    trace    5 L0 *7 NL                the state, and the operation that comes next
             35 L0 35 L1 +1 NL         what came out, and again the state and the operation that comes next
             36 L1 STOP NL
             CAND 36 NL                a candidate; thoughts of several rounds compare it with the one before:
             END ANS 36                "CAND 36 36 SAME NL", "CAND 36 35 DIFF NL WAIT 5 L0 *7 NL ..."

The first word of a line is the only one that takes work.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile

import numpy as np

from workloads.lab import SPECIALS
from workloads.schema import DataError

MODULUS = 97
LETTERS = tuple("abcdefghij")
PLACES = 6  # letters of a string state
EASY = ("+1", "+2", "-1")
MULTIPLIERS = (2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37, 41, 43, 47, 53, 59, 61, 67, 71, 73, 79, 83, 89)
HARD = tuple(f"*{k}" for k in MULTIPLIERS)
REORDERINGS = {
    "left": (1, 2, 3, 4, 5, 0),
    "right": (5, 0, 1, 2, 3, 4),
    "reverse": (5, 4, 3, 2, 1, 0),
    "swap12": (1, 0, 2, 3, 4, 5),
    "swap34": (0, 1, 3, 2, 4, 5),
    "swap56": (0, 1, 2, 3, 5, 4),
}
"""What each operation on strings puts at each place: the letter at that place before."""
LABELS = tuple(f"L{i}" for i in range(12))
BAR, NL, CAND, WAIT, END, ANS, STOP, SAME, DIFF = "|", "NL", "CAND", "WAIT", "END", "ANS", "STOP", "SAME", "DIFF"
RIGHT, WRONG = "<right>", "<wrong>"  # never read: what a reward model predicts where a step ends
EOS = SPECIALS[2]

_VOCABULARY = (
    *SPECIALS, BAR, NL, CAND, WAIT, END, ANS, STOP, SAME, DIFF, RIGHT, WRONG, *map(str, range(MODULUS)), *EASY, *HARD,
    *LABELS, *LETTERS, *REORDERINGS,
)  # fmt: skip

Words = tuple[str, ...]
State = Words
"""One number, or PLACES letters."""


def vocabulary() -> list[str]:
    """All tokens of all chain tasks; a token's place in the list is its id."""
    return list(_VOCABULARY)


@dataclass(frozen=True)
class Problem:
    """A state and the operations to apply to it, one after the other."""

    start: State
    operations: Words

    @property
    def prompt(self) -> str:
        """The question in words."""
        steps = (word for pair in zip(LABELS, self.operations, strict=False) for word in pair)
        return " ".join((*self.start, *steps, BAR))

    @property
    def answer(self) -> State:
        """The state after all operations."""
        state = self.start
        for operation in self.operations:
            state = apply(operation, state)
        return state

    def opening(self) -> Words:
        """The first line of a derivation."""
        return *self.start, *self.announced(0), NL

    def line(self, step: int, state: State) -> Words:
        """The line of operation `step` that came to `state`."""
        following = self.announced(step + 1)
        return *state, LABELS[step], *(state if following[0] != STOP else ()), *following, NL

    def announced(self, step: int) -> Words:
        """How a line names operation `step`, or that there is none left."""
        return (LABELS[step], self.operations[step]) if step < len(self.operations) else (STOP,)


@dataclass(frozen=True)
class Family:
    """Where problems come from: how many operations (both ends included), of which kinds.

    With `multipliers` 0 the states are strings. Else an operation is hard, a product by one of the first `multipliers`,
    with probability `hard`.
    """

    fewest: int
    most: int
    multipliers: int
    hard: float = 0.5

    def draw(self, rng: np.random.Generator) -> Problem:
        """A problem."""
        count = int(rng.integers(self.fewest, self.most, endpoint=True))
        if not self.multipliers:
            letters = tuple(LETTERS[i] for i in rng.permutation(len(LETTERS))[:PLACES])
            return Problem(letters, tuple(rng.choice(list(REORDERINGS), count).tolist()))
        kinds = (HARD[: self.multipliers] if rng.random() < self.hard else EASY for _ in range(count))
        return Problem(number(rng), tuple(kind[int(rng.integers(len(kind)))] for kind in kinds))


@dataclass(frozen=True)
class Thought:
    """How training traces think. One round makes a plain chain.

    Each hard step slips to a random number with probability `slip`, unnoticed. From the second round on the thought
    ends with probability `stop_same` when the last two candidates agree, with `stop_different` when they do not, and
    at the latest after `rounds`.
    """

    rounds: int = 1
    slip: float = 0.0
    stop_same: float = 1.0
    stop_different: float = 0.0


def number(rng: np.random.Generator) -> State:
    """A uniform number."""
    return (str(rng.integers(MODULUS)),)


def is_hard(operation: str) -> bool:
    """Products are; sums and reorderings are easy."""
    return operation in HARD


def apply(operation: str, state: State) -> State:
    """The state after one operation; `DataError` where it does not fit the state."""
    if operation in REORDERINGS and len(state) == PLACES:
        return tuple(state[i] for i in REORDERINGS[operation])
    if operation in (*EASY, *HARD) and len(state) == 1:
        value = int(operation[1:]) * (-1 if operation[0] == "-" else 1)
        return (str((int(state[0]) * value if is_hard(operation) else int(state[0]) + value) % MODULUS),)
    raise DataError(f"operation {operation!r} does not apply to {' '.join(state)!r}; expected a number or six letters.")


def parse(prompt: str) -> Problem:
    """The problem a prompt asks; `DataError` where it is none."""
    words = prompt.split()
    start = tuple(words[: words.index(LABELS[0])]) if LABELS[0] in words else ()
    problem = Problem(start, tuple(words[len(start) + 1 :: 2]))
    known = all(word in _VOCABULARY for word in words)
    if not known or len(start) not in (1, PLACES) or problem.prompt.split() != words:
        raise DataError(f"not a chain problem: {prompt!r}; expected e.g. '5 L0 *7 L1 +1 {BAR}'.")
    _ = problem.answer  # operations that do not fit the state
    return problem


def trace(problem: Problem, thought: Thought, rng: np.random.Generator) -> Words:
    """A training trace, its end token included."""
    words: list[str] = []
    previous: State = ()
    for turn in range(1, thought.rounds + 1):
        words += [WAIT] if turn > 1 else []
        state = problem.start
        words += problem.opening()
        for step, operation in enumerate(problem.operations):
            slips = thought.slip > 0 and is_hard(operation) and rng.random() < thought.slip
            state = number(rng) if slips else apply(operation, state)
            words += problem.line(step, state)
        words += candidate(state, previous)
        stop = thought.stop_same if state == previous else thought.stop_different
        if previous and rng.random() < stop:
            break
        previous = state
    return *words, END, ANS, *state, EOS


def candidate(state: State, previous: State) -> Words:
    """The line that offers a state as the answer and compares it with the candidate before, if there was one."""
    return (CAND, *state, *((*previous, SAME if state == previous else DIFF) if previous else ()), NL)


def lines(text: str) -> list[Words]:
    """The lines of a trace, each with its NL; what follows the last NL is a line too."""
    found: list[Words] = []
    rest = text.split()
    while rest:
        stop = rest.index(NL) + 1 if NL in rest else len(rest)
        found.append(tuple(rest[:stop]))
        rest = rest[stop:]
    return found


def judge(problem: Problem, written: Sequence[Words]) -> list[bool]:
    """The oracle: for every line of a trace, whether it is right *given the lines before it*.

    A step is right if it follows from the state its predecessor announced, so a derivation is right if all its lines
    are. A last line that is not finished is judged as far as it goes: it is right if it can still become right.
    """
    return [line == right[: len(line)] for line, right in zip(written, corrected(problem, written), strict=True)]


def corrected(problem: Problem, written: Sequence[Words]) -> list[Words]:
    """For every line of a trace, the right one *given the lines before it*; () behind a line nothing can follow from.

    Where several are right it is the one that agrees with the line longest.
    """
    found: list[Words] = []
    before: Words = ()
    candidates: list[State] = []
    for line in written:
        found.append(_nearest(line, _allowed(problem, before, candidates)))
        if line[0] == CAND:
            candidates.append(line[1 : 1 + len(problem.start)])
        before = line
    return found


def _nearest(line: Words, allowed: Iterable[Words]) -> Words:
    """The first of those that agree with the line longest."""

    def agreement(right: Words) -> int:
        return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(line, right, strict=False)))

    return max(allowed, key=agreement, default=())


def _allowed(problem: Problem, before: Words, candidates: Sequence[State]) -> Iterator[Words]:
    """The right lines behind `before`, which may be wrong or no line at all."""
    width = len(problem.start)
    if not before:
        yield problem.opening()
    elif before[0] == CAND:
        yield WAIT, *problem.opening()
        yield END, ANS, *candidates[-1]
        yield END, ANS, *candidates[-1], EOS
    elif before[-2:] == (STOP, NL):
        yield candidate(before[:width], candidates[-1] if candidates else ())
    else:
        step = next((i for i in range(len(problem.operations)) if before[-3:-1] == problem.announced(i)), None)
        state = before[-3 - width : -3]
        if step is not None and is_state(state, problem.start):
            yield problem.line(step, apply(problem.operations[step], state))


def is_state(words: Sequence[str], like: State) -> bool:
    """Whether words are a state of the same kind as `like`."""
    kind = LETTERS if like[0] in LETTERS else _VOCABULARY[_VOCABULARY.index("0") : _VOCABULARY.index("0") + MODULUS]
    return len(words) == len(like) and all(word in kind for word in words)
