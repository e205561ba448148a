"""`suite list`: what is registered. Nothing heavy is imported."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from suite import registry
from suite.commands.output import print_json, table
from suite.errors import InputError
from suite.experiments import EXPERIMENTS

Row = dict[str, Any]


def show(kind: str, as_json: bool) -> int:
    """Prints one list."""
    if kind not in _LISTS:
        near = difflib.get_close_matches(kind, _LISTS, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(_LISTS)}."
        raise InputError(f"there is no list of {kind!r}; {hint}")
    rows = _LISTS[kind]()
    if as_json:
        print_json(rows)
    else:
        columns = list(rows[0])
        table(
            f"{len(rows)} {kind}",
            columns,
            [["" if row[c] is None else str(row[c]) for c in columns] for row in rows],
            left=99,
        )
    return 0


def _entries(entries: registry.Registry) -> Callable[[], list[Row]]:
    return lambda: [{"name": e.name, "family": e.family, "summary": e.summary} for e in entries.values()]


def _methods() -> list[Row]:
    """With their class: what a method acts on, what it needs, how exact it is (`analysis/taxonomy.toml`)."""
    from analysis.taxonomy import class_of

    return [
        {"name": e.name, "family": e.family, "class": class_of(e.name), "summary": e.summary}
        for e in registry.METHODS.values()
    ]


def _hardware() -> list[Row]:
    from analysis.hardware import hardware_names, load_hardware

    devices = (load_hardware(name) for name in hardware_names())
    return [
        {
            "name": name,
            "bf16 TFLOP/s": device.peak_tflops("bf16"),
            "GB/s": device.memory_gb_per_s,
            "memory GB": device.memory_gb,
        }
        for name, device in zip(hardware_names(), devices, strict=True)
    ]


def _shapes() -> list[Row]:
    from analysis.roofline.shape import load_preset, preset_names

    return [
        {
            "name": name,
            "weights": f"{shape.parameters / 1e9:.3g} B",
            "layers": shape.layers,
            "hidden": shape.hidden,
            "attention": "latent" if shape.latent else f"{shape.heads}/{shape.kv_heads} heads of {shape.head_dim}",
            "experts": shape.experts and f"{shape.experts.per_token} of {shape.experts.count}",
        }
        for name, shape in ((name, load_preset(name)) for name in preset_names())
    ]


def _kernels() -> list[Row]:
    """The operations of the `kernels` room and the backends each has."""
    import kernels

    folders = sorted(path.parent for path in Path(kernels.__path__[0]).glob("*/reference.py"))
    backends = {"reference.py": "reference", "cpu.cpp": "C++", "triton.py": "Triton"}
    return [
        {
            "name": folder.name,
            "backends": ", ".join(label for file, label in backends.items() if (folder / file).exists()),
        }
        for folder in folders
    ]


_LISTS: dict[str, Callable[[], list[Row]]] = {
    "methods": _methods,
    "workloads": _entries(registry.WORKLOADS),
    "models": _entries(registry.MODELS),
    "engines": _entries(registry.ENGINES),
    "hardware": _hardware,
    "shapes": _shapes,
    "kernels": _kernels,
    "claims": _entries(EXPERIMENTS),
}
