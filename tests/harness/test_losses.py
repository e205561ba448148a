"""Nothing finished is lost to a kill, a full disk or other writers; a damaged file is told apart and left as it is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.harness.losses import Loss, damaged, full_disk, killed, several


@pytest.mark.parametrize("event", [killed, several, full_disk], ids=lambda event: event.__name__)
def test_nothing_finished_is_lost(event: Callable[[Path], Loss], tmp_path: Path) -> None:
    loss = event(tmp_path)
    assert loss.finished >= 20
    assert loss.lost == 0
    assert loss.whole


def test_a_full_disk_is_one_sentence(tmp_path: Path) -> None:
    assert full_disk(tmp_path).told.startswith("suite.errors.InputError: the store")


def test_a_damaged_page_takes_no_more_than_the_units_on_it(tmp_path: Path) -> None:
    loss = damaged(tmp_path)
    assert "is damaged or no results store" in loss.told
    assert 0 < loss.lost <= 2
