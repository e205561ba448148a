"""Code completion: programs from a small grammar whose next line follows from an earlier definition.

A program is a list of record types, each with a block of statements that handles its fields one by one. The last block
does for one of these types what an earlier one does, and stops before the line asked for. No line is indented: a prompt
that ends in a line break and an answer that starts with blanks would be split into tokens as no program text is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from workloads.generators.passages import Draft, Passage, evidence, join
from workloads.generators.world import World
from workloads.lengths import estimate_tokens

FIELDS_A_TYPE = 4


@dataclass(frozen=True)
class Dialect:
    """How one language writes a comment, a statement about one field, and a statement that makes a whole record."""

    language: str
    comment: str
    statement: str
    call: str


PYTHON = Dialect("python", "#", "{name}.set_{field}(row.{field})", "{name} = {Name}({arguments})")
JAVA = Dialect("java", "//", "{name}.set_{field}(row.{field});", "var {name} = new {Name}({arguments});")
CSHARP = Dialect("c#", "//", "{name}.{Field} = row.{Field};", "var {name} = new {Name}({arguments});")


@dataclass(frozen=True)
class RecordType:
    """A record type of the invented program, written in a dialect."""

    dialect: Dialect
    noun: str
    fields: list[str]

    def _write(self, template: str, field: str = "") -> str:
        return template.format(
            name=self.noun,
            Name=self.noun.title().replace("_", ""),
            field=field,
            Field=field.title(),
            arguments=", ".join(f"row.{name}" for name in self.fields),
        )

    def statements(self) -> list[str]:
        """One line a field, the same in every block about the type."""
        return [self._write(self.dialect.statement, field) for field in self.fields]

    def call(self) -> str:
        """The line that makes a whole record."""
        return self._write(self.dialect.call)

    def block(self, verb: str, lines: list[str]) -> str:
        """The lines under a comment that says what they do."""
        return "\n".join([f"{self.dialect.comment} {verb} {self.noun}", *lines])


def one_file(world: World, dataset: str, tokens: int) -> Draft:
    """lcc: one long file; its last block repeats an earlier one's lines, and the answer is the next of them."""
    types = _types(world, world.rng.choice((PYTHON, JAVA, CSHARP)))
    target = next(types)
    lines = target.statements()
    shown = world.rng.randrange(1, len(lines))
    blocks = _until(tokens, types, lambda kind: kind.block("create", kind.statements()))
    blocks.insert(world.rng.randrange(len(blocks) + 1), evidence(target.block("create", lines)))
    whole = join([*blocks, Passage(target.block("update", lines[:shown]) + "\n")], "\n\n")
    return Draft("", whole.text, [lines[shown]], whole.evidence, language=target.dialect.language)


def two_files(world: World, dataset: str, tokens: int) -> Draft:
    """repobench-p: the other files are the context; the current one, in `input`, makes a record as one of them does."""
    types = _types(world, world.rng.choice((PYTHON, JAVA)))
    target = next(types)
    files = _until(tokens, types, lambda kind: kind.block("file: create", [kind.call()]))
    files.insert(world.rng.randrange(len(files) + 1), evidence(target.block("file: create", [target.call()])))
    whole = join([*files, Passage("")], "\n\n")
    current = target.block("file: update", []) + "\n"
    return Draft(current, whole.text, [target.call()], whole.evidence, language=target.dialect.language)


def _types(world: World, dialect: Dialect) -> Iterator[RecordType]:
    """Record types with names of their own, without end."""
    while True:
        fields = world.rng.sample(world.lexicon["slots"]["field"], FIELDS_A_TYPE)
        yield RecordType(dialect, world.draw("record"), fields)


def _until(tokens: int, types: Iterator[RecordType], write: Callable[[RecordType], str]) -> list[Passage]:
    units, left = [Passage(write(next(types)))], tokens
    while left > 0:
        units.append(Passage(write(next(types))))
        left -= estimate_tokens(units[-1].text)
    return units
