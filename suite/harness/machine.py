"""What a result depends on besides its spec: the machine it ran on and the code that ran."""

from __future__ import annotations

import functools
import hashlib
import inspect
import json
import os
import platform
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil

import suite
from suite.harness.threads import PINNED, available_cores

ROOT = Path(suite.__file__).resolve().parent.parent
MEASURING_ROOMS = ("suite", "kernels", "workloads")  # analysis and reports read results, they do not make them
SOURCES = (".py", ".cpp", ".h", ".toml", ".json", ".safetensors")
PACKAGES = ("torch", "triton", "transformers", "tokenizers", "numpy")
OMP_VARIABLES = (*PINNED, "OMP_NUM_THREADS", "MKL_NUM_THREADS")


@functools.cache
def fingerprint() -> dict[str, Any]:
    """Everything about this machine that a speed may depend on. Call after `threads.pin()`."""
    return {
        "cpu": _cpu_model(),
        "cores": available_cores(),
        "logical_cpus": psutil.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30),
        "gpus": gpu_names(),
        "os": _os_name(),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES},
        "omp": {name: os.environ[name] for name in OMP_VARIABLES if name in os.environ},
    }


@functools.cache
def machine_id() -> str:
    """Hash of the fingerprint, 16 hexadecimal digits."""
    document = json.dumps(fingerprint(), sort_keys=True)
    return hashlib.sha256(document.encode()).hexdigest()[:16]


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())


def _os_name() -> str:
    try:
        return platform.freedesktop_os_release()["PRETTY_NAME"]
    except (OSError, KeyError):
        return platform.platform()


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def gpu_names() -> list[str]:
    """Names of the NVIDIA GPUs that NVML sees; empty without a GPU or its driver."""
    import pynvml

    try:
        pynvml.nvmlInit()
        handles = [pynvml.nvmlDeviceGetHandleByIndex(i) for i in range(pynvml.nvmlDeviceGetCount())]
        return [str(pynvml.nvmlDeviceGetName(handle)) for handle in handles]
    except pynvml.NVMLError:
        return []


@functools.cache
def code_version() -> str:
    """Package version and a hash of the source files that take part in measuring, committed or not."""
    digest = hashlib.sha256()
    for room in MEASURING_ROOMS:
        for path in sorted((ROOT / room).rglob("*")):
            if path.suffix in SOURCES and path.is_file():
                digest.update(f"{path.relative_to(ROOT)}\0{path.stat().st_size}\0".encode())
                digest.update(path.read_bytes())
    return f"{suite.__version__}+{digest.hexdigest()[:12]}"


def plugin_version(kind: type) -> str:
    """Hash of the file a plug-in's class comes from; empty for a class of our own, which `code_version` covers."""
    try:
        path = Path(inspect.getfile(kind)).resolve()
    except (OSError, TypeError):
        return kind.__module__
    if any(path.is_relative_to(ROOT / room) for room in MEASURING_ROOMS):
        return ""
    return hashlib.sha256(path.read_bytes()).hexdigest()[:12]
