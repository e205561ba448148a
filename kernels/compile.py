"""Compiles the Triton kernels ahead of time, with no GPU, and reads from the machine code what each one needs.

Registers, spills and tensor-core instructions are those of the code itself: `ptxas -v` for NVIDIA, the metadata of the
code object for AMD. Occupancy is a bound: how many of a processor's threads fit at once.
"""

from __future__ import annotations

import importlib
import multiprocessing
import re
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kernels.build import OPS

if TYPE_CHECKING:
    from kernels.jit import Variant

WORKERS = 2


@dataclass(frozen=True)
class Target:
    """A GPU architecture, and what one of its processors (SM, CU) has.

    NVIDIA: CUDA programming guide, table of compute capabilities. AMD: CDNA 3 ISA guide; a CU has four SIMDs of eight
    waves, whose 512 vector registers per lane the waves share.
    """

    backend: str
    architecture: int | str
    warp: int
    registers: int
    threads: int
    shared_bytes: int
    shared_bytes_per_block: int
    most_blocks: int


TARGETS = {
    "sm_80": Target("cuda", 80, 32, 65536, 2048, 164 << 10, 163 << 10, 32),
    "sm_90": Target("cuda", 90, 32, 65536, 2048, 228 << 10, 227 << 10, 32),
    "sm_100": Target("cuda", 100, 32, 65536, 2048, 228 << 10, 227 << 10, 32),
    "gfx942": Target("hip", "gfx942", 64, 4 * 512 * 64, 2048, 64 << 10, 64 << 10, 32),
}
RESERVED_SHARED_BYTES = 1024
"""Of each block, by CUDA itself."""


@dataclass(frozen=True)
class Compiled:
    """One kernel with one configuration on one target. `problems` says why it must not be used as it is."""

    op: str
    kernel: str
    target: str
    registers: int
    spills: int
    shared_bytes: int
    threads: int
    occupancy: float
    limited_by: str
    dot: bool
    tensor_core: bool
    configuration: dict[str, int]
    problems: tuple[str, ...]


def variants_of(op: str) -> list[Variant]:
    """The configurations of an op's Triton kernels; none if it has no such kernel."""
    if find_spec(f"kernels.{op}.triton") is None:
        return []
    found: list[Variant] = importlib.import_module(f"kernels.{op}.triton").variants()
    return found


def compile_all(ops: Sequence[str] = OPS, targets: Sequence[str] = tuple(TARGETS)) -> Iterator[Compiled]:
    """Every configuration of every op on every target, in the order in which they are done."""
    jobs = [(op, i, target) for op in ops for i in range(len(variants_of(op))) for target in targets]
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(WORKERS, mp_context=context) as pool:
        futures = [pool.submit(compile_one, *job) for job in jobs]
        try:
            yield from (future.result() for future in as_completed(futures))
        finally:
            pool.shutdown(cancel_futures=True)


def compile_one(op: str, index: int, target: str) -> Compiled:
    """The `index`-th configuration of an op."""
    return compile_variant(op, variants_of(op)[index], target)


def compile_variant(op: str, variant: Variant, name: str) -> Compiled:
    """One configuration on one target; a compiler's refusal is a problem like any other."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    target = TARGETS[name]
    source = ASTSource(variant.kernel, variant.signature, variant.constants)
    try:
        compiled = triton.compile(
            source,
            target=GPUTarget(target.backend, target.architecture, target.warp),
            options={"num_warps": variant.num_warps, "num_stages": variant.num_stages},
        )
    except Exception as error:  # what the compiler raises depends on the pass that gave up
        problem = f"does not compile: {str(error).splitlines()[0] if str(error) else type(error).__name__}"
        empty = (0, 0, 0, 0, 0.0, "nothing", False, False)
        return Compiled(op, variant.name, name, *empty, variant.constants, (problem,))
    registers, spills = _machine_code(compiled.asm, target)
    return _judged(op, variant, name, compiled, registers, spills)


def _judged(op: str, variant: Variant, name: str, compiled: Any, registers: int, spills: int) -> Compiled:
    target, threads = TARGETS[name], variant.num_warps * TARGETS[name].warp
    shared = int(compiled.metadata.shared)
    share, limit = occupancy(target, registers, shared, threads)
    dot, tensor_core = "tt.dot" in compiled.asm["ttir"], uses_tensor_cores(compiled.asm)
    problems = []
    if spills:
        problems.append(f"spills {spills} bytes or registers")
    if shared > target.shared_bytes_per_block:
        problems.append(f"needs {shared} bytes of shared memory, a block has {target.shared_bytes_per_block}")
    if dot and not tensor_core:
        problems.append("multiplies matrices without tensor-core instructions")
    return Compiled(
        op=op,
        kernel=variant.name,
        target=name,
        registers=registers,
        spills=spills,
        shared_bytes=shared,
        threads=threads,
        occupancy=share,
        limited_by=limit,
        dot=dot,
        tensor_core=tensor_core,
        configuration={**variant.constants, "num_warps": variant.num_warps, "num_stages": variant.num_stages},
        problems=tuple(problems),
    )


def _machine_code(asm: dict[str, Any], target: Target) -> tuple[int, int]:
    if target.backend == "hip":
        return amd_usage(asm["amdgcn"])
    return nvidia_usage(_ptxas(asm["ptx"], int(target.architecture)))


def _ptxas(ptx: str, capability: int) -> str:
    """What `ptxas -v` says about the code, assembled for the architecture the code itself names."""
    from triton.backends.nvidia.compiler import get_ptxas

    named = re.search(r"^\.target (\w+)", ptx, re.MULTILINE)
    architecture = named[1] if named else f"sm_{capability}"
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "kernel.ptx"
        file.write_text(ptx)
        command = [
            get_ptxas(capability).path,
            "-v",
            f"--gpu-name={architecture}",
            str(file),
            "-o",
            str(file.with_suffix(".cubin")),
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    return done.stdout + done.stderr


def nvidia_usage(report: str) -> tuple[int, int]:
    """Registers per thread and bytes spilt (stores and loads), from the report of `ptxas -v`."""
    registers = max((int(count) for count in re.findall(r"Used (\d+) registers", report)), default=0)
    return registers, sum(int(count) for count in re.findall(r"(\d+) bytes spill", report))


def amd_usage(code: str) -> tuple[int, int]:
    """Vector registers per lane and what is spilt to memory, from the metadata at the end of AMD assembly.

    Scalar registers that do not fit are kept in lanes of vector registers, which are counted: nothing is stored.
    """

    def largest(field: str) -> int:
        return max((int(count) for count in re.findall(rf"\.{field}:\s+(\d+)", code)), default=0)

    return largest("vgpr_count"), largest("vgpr_spill_count") + largest("private_segment_fixed_size")


def uses_tensor_cores(asm: dict[str, Any]) -> bool:
    """Whether matrix instructions are in the code: mma.sync, wgmma, tcgen05 (NVIDIA) or v_mfma (AMD)."""
    if "amdgcn" in asm:
        return "v_mfma_" in asm["amdgcn"]
    return re.search(r"\b(mma\.sync|wgmma\.mma_async|tcgen05\.mma)", asm["ptx"]) is not None


def occupancy(target: Target, registers: int, shared: int, threads: int) -> tuple[float, str]:
    """Share of a processor's threads that can be resident at once, at most 1, and what sets the limit."""
    granule = 8  # registers are handed out in eights to each thread of a warp
    own = max(granule, -(-registers // granule) * granule)
    limits = {
        "threads": target.threads // threads,
        "blocks": target.most_blocks,
        "registers": target.registers // (own * threads),
        "shared memory": target.shared_bytes
        // (shared + RESERVED_SHARED_BYTES if target.backend == "cuda" else max(shared, 1)),
    }
    limit = min(limits, key=lambda name: limits[name])
    return min(1.0, limits[limit] * threads / target.threads), limit
