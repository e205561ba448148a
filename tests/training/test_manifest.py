"""Reading a checkpoint back: the manifest and the sha256 of its files."""

import json

import pytest

from suite.errors import InputError
from suite.models.checkpoints.manifest import load_manifest
from suite.models.trainer import train
from tests.training.toy import PLAN, Recorder, ToyRecipe


@pytest.fixture
def checkpoint(tmp_path):
    train(ToyRecipe(scripted=(0.1, 0.2, 0.3)), tmp_path / "toy", Recorder())
    return tmp_path / "toy"


def test_the_manifest_tells_the_whole_run(checkpoint):
    manifest = load_manifest(checkpoint)
    assert (manifest.recipe, manifest.recipe_version, manifest.selection) == ("toy", "1", "the first seed")
    assert manifest.plan == PLAN
    assert manifest.data.name == "normal numbers"
    assert manifest.model == {"parameters": 4}
    assert (manifest.outcome, manifest.steps, manifest.saved_step) == ("finished", 60, 60)
    assert len(manifest.curve) == 3
    assert manifest.figures == {"minus_error": 0.3} == manifest.curve[-1].figures
    assert manifest.wall_s >= 0
    assert manifest.machine["cpu"]
    assert manifest.torch
    assert list(manifest.files) == ["model.safetensors"]


def test_a_changed_file_is_named(checkpoint):
    path = checkpoint / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\x01")
    with pytest.raises(InputError, match=r"model\.safetensors has sha256 .* but its manifest says .*suite train toy"):
        load_manifest(checkpoint)


def test_a_missing_file_is_named(checkpoint):
    (checkpoint / "model.safetensors").unlink()
    with pytest.raises(
        InputError, match=r"model\.safetensors is named in its checkpoint's manifest but cannot be read"
    ):
        load_manifest(checkpoint)


def test_a_directory_without_a_manifest_is_no_checkpoint(tmp_path):
    with pytest.raises(InputError, match=r"is not a checkpoint of `suite train`"):
        load_manifest(tmp_path)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda document: document.pop("recipe"), r"not a valid manifest: recipe: Field required\."),
        (lambda document: document["plan"].pop("seed"), r"not a valid manifest: plan\.seed: "),
    ],
    ids=["no recipe", "no seed"],
)
def test_a_malformed_manifest_names_the_field(checkpoint, edit, message):
    path = checkpoint / "manifest.json"
    document = json.loads(path.read_text())
    edit(document)
    path.write_text(json.dumps(document))
    with pytest.raises(InputError, match=message):
        load_manifest(checkpoint)


def test_a_manifest_that_is_no_json_is_one_sentence(checkpoint):
    (checkpoint / "manifest.json").write_text("{")
    with pytest.raises(InputError, match="is not a valid manifest: the document: Invalid JSON"):
        load_manifest(checkpoint)
