"""Server-sent events of an OpenAI-compatible stream: bytes in, events with their output, tokens and usage out."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any


class StreamError(Exception):
    """The server said inside the stream that it failed, or the stream broke off."""


@dataclass
class Answer:
    """What a stream has said so far: for every event with output its arrival, tokens as far as told, text and ids.

    `token_ids` are empty where the server gives none (vLLM does for `return_token_ids`), and so are `logprobs`.
    """

    arrivals: list[float] = field(default_factory=list)
    counts: list[int | None] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    token_ids: list[tuple[int, ...]] = field(default_factory=list)
    logprobs: list[tuple[float, ...]] = field(default_factory=list)
    n_in: int | None = None
    n_out: int | None = None
    finished: bool = False
    finish_reason: str | None = None
    _rest: bytes = b""

    def feed(self, block: bytes, now: float) -> None:
        """Takes bytes as they arrived at `now`, cut anywhere; `StreamError` if they report a failure."""
        self._rest += block
        for data in self._complete_events():
            if data == b"[DONE]":
                self.finished = True
            else:
                self._take(json.loads(data), now)

    def _complete_events(self) -> Iterator[bytes]:
        *lines, self._rest = self._rest.split(b"\n")
        for line in lines:
            if line.startswith(b"data:"):
                yield line[5:].strip()

    def _take(self, event: dict[str, Any], now: float) -> None:
        if "error" in event:
            raise StreamError(f"server: {_message(event['error'])}")
        tokens = self._new_tokens(event.get("usage"))
        choices = event.get("choices")
        if not choices:
            return
        choice = choices[0]
        self.finish_reason = choice.get("finish_reason") or self.finish_reason
        self.finished |= self.finish_reason is not None
        text, ids = _text(choice), tuple(choice.get("token_ids") or ())
        if text or tokens or ids or not (tokens == 0 or _is_announcement(choice)):
            self.arrivals.append(now)
            self.counts.append(tokens)
            self.texts.append(text)
            self.token_ids.append(ids)
            self.logprobs.append(tuple((choice.get("logprobs") or {}).get("token_logprobs") or ()))

    def _new_tokens(self, usage: dict[str, Any] | None) -> int | None:
        """Tokens since the last event that told; None where this one does not tell."""
        if not usage:
            return None
        before = self.n_out or 0
        self.n_in, self.n_out = usage.get("prompt_tokens", self.n_in), usage.get("completion_tokens", self.n_out)
        return (self.n_out or 0) - before

    @property
    def text(self) -> str:
        """The whole answer."""
        return "".join(self.texts)

    @property
    def has_ids(self) -> bool:
        """Whether the server names its tokens; an answer without output has nothing to name."""
        return any(self.token_ids) or not self.texts

    @property
    def tokens_per_event(self) -> tuple[int, ...] | None:
        """Tokens of every event with output; None unless the server told them all."""
        known = [count for count in self.counts if count is not None]
        return tuple(known) if known and len(known) == len(self.counts) else None


def _text(choice: dict[str, Any]) -> str:
    delta = choice.get("delta")
    if delta is None:
        return choice.get("text") or ""
    return (delta.get("reasoning_content") or delta.get("reasoning") or "") + (delta.get("content") or "")


def _is_announcement(choice: dict[str, Any]) -> bool:
    """An event without text that names the role or the reason of the end: no token, and no first token either."""
    return choice.get("finish_reason") is not None or "role" in (choice.get("delta") or {})


def _message(error: Any) -> str:
    return str(error.get("message", error) if isinstance(error, dict) else error)[:200]
