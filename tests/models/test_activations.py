"""What adapter recipes learn from: the model's own text, or a user's, and what its layers saw."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from suite.errors import InputError
from suite.models.recipes import activations
from suite.models.recipes.activations import read_from, record, written_by
from suite.models.rope import Rope, rotate
from tests.methods.support import CONFIG, tiny_model


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(activations, "ANSWER_TOKENS", 40)


def test_the_same_seed_writes_the_same_text(short: None) -> None:
    first, again, other = (written_by(tiny_model(), 3, 50, seed, lambda text: None) for seed in (0, 0, 1))
    assert first.windows.shape == (3, 50)
    assert torch.equal(first.windows, again.windows)
    assert first.source == again.source
    assert not torch.equal(first.windows, other.windows)


def test_a_users_text_is_cut_into_windows(tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_text("abcdefghij" * 10)
    corpus = read_from(tiny_model(), path, 99, 30)
    assert corpus.windows.shape == (3, 30)
    assert tiny_model().tokenizer.decode(corpus.windows[1].tolist()) == ("abcdefghij" * 10)[30:60]


@pytest.mark.parametrize("content", [b"too short", b"\xff\xfe\x00"])
def test_text_that_cannot_be_used_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "text.txt"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"text\.txt"):
        read_from(tiny_model(), path, 2, 30)


def test_recorded_queries_and_keys_are_the_rotated_ones() -> None:
    model, ids = tiny_model(), torch.randint(0, 128, (40,))
    found = record(model, ids, (0, 2))
    assert set(found.queries) == set(found.keys) == {0, 2}
    layer = model.decoder.layers[0]
    x = layer.attention_norm(model.decoder.embedding(ids))
    q, k, _ = layer.attention.qkv(x).split(layer.attention.sizes, dim=-1)
    cos, sin = Rope(CONFIG.rope, CONFIG.head_dim).tables(40)
    for raw, kept in ((q, found.queries[0]), (k, found.keys[0].transpose(0, 1))):
        expected = rotate(raw.unflatten(-1, (-1, CONFIG.head_dim)), cos[:40, None], sin[:40, None])
        torch.testing.assert_close(kept, expected, atol=1e-5, rtol=1e-4)
    assert found.hidden.shape == (40, CONFIG.hidden)


def test_texts_are_lines_of_their_own(short: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(activations, "write", lambda *args: iter([[97] * 20, [98] * 20]))
    written = written_by(tiny_model(), 1, 42, 0, lambda text: None).windows[0].tolist()
    assert tiny_model().tokenizer.decode(written) == "a" * 20 + "\n" + "b" * 20 + "\n"
