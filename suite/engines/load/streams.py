"""What the null server plays: streams of canned tokens, with the faults and habits of real servers."""

from __future__ import annotations

import json
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

WORDS = (" the", " river", " is", " wide", " and", " we", " walk", " along")


class Stream(BaseModel):
    """How one "model" of the null server answers. All times are seconds.

    `pauses` are waited before the events in turn, and `gap_s` before those after them. `write_bytes` cuts the body into
    TCP writes of that size, wherever that falls. `fail_after` events the server reports an error, or (`drop`) hangs up.
    At most `slots` requests are answered at a time, the others wait. `freeze_at` is the request at which the whole
    server stops for `freeze_s`, once.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    words: tuple[str, ...] = WORDS
    tokens_per_event: int = Field(default=1, ge=1)
    usage: Literal["end", "each", "none"] = "end"
    pauses: tuple[float, ...] = ()
    gap_s: float = 0.0
    write_bytes: int | None = Field(default=None, ge=1)
    status: int = 200
    fail_after: int | None = None
    drop: bool = False
    slots: int | None = Field(default=None, ge=1)
    freeze_at: int | None = None
    freeze_s: float = 1.0
    rejects_usage_options: bool = False

    @property
    def instant(self) -> bool:
        """Whether everything is sent at once, in one write."""
        return not (self.pauses or self.gap_s or self.write_bytes or self.fail_after is not None)

    def pause(self, event: int) -> float:
        """Seconds before event number `event`."""
        return self.pauses[event] if event < len(self.pauses) else self.gap_s

    def events(self, tokens: int, prompt_tokens: int, chat: bool) -> list[bytes]:
        """The server-sent events of an answer of `tokens` tokens, with the usage and `[DONE]` at the end."""
        found: list[bytes] = [_role()] if chat else []
        for start in range(0, tokens, self.tokens_per_event):
            stop = min(start + self.tokens_per_event, tokens)
            text = "".join(self.words[i % len(self.words)] for i in range(start, stop))
            usage = _usage(prompt_tokens, stop) if self.usage == "each" else None
            found.append(_event(_choice(text, "length" if stop == tokens else None, chat), usage))
        if self.usage != "none":
            found.append(_event([], _usage(prompt_tokens, tokens)))
        return [*found, b"data: [DONE]\n\n"]


def _choice(text: str, finish: str | None, chat: bool) -> list[dict[str, Any]]:
    content: dict[str, Any] = {"delta": {"content": text}} if chat else {"text": text}
    return [{"index": 0, **content, "finish_reason": finish}]


def _role() -> bytes:
    return _event([{"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}], None)


def _usage(prompt_tokens: int, tokens: int) -> dict[str, int]:
    return {"prompt_tokens": prompt_tokens, "completion_tokens": tokens, "total_tokens": prompt_tokens + tokens}


def _event(choices: list[dict[str, Any]], usage: dict[str, int] | None) -> bytes:
    document: dict[str, Any] = {"id": "null", "object": "text_completion", "choices": choices}
    if usage is not None:
        document["usage"] = usage
    return b"data: " + json.dumps(document, ensure_ascii=False).encode() + b"\n\n"
