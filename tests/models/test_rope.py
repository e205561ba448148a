"""Rotary tables: made rarely, as decoding waits for them."""

from __future__ import annotations

import pytest
import torch

from suite.models.rope import Rope
from tests.methods.support import CONFIG


@pytest.mark.parametrize("prompt", [1, 512, 600, 1024])
def test_the_tokens_behind_a_prompt_make_no_new_tables(prompt):
    """Tables of just the prompt's length would be made again, twice as long, for the first token after it."""
    rope = Rope(CONFIG.rope, CONFIG.head_dim)
    made, frames = 0, set()
    for length in range(prompt, prompt + 40):
        tables = rope.tables(length)
        made += tables[0].data_ptr() not in frames
        frames.add(tables[0].data_ptr())
        assert len(tables[0]) >= length
    assert made == 1


def test_longer_tables_begin_with_the_shorter_ones():
    rope = Rope(CONFIG.rope, CONFIG.head_dim)
    short = [table.clone() for table in rope.tables(100)]
    long = rope.tables(3000)
    assert all(torch.equal(a, b[: len(a)]) for a, b in zip(short, long, strict=True))
