"""Methods of different families at once: `weights+attention+decoding`, any two of them or all three.

Packed weights lie outermost, so that whatever runs inside runs on them, a drafter made of the target's own layers too;
then the attention, in which a decoding method verifies its drafts.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any, ClassVar, Self, cast

from pydantic import ValidationError, create_model, model_validator

from suite.cost import MethodCost, Situation, together
from suite.errors import InputError
from suite.methods.attention.base import AttentionMethod
from suite.methods.attention.dense import Dense
from suite.methods.base import Card, Generator, Method, MethodConfig
from suite.methods.decoding.base import DecodingMethod
from suite.methods.decoding.selected import Under
from suite.methods.weights.base import WeightsMethod
from suite.models.language_model import LanguageModel
from suite.registry import METHODS

FAMILIES: dict[str, tuple[type[Method], ...]] = {
    "weights": (WeightsMethod,),
    "attention": (AttentionMethod, Dense),
    "decoding": (DecodingMethod,),
}
"""In the order in which they are attached."""


class CombinedConfig(MethodConfig):
    """The options of all parts, each behind its part's name: `lookahead.decoding_length`."""

    kinds: ClassVar[dict[str, type[Method]]] = {}

    @model_validator(mode="after")
    def _fits(self) -> Self:
        """What a part asks of its options together holds here too."""
        for name in self.kinds:
            try:
                self.part(name)
            except ValidationError as error:
                raise ValueError(error.errors()[0]["msg"].removeprefix("Value error, ")) from error
        return self

    def part(self, name: str) -> MethodConfig:
        """The config of one part."""
        own = {option.removeprefix(f"{name}."): value for option, value in self if option.startswith(f"{name}.")}
        return self.kinds[name].Config(**own)


class Combined(Method):
    """At most one method of each family on one model. What it is follows from its parts.

    The parts are given by name, prepared or not. `kinds` are their classes, in the order of the families.
    """

    kinds: ClassVar[dict[str, type[Method]]] = {}

    @staticmethod
    def cost(config: Any, at: Situation) -> MethodCost:
        """What every part changes."""
        return together(kind.cost(config.part(name), at) for name, kind in config.kinds.items())

    def __init__(self, parts: dict[str, Method] | None = None) -> None:
        self.parts = parts or {name: kind() for name, kind in self.kinds.items()}

    def refusal(self, model: LanguageModel, config: Any) -> str | None:
        """The first part's that refuses."""
        reasons = (part.refusal(model, config.part(name)) for name, part in self.parts.items())
        return next((reason for reason in reasons if reason is not None), None)

    def prepare(self, model: LanguageModel, config: Any) -> None:
        for name, part in self.parts.items():
            part.prepare(model, config.part(name))

    def model_bytes(self, model: LanguageModel, config: Any) -> int:
        own = model.model_bytes
        return own + sum(part.model_bytes(model, config.part(name)) - own for name, part in self.parts.items())

    @contextmanager
    def attach(self, model: LanguageModel, config: Any) -> Iterator[Generator]:
        """The last part generates: the draft-and-verify loop, or the attention."""
        *before, last = self.parts
        decoding = self.parts[last]
        with ExitStack() as stack:
            for name in before:
                part = self.parts[name]
                if isinstance(part, WeightsMethod):
                    stack.enter_context(part.attach(model, config.part(name)))
                elif isinstance(part, AttentionMethod):
                    cast(DecodingMethod, decoding).attention = Under(part, config.part(name))
            yield stack.enter_context(decoding.attach(model, config.part(last)))

    def classes(self) -> tuple[type[Method], ...]:
        return tuple(self.kinds.values())

    def undrafted(self, config: Any) -> tuple[Method, MethodConfig] | None:
        """Without the drafts: what they must leave as it is, if they are exact and the rest is not."""
        *before, last = self.parts
        if self.card.lossless or not (isinstance(self.parts[last], DecodingMethod) and self.parts[last].card.lossless):
            return None
        if len(before) == 1:
            return self.parts[before[0]], config.part(before[0])
        kind = combination("+".join(before))
        rest = {option: value for option, value in config if not option.startswith(f"{last}.")}
        return kind({name: self.parts[name] for name in before}), kind.Config(**rest)


@functools.cache
def combination(name: str) -> type[Combined]:
    """The class of `a+b` or `a+b+c`, in any order; `InputError` where the parts do not go together."""
    kinds = _sorted({part: METHODS.load(part) for part in _parts(name)})
    slug = "+".join(kinds)
    options = {
        f"{part}.{option}": (info.annotation, info)
        for part, kind in kinds.items()
        for option, info in kind.Config.model_fields.items()
    }
    config = create_model("Config", __base__=CombinedConfig, **cast(dict[str, Any], options))
    config.kinds = kinds
    losses = [kind.quality_nats for kind in kinds.values() if kind.quality_nats is not None]
    fields = {
        "__module__": __name__,
        "__doc__": f"{slug}: see `Combined`.",
        "card": _card(slug, [kind.card for kind in kinds.values()]),
        "Config": config,
        "kinds": kinds,
        "quality_nats": sum(losses) if losses else None,
    }
    return type("Combined", (Combined,), fields)


def _parts(name: str) -> list[str]:
    parts = name.split("+")
    for part in parts:
        if parts.count(part) > 1:
            raise InputError(f"{name} names {part} twice; a combination has at most one method of each family.")
    return parts


def _sorted(kinds: dict[str, type[Method]]) -> dict[str, type[Method]]:
    """By family, of which each is there once, and whose members go together."""
    found: dict[str, str] = {}
    for name, kind in kinds.items():
        family = next((family for family, bases in FAMILIES.items() if issubclass(kind, bases)), None)
        if family is None:
            raise InputError(f"{name} cannot be combined: it belongs to none of {', '.join(FAMILIES)}.")
        if family in found:
            raise InputError(f"{found[family]} and {name} are both {family} methods; a combination has one of each.")
        found[family] = name
    attention = kinds[found["attention"]] if "attention" in found else Dense
    if "decoding" in found and issubclass(attention, AttentionMethod) and not attention.verifies:
        raise InputError(
            f"{found['attention']} cannot be combined with {found['decoding']}: it chooses what to read token by "
            "token, and a draft is verified in one pass."
        )
    return {found[family]: kinds[found[family]] for family in FAMILIES if family in found}


def _card(slug: str, cards: Sequence[Card]) -> Card:
    return Card(
        slug=slug,
        family="+".join(dict.fromkeys(card.family for card in cards)),
        title="; ".join(card.title for card in cards),
        source="; ".join(card.source for card in cards),
        lossless=all(card.lossless for card in cards),
        needs=tuple(need for card in cards for need in card.needs),
        claims=tuple(replace(claim, id=f"{card.slug}.{claim.id}") for card in cards for claim in card.claims),
    )
