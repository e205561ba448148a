from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers.utils import logging

from suite.models.language_model import LanguageModel
from suite.models.loaders import load_model
from tests.models.small import random_model, save, tiny_tokenizer


@pytest.fixture(autouse=True, scope="session")
def _quiet() -> None:
    """One thread: these models are too small for a team, and the machine may be shared."""
    torch.set_num_threads(1)
    logging.disable_progress_bar()


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole Hugging Face directory: a random Llama and a byte-level tokenizer with a chat template."""
    directory = tmp_path_factory.mktemp("checkpoint")
    save(random_model("llama", vocab_size=300, eos_token_id=1), directory)
    tiny_tokenizer().save(directory)
    return directory


@pytest.fixture(scope="session")
def tiny(checkpoint: Path) -> LanguageModel:
    """The checkpoint loaded in fp32."""
    return load_model(str(checkpoint), "fp32")
