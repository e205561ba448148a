"""Building, caching and loading the C++ kernels, and what happens without a compiler."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from kernels import build
from kernels.check import check, main

ROOT = Path(__file__).parents[2]
needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler")

ONE_OPENMP_RUNTIME = """
import torch
from kernels.gemv import gemv
torch.set_num_threads(2)
torch.randn(500, 500) @ torch.randn(500, 500)
gemv(torch.randn(1, 500), torch.randn(500, 500))
libraries = {line.split()[-1] for line in open("/proc/self/maps") if "libgomp" in line or "omp.so" in line}
assert any("gemv-" in line for line in open("/proc/self/maps")), "the kernel is not in use"
print(len({path for path in libraries if "omp" in path.rsplit("/", 1)[-1]}))
"""

FALLBACK = """
import warnings, torch
from kernels.flash_decode import dense_spans, flash_decode
from kernels.gemv import gemv
from kernels.rms_norm import rms_norm
q, keys, values = torch.randn(1, 4, 16), torch.randn(1, 2, 9, 16), torch.randn(1, 2, 9, 16)
x, weight = torch.randn(1, 30), torch.randn(20, 30)
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    y = gemv(x, weight)
    gemv(x.bfloat16(), weight.bfloat16())
    normed = rms_norm(x, torch.ones(30), 1e-6)
    out, _ = flash_decode(q, keys, values, dense_spans([9]), torch.zeros(1).int(), scale=0.25)
peer = torch.nn.functional.scaled_dot_product_attention(q[:, :, None], keys, values, enable_gqa=True)
torch.testing.assert_close(out[0], peer[0, :, 0])
torch.testing.assert_close(y, x @ weight.T)
torch.testing.assert_close(normed, torch.nn.functional.rms_norm(x, (30,), eps=1e-6))
for warning in caught:
    print(warning.category.__name__, warning.filename, warning.message)
"""


def python(code: str, **environment: str) -> str:
    finished = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr
    return finished.stdout


@needs_compiler
@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs /proc")
def test_torch_and_the_kernels_share_one_openmp_runtime() -> None:
    assert python(ONE_OPENMP_RUNTIME).strip() == "1"


def test_without_a_compiler_the_reference_serves_and_one_warning_says_so(tmp_path: Path) -> None:
    lines = python(FALLBACK, PATH="", XDG_CACHE_HOME=str(tmp_path)).splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("RuntimeWarning")
    assert "no C++ compiler (g++) was found" in lines[0]


def test_a_failing_compiler_is_reported_once_with_its_message(tmp_path: Path) -> None:
    compiler = tmp_path / "g++"
    compiler.write_text("#!/bin/sh\necho 'this compiler is broken' >&2\nexit 1\n")
    compiler.chmod(0o755)
    lines = python(FALLBACK, PATH=str(tmp_path), XDG_CACHE_HOME=str(tmp_path / "cache")).splitlines()
    assert len(lines) == 1
    assert "this compiler is broken" in lines[0]
    assert not list(tmp_path.rglob("*.so"))


def test_importing_the_kernels_imports_no_triton_and_builds_nothing(tmp_path: Path) -> None:
    imports = "import sys, kernels.gemv, kernels.rms_norm, kernels.rope, kernels.flash_decode"
    code = f"{imports}; print('triton' in sys.modules)"
    assert python(code, XDG_CACHE_HOME=str(tmp_path)).strip() == "False"
    assert not list(tmp_path.rglob("*.so"))


@needs_compiler
def test_a_library_is_built_once_and_leaves_no_rubbish(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "cache_folder", lambda: tmp_path / "kernels")
    path = build.build("rope")
    built = path.stat().st_mtime_ns
    assert build.build("rope") == path
    assert path.stat().st_mtime_ns == built
    assert {file.suffix for file in path.parent.iterdir()} <= {".so", ".lock"}


def test_the_name_of_a_library_follows_source_flags_and_processor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = build.library_path("rope")
    monkeypatch.setattr(build, "FLAGS", (*build.FLAGS, "-g"))
    other_flags = build.library_path("rope")
    monkeypatch.setenv("SUITE_KERNELS", "portable")
    other_level = build.library_path("rope")
    monkeypatch.setattr(build, "_machine", lambda: "another processor")
    other_machine = build.library_path("rope")
    monkeypatch.setattr(build, "ROOT", shutil.copytree(build.ROOT, tmp_path / "kernels"))
    with (tmp_path / "kernels" / "simd.h").open("a") as source:
        source.write("// changed\n")
    assert len({original, other_flags, other_level, other_machine, build.library_path("rope")}) == 5


@needs_compiler
def test_the_build_command_prints_every_library(capsys: pytest.CaptureFixture[str]) -> None:
    build.main()
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(build.OPS)
    assert all(Path(line.split()[-1]).exists() for line in lines)


def test_an_unknown_instruction_set_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SUITE_KERNELS", "avx9")
    with pytest.raises(
        ValueError, match="SUITE_KERNELS=avx9 is no instruction set; known: amx, avx512, avx2, portable, off"
    ):
        build.level()


def test_a_check_of_no_backend_says_which_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["cpu", "gate"])
    assert ended.value.code == 2
    assert "avx512" in capsys.readouterr().err


@needs_compiler
def test_a_check_of_what_does_not_compile_is_no_check_of_the_reference(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(build, "cache_folder", lambda: tmp_path)
    monkeypatch.setattr(build, "FLAGS", (*build.FLAGS, "-fno-such-flag"))
    with pytest.raises(RuntimeError, match="no-such-flag"):
        next(check("gate", "portable"))
