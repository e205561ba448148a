"""`suite engines`: the environments that engines run in."""

from __future__ import annotations

from suite.commands.output import stderr, stdout
from suite.engines import vllm_environment
from suite.errors import InputError


def install(engine: str) -> int:
    """Makes the engine's environment; one that is there already is left as it is."""
    if engine != "vllm":
        raise InputError(f"engine {engine!r} needs no environment of its own; only vllm does.")
    console = stderr()
    with console.status("preparing") as status:
        folder = vllm_environment.install(status.update)
    stdout().print(f"vLLM is installed in {folder}", markup=False)
    return 0
