"""Validates names and options before any model is loaded; every mistake becomes one sentence."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain, islice, zip_longest
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from suite.errors import InputError
from suite.methods.base import MethodConfig
from suite.registry import METHODS, MODELS, WORKLOADS
from suite.spec import MethodSpec, WorkloadSpec
from workloads.schema import DataError, Request, Workload

Config = TypeVar("Config", bound=BaseModel)

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


def named_options(text: str) -> tuple[str, dict[str, Any]]:
    """The name and the options of `name` or `name:option=value,...`."""
    name, _, rest = text.partition(":")
    return name, dict(pair(part, f"--method {name}") for part in rest.split(",") if rest)


def pair(text: str, owner: str) -> tuple[str, str]:
    """Name and value of `name=value`; the error names the option's owner."""
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise InputError(f"{owner} {text!r} is not of the form name=value.")
    return name.strip(), value.strip()


def method_config(spec: MethodSpec) -> MethodConfig:
    """The validated config of a method; imports the method's module, but no model."""
    kind: type[MethodConfig] = METHODS.load(spec.name).Config
    return validated(kind, spec.options, f"method {spec.name}")


def cleaned(spec: MethodSpec) -> MethodSpec:
    """The same method with its options as its config understood them, a combination's parts in their order."""
    name = METHODS.load(spec.name).card.slug if "+" in spec.name else spec.name
    return MethodSpec(name=name, options=normalised(method_config(spec), spec.options))


def make_workload(spec: WorkloadSpec) -> Workload:
    """The workload with its validated config; a missing or malformed data file is found here."""
    kind: type[Workload] = WORKLOADS.load(spec.name)
    try:
        return kind(validated(kind.Config, spec.options, f"workload {spec.name}"))
    except DataError as error:
        raise InputError(str(error)) from error


def read_requests(workload: Workload, spec: WorkloadSpec) -> Iterator[Request]:
    """The requests of a spec's task, at least one; data that turns out malformed or empty is an `InputError`."""
    count = 0
    try:
        for request in workload.requests(spec.task, spec.limit, spec.seed):
            count += 1
            yield request
    except DataError as error:
        raise InputError(str(error)) from error
    if not count:
        raise InputError(f"workload {spec.name} has no item of task {spec.task!r}; check its data.")


def requests_in_turn(spec: WorkloadSpec, tasks: Sequence[str] = ()) -> Iterator[Request]:
    """At most `spec.limit` requests, one of each task in turn; without `tasks` those of the whole workload."""
    workload = make_workload(spec)
    streams = [read_requests(workload, spec.model_copy(update={"task": task})) for task in (tasks or workload.tasks)]
    rounds = zip_longest(*streams)
    found = (request for request in chain.from_iterable(rounds) if request is not None)
    return islice(found, spec.limit)


def normalised(config: BaseModel, options: Mapping[str, Any]) -> dict[str, Any]:
    """The given options as the config understood them ("16" -> 16), so that equal wishes have equal keys."""
    return config.model_dump(mode="json", include=set(options))


def validated(kind: type[Config], options: Mapping[str, Any], owner: str) -> Config:
    """An instance of a config class, or an `InputError` that names the option, its value and what is allowed."""
    try:
        return kind(**options)
    except ValidationError as error:
        raise InputError(_sentence(kind, error.errors()[0], owner)) from error


def _sentence(kind: type[BaseModel], error: ErrorDetails, owner: str) -> str:
    name = str(error["loc"][0]) if error["loc"] else ""
    if error["type"] == "extra_forbidden":
        return f"{owner} has no option {name!r}; {_nearest(name, list(kind.model_fields))}"
    if name not in kind.model_fields:
        return f"the options of {owner} do not fit together: {error['msg']}."
    return f"{owner}: option {name} = {error['input']!r} is not allowed; {_allowed(kind, name, error)}."


def _nearest(name: str, known: list[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    if near:
        return f"did you mean {near[0]!r}?"
    return f"it has: {', '.join(known)}." if known else "it has no options."


def _allowed(kind: type[BaseModel], name: str, error: ErrorDetails) -> str:
    """The field's own range or choices where it carries them, else pydantic's words."""
    extra = kind.model_fields[name].json_schema_extra
    search = extra.get("tunable") if isinstance(extra, Mapping) else None
    if isinstance(search, Mapping):
        if isinstance(choices := search["choices"], list) and choices:
            return f"choose one of {', '.join(str(choice) for choice in choices)}"
        bounds = [
            f"{word} {search[side]}"
            for side, word in (("low", "at least"), ("high", "at most"))
            if search[side] is not None
        ]
        if bounds:
            return f"it must be {' and '.join(bounds)}" + _type_hint(error)
    return error["msg"][0].lower() + error["msg"][1:]


def _type_hint(error: ErrorDetails) -> str:
    kinds = {"int_parsing": "a whole number", "int_from_float": "a whole number", "float_parsing": "a number"}
    return f" and {kinds[error['type']]}" if error["type"] in kinds else ""


def check_model(name: str) -> None:
    """A registered name, an existing directory or file, or a hub id ("owner/name"); else an `InputError`."""
    if name in MODELS or Path(name).exists():
        return
    if Path(name).suffix in (".gguf", ".safetensors") or name.startswith((".", "/", "~")):
        raise InputError(f"there is no model at {name}; give an existing directory or .gguf file, or a known name.")
    if not _HUB_ID.fullmatch(name):
        _ = MODELS[name]  # raises with a suggestion
