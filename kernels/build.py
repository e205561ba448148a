"""Compile, cache and load the C++ kernels: plain `extern "C"` functions, built by g++ and called through ctypes.

One shared library per op and instruction set, kept in the user's cache directory under a name that hashes the sources,
the flags, the CPU and torch's OpenMP runtime. The instruction set is chosen when a process first calls a kernel.
Without a working compiler the reference path serves, and one warning says so.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
import time
import warnings
from collections.abc import Callable, Hashable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import cast

import filelock
import platformdirs
import torch

ROOT = Path(__file__).parent
OPS = tuple(sorted(path.parent.name for path in ROOT.glob("*/cpu.cpp")))
FLAGS = ("-O3", "-std=c++17", "-fopenmp", "-fPIC", "-Wno-psabi", "-ffp-contract=fast")
SANITIZERS = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-g", "-O1")
"""Added with $SUITE_KERNEL_SANITIZE; the process then needs libasan preloaded (tests/kernels/test_sanitizers.py)."""
LEVELS = {"amx": "native", "avx512": "native", "avx2": "x86-64-v3", "portable": "x86-64"}
"""Instruction sets, best first, and what `-march` asks for. "amx" and "avx512" add whatever else this CPU has (bf16,
vnni); they differ on processors with a matrix unit, where "avx512" leaves it alone."""

NativeFunction = Callable[..., None]

forced: str | None = None
"""Set by `kernels.backends.serving`: a level, or "off" for no C++ at all."""

# Integers travel as pointers: both are 64 bits in the same registers, and ctypes converts a c_void_p twice as fast.
_C_TYPES = {"p": ctypes.c_void_p, "i": ctypes.c_void_p, "f": ctypes.c_float}


def cache_folder() -> Path:
    """Where the libraries are kept: `inference-suite/kernels` in the user's cache directory."""
    return Path(platformdirs.user_cache_dir("inference-suite")) / "kernels"


def _openmp_runtime() -> list[Path]:
    """The libgomp that torch bundles, if it does: ours must be the same instance, or there are two thread pools."""
    return sorted((Path(torch.__file__).parent / "lib").glob("libgomp*.so*"))[:1]


@functools.cache
def _machine() -> str:
    """The processor and its instruction sets, which `-march=native` depends on."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine() + platform.processor()
    wanted = ("model name", "flags", "Features", "CPU part")
    return "\n".join(sorted({line for line in lines if line.startswith(wanted)}))


def level() -> str:
    """The instruction set that serves: the best this CPU has, unless $SUITE_KERNELS or a check asks for another."""
    wanted = forced or os.environ.get("SUITE_KERNELS") or _best_level()
    if wanted not in (*LEVELS, "off"):
        raise ValueError(f"SUITE_KERNELS={wanted} is no instruction set; known: {', '.join(LEVELS)}, off")
    return wanted


def _best_level() -> str:
    found = torch.backends.cpu.get_cpu_capability()
    if found == "AVX512" and _has_matrix_unit():
        return "amx"
    return {"AVX512": "avx512", "AVX2": "avx2"}.get(found, "portable")


@functools.cache
def multiplies_bf16() -> bool:
    """Whether this CPU multiplies bf16. Where it does not, torch's matmul takes ten times as long as in fp32."""
    return not {"avx512_bf16", "amx_bf16", "bf16"}.isdisjoint(_machine().split())


def _has_matrix_unit() -> bool:
    return "amx_bf16" in _machine().split()


def _target() -> list[str]:
    """The compiler's options for the instruction set."""
    if platform.machine() not in ("x86_64", "AMD64"):
        return ["-march=native"]
    without_unit = level() == "avx512" and _has_matrix_unit()
    return [f"-march={LEVELS[level()]}", *(["-mno-amx-tile", "-mno-amx-bf16", "-mno-amx-int8"] if without_unit else [])]


def _flags() -> tuple[str, ...]:
    return (*FLAGS, *SANITIZERS) if os.environ.get("SUITE_KERNEL_SANITIZE") else FLAGS


def library_path(op: str) -> Path:
    """The file the library of `op` has, or will have, for the instruction set that serves."""
    digest = hashlib.sha256()
    for source in (*sorted(ROOT.rglob("*.h")), ROOT / op / "cpu.cpp"):
        digest.update(source.read_bytes())
    digest.update(repr((_flags(), _target(), _machine(), [path.name for path in _openmp_runtime()])).encode())
    return cache_folder() / f"{op}-{level()}-{digest.hexdigest()[:16]}.so"


def build(op: str) -> Path:
    """Compile the library of `op` unless it is cached. Safe against other processes doing the same."""
    target = library_path(op)
    if target.exists():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(target.with_suffix(".lock")):
        if not target.exists():
            _compile(ROOT / op / "cpu.cpp", target)
    return target


def _compile(source: Path, target: Path) -> None:
    compiler = shutil.which("g++")
    if compiler is None:
        raise FileNotFoundError("no C++ compiler (g++) was found")
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        unit, library = Path(folder) / "unit.o", Path(folder) / "library.so"
        _run([compiler, *_flags(), *_target(), f"-I{ROOT}", "-c", str(source), "-o", str(unit)])
        # Linked against torch's own libgomp by path; -fopenmp here would name the system's one.
        openmp = [str(path) for path in _openmp_runtime()] or ["-fopenmp"]
        sanitizers = [flag for flag in _flags() if flag.startswith("-fsanitize")]
        _run([compiler, "-shared", *sanitizers, str(unit), *openmp, "-o", str(library)])
        os.replace(library, target)


def _run(command: list[str]) -> None:
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    if finished.returncode:
        raise RuntimeError(f"{command[0]} failed: {finished.stderr.strip()[-2000:]}")


_warned = False


def _warn_once(reason: str) -> None:
    global _warned
    if not _warned:
        _warned = True
        warnings.warn(f"C++ kernels are off, the slow reference path serves: {reason}", RuntimeWarning, stacklevel=4)


@functools.cache
def load(op: str) -> ctypes.CDLL | None:
    """The library of `op`, built if needed; None if C++ is off, or impossible (and one warning per process)."""
    if level() == "off":
        return None
    try:
        return ctypes.CDLL(str(build(op)))
    except (OSError, RuntimeError) as error:
        _warn_once(str(error))
        return None


_tables: list[Functions] = []


def forget() -> None:
    """Makes every op look its C functions up again."""
    load.cache_clear()
    for table in _tables:
        table.clear()


class Functions(dict[Hashable, NativeFunction | None]):
    """The C functions of one op by key (usually dtypes); the first look-up loads them, later ones are dict look-ups.

    None for a key without a kernel, and for all keys without a library.
    `signature` has one letter per argument: p pointer, i int64, f float.
    """

    def __init__(self, op: str, signature: str, names: Mapping[Hashable, str]) -> None:
        super().__init__()
        self.op, self.signature, self.names = op, signature, names
        _tables.append(self)

    def __missing__(self, key: Hashable) -> NativeFunction | None:
        library = load(self.op) if key in self.names else None
        self[key] = None if library is None else self._bind(library, self.names[key])
        return self[key]

    def _bind(self, library: ctypes.CDLL, name: str) -> NativeFunction:
        function = getattr(library, name)
        function.argtypes = [_C_TYPES[letter] for letter in self.signature]
        function.restype = None
        return cast(NativeFunction, function)


def main() -> None:
    """Build every library; print where it is and how long it took."""

    def timed(op: str) -> str:
        start = time.perf_counter()
        path = build(op)
        return f"{op:20s} {time.perf_counter() - start:5.1f} s  {path}"

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for line in pool.map(timed, OPS):
            print(line)


if __name__ == "__main__":
    main()
