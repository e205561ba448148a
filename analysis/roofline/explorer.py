"""The analytic model as the data of a page that computes: every formula traced once, all numbers beside them.

Python calls `Setup.phases` and `summary` with symbols; the page evaluates the nodes that this left, and knows no
formula itself. Models that differ in numbers only share a program; a method's cost is traced for each model.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields, replace
from itertools import product
from typing import Any

from analysis.hardware import Hardware, hardware_names, load_hardware
from analysis.roofline.ceilings import Ceilings
from analysis.roofline.estimate import Phases, Setup, seconds
from analysis.roofline.model import Execution, Machine, OperatorTime, decode, operator_times
from analysis.roofline.operators import Operator, Precision
from analysis.roofline.parallel import Parallel
from analysis.roofline.predict import datasheet_machine
from analysis.roofline.shape import Experts, Latent, ModelShape, load_preset, preset_names
from analysis.roofline.summary import Usage, summary
from analysis.roofline.symbols import Graph
from suite.cost import Count, Drafter, MethodCost, Situation
from suite.errors import InputError
from suite.harness.measurement import Calibration
from suite.registry import METHODS

BITS = {"weight": (32, 16, 8, 6, 4, 3, 2), "kv": (32, 16, 8, 4, 3, 2), "activation": (32, 16, 8, 4)}
WORK = ("calls", "flops", "weight_bytes", "activation_bytes", "kv_bytes", "link_bytes", "bytes")
TIMES = ("compute_s", "memory_s", "launch_s", "link_s", "seconds")
COST = tuple("moved" if field.name == "read" else field.name for field in fields(MethodCost) if field.name != "drafter")
"""What a page asks of a method's cost: `read` with its default filled in."""
CEILINGS = tuple(field.name for field in fields(Machine) if field.name != "name")

LOCAL = "local"
FIRST_DEVICE = "h100-sxm"
FIRST = {
    "model": "smollm2-135m", "hardware": FIRST_DEVICE, "method": "dense", "phase": "decode", "batch": 1, "tokens": 4096,
    "attention": "flash", "devices": 1, "accepted": 1, "price": "",
}  # fmt: skip
"""What a page shows before anything is chosen; its controls have these names."""

Document = dict[str, Any]
Method = Callable[[Situation], MethodCost]


@dataclass(frozen=True)
class Device:
    """A machine to choose: its ceilings for operands of a precision, and its datasheet where there is one."""

    title: str
    ceilings: Callable[[Precision], Machine]
    datasheet: Hardware | None = None


@dataclass(frozen=True)
class Choices:
    """What a page offers, by name. `shape_of` finds the model that a method's drafter names."""

    models: Mapping[str, ModelShape]
    methods: Mapping[str, Method]
    devices: Mapping[str, Device]
    shape_of: Callable[[str], ModelShape] = load_preset
    bits: tuple[int, int, int] = (16, 16, 16)
    """Weights, keys and values, activations: offered beside the usual widths."""
    degrees: tuple[int, ...] = (1, 2, 4, 8, 16)
    """Devices that may share every layer."""


def known_choices() -> Choices:
    """All presets, our methods with their default options, all devices of the built-in table."""
    return Choices(
        {name: load_preset(name) for name in preset_names()},
        {name: default_cost(name) for name, entry in METHODS.items() if entry.family != "plug-in"},
        {name: datasheet_device(load_hardware(name)) for name in hardware_names()},
    )


def default_cost(name: str) -> Method:
    """What a registered method costs with the options it has unasked."""
    kind = METHODS.load(name)
    return functools.partial(kind.cost, kind.Config())


def measured_device(calibration: Calibration) -> Device:
    """The calibrated machine at its measured ceilings."""
    return Device("this machine, as measured", Ceilings(calibration).whole_machine)


def datasheet_device(hardware: Hardware) -> Device:
    """A device at its theoretical ceilings."""
    return Device(hardware.title, functools.partial(datasheet_machine, hardware), hardware)


@dataclass(frozen=True)
class TracedShape(ModelShape):
    """A shape of symbols: how many layers have which window cannot be counted, and is said."""

    spans: tuple[tuple[Any, Any], ...] = ()

    def layers_by_window(self) -> Any:
        return dict(self.spans)


def explorer_document(choices: Choices, selected: Mapping[str, Any]) -> Document:
    """The page's data: `nodes` to evaluate, `programs` of them, the numbers of every choice, and what is chosen first.

    A program's rows are an operator's name and the nodes of `columns`; its `figures` are those of `summary`.
    """
    tracer = _Tracer(choices)
    models = {name: tracer.model(shape) for name, shape in choices.models.items()}
    bits = {kind: sorted({*BITS[kind], asked}, reverse=True) for kind, asked in zip(BITS, choices.bits, strict=True)}
    return {
        "columns": [*WORK, *TIMES],
        "cost": list(COST),
        "ceilings": list(CEILINGS),
        "bits": bits,
        "devices": {name: _device(device, bits) for name, device in choices.devices.items()},
        "models": models,
        "programs": tracer.programs,
        "choices": {"model": list(models), "method": list(choices.methods)},
        "selected": {**FIRST, **dict(zip(BITS, choices.bits, strict=True)), **selected},
        **tracer.listed(),
    }


def report_explorer(calibration: Calibration | None) -> Document:
    """What a report offers: everything known, and its machine where that was calibrated, which is chosen first."""
    document = _known_document()
    if calibration is None:
        return document
    measured = {LOCAL: _device(measured_device(calibration), document["bits"])}
    selected = {**document["selected"], "hardware": LOCAL}
    return {**document, "devices": {**measured, **document["devices"]}, "selected": selected}


@functools.cache
def _known_document() -> Document:
    return explorer_document(known_choices(), {})


def _device(device: Device, bits: Mapping[str, list[int]]) -> Document:
    """Its distinct ceilings, or the sentence that says why it has none; `at[i]` is those of the i-th (W, A)."""
    found = [_ceilings(device, w, a) for w, a in product(bits["weight"], bits["activation"])]
    distinct = list(dict.fromkeys(found))
    sheet = device.datasheet
    return {
        "title": device.title,
        "memory_gb": sheet and sheet.memory_gb,
        "tdp_w": sheet and sheet.tdp_w,
        "ceilings": distinct,
        "at": [distinct.index(one) for one in found],
    }


def _ceilings(device: Device, weight: int, activation: int) -> tuple[Any, ...] | str:
    try:
        machine = device.ceilings(Precision.of_bits(weight, 16, activation))
    except InputError as error:
        return str(error)
    return (machine.name, *(getattr(machine, name) for name in CEILINGS))


class _Tracer:
    """One graph for everything, and the programs traced so far by the structure of the model."""

    def __init__(self, choices: Choices) -> None:
        self.graph, self.choices = Graph(), choices
        self.programs: list[Document] = []
        self._places: dict[tuple[Any, ...], int] = {}
        of = self.graph.input
        self.batch, self.tokens = of("batch"), of("tokens")
        self.precision = Precision.of_bits(of("weight"), of("kv"), of("activation"))
        self.machine = Machine("", *(of(name) for name in CEILINGS))

    def listed(self) -> Document:
        """The graph: a node is [operation, arguments...], an operation its place in `operations`."""
        operations = list(dict.fromkeys(operation for operation, _ in self.graph.nodes))
        place = {operation: index for index, operation in enumerate(operations)}
        nodes = [[place[operation], *arguments] for operation, arguments in self.graph.nodes]
        return {"operations": operations, "inputs": self.graph.inputs, "nodes": nodes}

    def model(self, shape: ModelShape) -> Document:
        """A model's numbers, the degrees it can be divided by, its programs and what every method costs on it."""
        degrees = [degree for degree in self.choices.degrees if _divides(degree, shape)]
        return {
            "dimensions": dimensions(shape),
            "degrees": degrees,
            "programs": {
                f"{'flash' if fused else 'unfused'}{'-several' if several else ''}": self._program(
                    shape, fused=fused, several=several
                )
                for fused, several in product((True, False), (False, True) if len(degrees) > 1 else (False,))
            },
            "methods": {name: self._method(shape, name) for name in self.choices.methods},
        }

    def _program(self, shape: ModelShape, *, fused: bool, several: bool) -> int:
        return self._place((_structure(shape), fused, several), lambda: self._traced(shape, fused, several))

    def _place(self, key: tuple[Any, ...], trace: Callable[[], Document]) -> int:
        if key not in self._places:
            self.programs.append(trace())
            self._places[key] = len(self.programs) - 1
        return self._places[key]

    def _traced(self, shape: ModelShape, fused: bool, several: bool) -> Document:
        of, traced, tensor = self.graph.input, symbolic(shape, self.graph), 1
        self.graph.assume(traced.layers < 1, False)
        if several:
            tensor = of("tensor")
            self.graph.assume(tensor > 1, True)
            self.graph.assume(tensor == 1, False)
            for divided in (traced.heads, traced.intermediate):
                self.graph.assume(divided % tensor, False)
        given = {name: of(f"method.{name}") for name in COST if name != "moved"}
        cost = MethodCost(**given, read=of("method.moved"))
        setup = Setup(traced, self.precision, self.machine, lambda at: cost, fused=fused, parallel=Parallel(tensor))
        phases = setup.phases(self.batch, self.tokens)
        drafting = OperatorTime(Operator("draft", 1, 0.0), of("drafting_s"), 0.0, 0.0)
        device = Hardware.model_construct(
            name="", title="", source="D", memory_gb_per_s=1.0, memory_gb=of("memory_gb"), tdp_w=of("tdp_w")
        )
        usage = Usage(device, 0, of("accepted"), of("price"))
        figures = summary(setup, usage, {**phases, "draft": [drafting]}, self.batch, self.tokens)
        known = {name: self.graph.node(value) for name, value in figures.items() if value is not None}
        return {"phases": {phase: self._rows(times) for phase, times in phases.items()}, "figures": known}

    def _rows(self, times: Iterable[OperatorTime]) -> list[list[Any]]:
        return [
            [
                time.operator.name,
                *(self.graph.node(getattr(time.operator, name)) for name in WORK),
                *(self.graph.node(getattr(time, name)) for name in TIMES),
            ]
            for time in times
        ]

    def _method(self, shape: ModelShape, name: str) -> Document:
        """The nodes of a method's cost on this model; with a drafter also how often which model drafts."""

        def at(tokens: Count, element_bytes: float) -> MethodCost:
            dims = (shape.layers, shape.hidden, shape.heads, shape.kv_heads, shape.head_dim)
            return self.choices.methods[name](Situation(tokens, *dims, element_bytes))

        try:
            cost = at(self.tokens, self.precision.activation)
        except TypeError as error:
            raise InputError(f"the cost of method {name!r} cannot be traced: {error}.") from error
        if cost.weight_bits is None:
            cost = replace(cost, weight_bits=self.graph.input("weight"))
        found: Document = {"cost": [self.graph.node(getattr(cost, name)) for name in COST]}
        plain = at(1.0, 2.0)
        if (drafter := plain.drafter) is not None:
            found["draft"] = self._draft(shape, drafter, plain)
        return found

    def _draft(self, shape: ModelShape, drafter: Drafter, cost: MethodCost) -> Document:
        named = self.choices.shape_of(drafter.name) if drafter.name else None
        setup = Setup(shape, Precision(), Machine("", 1.0, 1.0), drafter=named)
        drafting, packed = setup.drafting_shape(drafter), setup.drafting_execution(drafter, cost).method
        return {
            "program": self._place((_structure(drafting), "draft"), lambda: self._traced_draft(drafting)),
            "dimensions": dimensions(drafting),
            "steps": drafter.steps,
            "weight_bits": packed.weight_bits,
            "row_bytes": packed.row_bytes,
        }

    def _traced_draft(self, shape: ModelShape) -> Document:
        of = self.graph.input
        packed = Execution(method=MethodCost(weight_bits=of("method.weight_bits"), row_bytes=of("method.row_bytes")))
        traced = symbolic(shape, self.graph)
        step = decode(traced, self.precision, batch=self.batch, context=self.tokens, execution=packed)
        times = operator_times([operator * of("steps") for operator in step], self.machine)
        found: Phases = {"draft": times}
        return {
            "phases": {phase: self._rows(times) for phase, times in found.items()},
            "figures": {"drafting_s": self.graph.node(seconds(times))},
        }


def _divides(degree: int, shape: ModelShape) -> bool:
    try:
        Parallel(degree).check(shape)
    except InputError:
        return False
    return True


DIMENSIONS = ("layers", "hidden", "intermediate", "heads", "kv_heads", "head_dim", "vocab")


def dimensions(shape: ModelShape) -> dict[str, int]:
    """All numbers of a shape by name, those that are 0 left out."""
    found = {name: getattr(shape, name) for name in DIMENSIONS}
    for part in (shape.experts, shape.latent):
        if part is not None:
            found |= {f"{type(part).__name__}.{field.name}": getattr(part, field.name) for field in fields(part)}
    for index, (window, count) in enumerate(shape.layers_by_window().items()):
        found |= {f"span{index}.layers": count, f"span{index}.window": window or 0}
    return {name: value for name, value in found.items() if value}


def _structure(shape: ModelShape) -> tuple[Any, ...]:
    """What a program depends on beside numbers."""
    return (shape.gated, shape.tied, *dimensions(shape))


def symbolic(shape: ModelShape, graph: Graph) -> TracedShape:
    """The same shape with a symbol for every number but 0."""
    symbols = {name: graph.input(f"model.{name}") for name in dimensions(shape)}

    def part(kind: type[Any]) -> Any:
        return kind(**{field.name: symbols.get(f"{kind.__name__}.{field.name}", 0) for field in fields(kind)})

    spans = len(shape.layers_by_window())
    return TracedShape(
        **{name: symbols.get(name, 0) for name in DIMENSIONS},
        tied=shape.tied,
        gated=shape.gated,
        experts=shape.experts and part(Experts),
        latent=shape.latent and part(Latent),
        spans=tuple((symbols.get(f"span{i}.window"), symbols[f"span{i}.layers"]) for i in range(spans)),
    )
