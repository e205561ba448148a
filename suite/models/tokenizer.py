"""`HFTokenizer`: a `tokenizers` tokenizer and a chat template, from a Hugging Face directory or a GGUF file.

`transformers` is needed for GGUF only, and imported there: it costs seconds, `tokenizer.json` loads in milliseconds.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Tokenizer
from tokenizers.pre_tokenizers import ByteLevel, Digits
from tokenizers.pre_tokenizers import Sequence as PreTokenizers

from suite.errors import InputError

SPECIAL_TOKENS = ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token")


class HFTokenizer:
    """Implements `suite.models.language_model.Tokenizer`. `special` are the named special tokens a template may use."""

    def __init__(self, backend: Tokenizer, template: str | None, special: Mapping[str, str]) -> None:
        backend.no_truncation()
        backend.no_padding()
        self.backend = backend
        self.template = template
        self.special = dict(special)

    @classmethod
    def from_directory(cls, directory: Path) -> HFTokenizer:
        """Reads tokenizer.json, tokenizer_config.json and chat_template.jinja; only the first one must be there."""
        path = directory / "tokenizer.json"
        if not path.is_file():
            raise InputError(
                f"{directory} has no tokenizer: tokenizer.json is missing "
                "(save the model's fast tokenizer there with save_pretrained)."
            )
        try:
            backend = Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises bare Exception
            raise InputError(f"{path} is not a readable tokenizer: {error}.") from error
        document = _read_json(directory / "tokenizer_config.json")
        special = {name: _content(document[name]) for name in SPECIAL_TOKENS if document.get(name)}
        return cls(backend, _template(directory, document), special)

    @classmethod
    def from_gguf(cls, path: Path, pre_tokenizer: str = "") -> HFTokenizer:
        """The tokenizer stored in a GGUF file; `pre_tokenizer` is its `tokenizer.ggml.pre`."""
        from transformers import AutoTokenizer

        try:
            loaded = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
        except Exception as error:  # transformers raises whatever a broken vocabulary happens to trip
            reason = " ".join(str(error).split())[:200]
            raise InputError(f"{path} has no tokenizer that transformers can read: {reason}.") from error
        backend: Tokenizer = loaded.backend_tokenizer
        if pre_tokenizer == "smollm":
            # SmolLM splits digits before the byte-level rule; transformers' GGUF table does not know that.
            backend.pre_tokenizer = PreTokenizers([Digits(individual_digits=True), ByteLevel(add_prefix_space=False)])
        special = {name: value for name, value in loaded.special_tokens_map.items() if isinstance(value, str)}
        return cls(backend, loaded.chat_template, special)

    def save(self, directory: Path) -> None:
        """Writes the files `from_directory` and `transformers` read."""
        self.backend.save(str(directory / "tokenizer.json"))
        document = {"tokenizer_class": "PreTrainedTokenizerFast", **self.special}
        (directory / "tokenizer_config.json").write_text(json.dumps(document, indent=2) + "\n")
        if self.template is not None:
            (directory / "chat_template.jinja").write_text(self.template)

    def encode(self, text: str) -> list[int]:
        """Ids of a piece of text, without special tokens around it."""
        ids: list[int] = self.backend.encode(text, add_special_tokens=False).ids
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids; special tokens leave no trace."""
        return str(self.backend.decode(list(ids), skip_special_tokens=True))

    def prompt(self, text: str, chat: bool) -> list[int]:
        """Ids of a whole prompt: one user turn and the start of the answer, or the text after its begin token."""
        if chat and self._compiled is not None:
            return self.conversation([{"role": "user", "content": text}])
        ids: list[int] = self.backend.encode(text, add_special_tokens=True).ids
        return ids

    def conversation(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        """Ids of a conversation and the start of the next answer; `InputError` without a usable chat template."""
        if self._compiled is None:
            raise InputError("the tokenizer has no chat template, so it cannot make a prompt of a conversation.")
        try:
            text = self._compiled.render(
                messages=messages, tools=None, documents=None, add_generation_prompt=True, **self.special
            )
        except jinja2.TemplateError as error:
            raise InputError(f"the model's chat template cannot be rendered: {error}.") from error
        return self.encode(text)

    @cached_property
    def _compiled(self) -> jinja2.Template | None:
        if self.template is None:
            return None
        try:
            return _environment().from_string(self.template)
        except jinja2.TemplateError as error:
            raise InputError(f"the model's chat template cannot be parsed: {error}.") from error


class _Generation(Extension):
    """`{% generation %}` marks the assistant's part for training; here it passes its body through."""

    tags = {"generation"}  # noqa: RUF012 - declared so by jinja

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _environment() -> ImmutableSandboxedEnvironment:
    """The environment `transformers` renders chat templates in, sandboxed: a template is untrusted code.

    One difference: `strftime_now` stays undefined, so that a prompt does not change with the date of the run.
    """
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, "jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    return environment


def _tojson(value: object, indent: int | None = None) -> str:
    return json.dumps(value, ensure_ascii=False, indent=indent)


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def _content(token: Any) -> str:
    """A special token is written as a string, or as an object with its flags."""
    return str(token["content"] if isinstance(token, dict) else token)


def _template(directory: Path, document: Mapping[str, Any]) -> str | None:
    path = directory / "chat_template.jinja"
    if path.is_file():
        return path.read_text(encoding="utf-8")
    template = document.get("chat_template")
    if isinstance(template, list):  # several named templates
        return next((str(entry["template"]) for entry in template if entry["name"] == "default"), None)
    return template


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path} is not valid JSON: {error}.") from error
    return document if isinstance(document, dict) else {}
