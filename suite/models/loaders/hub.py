"""Models from the Hugging Face hub: the files are fetched into the hub's own cache, then read as a directory."""

from __future__ import annotations

from pathlib import Path

from suite.errors import InputError

FILES = ["*.safetensors", "*.safetensors.index.json", "config.json", "generation_config.json"]
TOKENIZER_FILES = ["tokenizer.json", "tokenizer_config.json", "chat_template.jinja"]


def fetch(repository: str) -> Path:
    """The local copy of the newest revision of `repository` ("org/name"); no code of it is ever run."""
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HFValidationError
    except ImportError as error:
        raise InputError(
            f"{repository!r} is a hub id; install the extra first: pip install 'inference-suite[hub]'."
        ) from error
    try:
        return Path(snapshot_download(repository, allow_patterns=FILES + TOKENIZER_FILES))
    except (OSError, HFValidationError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InputError(
            f"{repository!r} could not be fetched from the hub ({reason}); check the name and the network, "
            "or pass the path of a local copy."
        ) from error
