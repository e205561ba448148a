"""Code completion: programs from a small grammar whose next line follows from an earlier definition.

A program is a list of record types, each with a routine that uses all its fields in the order of the definition. The
last routine stops before the line asked for; its type's definition stands somewhere further up, or in another file.
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
    """How one language writes a record type, a routine that prints its fields, and one that makes a record."""

    language: str
    string: str
    file: str
    define: str
    print_head: str
    print_line: str
    make_head: str
    make_line: str
    end: str


PYTHON = Dialect(
    language="python",
    string="",
    file="# file: {name}.py",
    define="{Name} = namedtuple('{Name}', '{plain}')",
    print_head="def print_{name}({name}):",
    print_line="    print({name}.{field})",
    make_head="def make_{name}(row):",
    make_line="    return {Name}({arguments})",
    end="",
)
JAVA = Dialect(
    language="java",
    string="String ",
    file="// file: {Name}.java",
    define="record {Name}({typed}) {{}}",
    print_head="static void print{Name}({Name} {name}) {{",
    print_line="    System.out.println({name}.{field}());",
    make_head="static {Name} make{Name}(Row row) {{",
    make_line="    return new {Name}({arguments});",
    end="\n}",
)
CSHARP = Dialect(
    language="c#",
    string="string ",
    file="// file: {Name}.cs",
    define="record {Name}({typed});",
    print_head="static void Print{Name}({Name} {name})\n{{",
    print_line="    Console.WriteLine({name}.{field});",
    make_head="static {Name} Make{Name}(Row row)\n{{",
    make_line="    return new {Name}({arguments});",
    end="\n}",
)


@dataclass(frozen=True)
class RecordType:
    """A record type of the invented program."""

    dialect: Dialect
    noun: str
    fields: list[str]

    def write(self, template: str, field: str = "") -> str:
        """One of the dialect's templates, about this type."""
        return template.format(
            Name=self.noun.title().replace("_", ""),
            name=self.noun,
            field=field,
            plain=" ".join(self.fields),
            typed=", ".join(self.dialect.string + name for name in self.fields),
            arguments=", ".join(f"row.{name}" for name in self.fields),
        )

    def definition(self) -> str:
        return self.write(self.dialect.define)

    def printing(self) -> list[str]:
        """Head and lines of the routine that prints the fields."""
        return [self.write(self.dialect.print_head), *(self.write(self.dialect.print_line, f) for f in self.fields)]

    def making(self) -> list[str]:
        """Head and line of the routine that makes a record."""
        return [self.write(self.dialect.make_head), self.write(self.dialect.make_line)]

    def unit(self, routine: list[str]) -> str:
        """The definition with a complete routine after it."""
        return f"{self.definition()}\n\n" + "\n".join(routine) + self.dialect.end

    def file(self, text: str) -> str:
        return f"{self.write(self.dialect.file)}\n{text}"


def one_file(world: World, dataset: str, tokens: int) -> Draft:
    """lcc: one long file whose last routine prints the fields of a record; the answer is its next line."""
    types = _types(world, world.rng.choice((PYTHON, JAVA, CSHARP)))
    target = next(types)
    lines = target.printing()
    shown = world.rng.randrange(2, len(lines))
    units = _until(tokens, types, lambda kind: kind.unit(kind.printing()))
    units.insert(world.rng.randrange(len(units) + 1), evidence(target.definition()))
    whole = join([*units, Passage("\n".join(lines[:shown]) + "\n")], "\n\n")
    return Draft("", whole.text, [lines[shown]], whole.evidence, language=target.dialect.language)


def two_files(world: World, dataset: str, tokens: int) -> Draft:
    """repobench-p: the other files are the context; the current one, in `input`, ends where a record is to be made."""
    types = _types(world, world.rng.choice((PYTHON, JAVA)))
    target = next(types)
    head, answer = target.making()
    files = _until(tokens, types, lambda kind: kind.file(kind.unit(kind.making())))
    files.insert(world.rng.randrange(len(files) + 1), evidence(target.file(target.definition())))
    whole = join(files, "\n\n")
    return Draft(f"\n\n{head}\n", whole.text, [answer], whole.evidence, language=target.dialect.language)


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
