"""The server under load: its address, and what it understands. Asked once before the load starts."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass, replace
from typing import Any, Literal

import aiohttp

from suite.errors import InputError

Endpoint = Literal["completions", "chat"]
USAGE_OPTIONS: tuple[dict[str, bool], ...] = (
    {"include_usage": True, "continuous_usage_stats": True},
    {"include_usage": True},
    {},
)
"""`stream_options` from the best to none: tokens of every event (vLLM, SGLang), tokens at the end, nothing."""
PROBE_TIMEOUT_S = 60.0


@dataclass(frozen=True)
class Target:
    """An OpenAI-compatible server. `usage_options` are the `stream_options` it accepts."""

    base_url: str
    model: str = ""
    endpoint: Endpoint = "completions"
    usage_options: tuple[tuple[str, bool], ...] = ()

    @property
    def url(self) -> str:
        """Where requests are posted."""
        return f"{root(self.base_url)}/v1/{'chat/completions' if self.endpoint == 'chat' else 'completions'}"

    def body(self, text: str, history: list[dict[str, str]], max_tokens: int, seed: int) -> bytes:
        """A greedy streaming request for exactly `max_tokens` tokens, where the server knows `ignore_eos`."""
        fields: dict[str, Any] = {
            "model": self.model,
            "max_tokens": max_tokens,
            "temperature": 0.0,
            "seed": seed,
            "stream": True,
            "ignore_eos": True,
        }
        if self.usage_options:
            fields["stream_options"] = dict(self.usage_options)
        if self.endpoint == "chat":
            fields["messages"] = messages(text, history)
        else:
            fields["prompt"] = joined(text, history)
        return json.dumps(fields).encode()


def messages(text: str, history: list[dict[str, str]]) -> list[dict[str, str]]:
    """A turn after those before it, as the chat endpoint takes them."""
    return [*history, {"role": "user", "content": text}]


def joined(text: str, history: list[dict[str, str]]) -> str:
    """A turn after those before it, as one prompt for the completions endpoint."""
    return "".join(turn["content"] + "\n" for turn in history) + text


def answered(text: str, history: list[dict[str, str]], answer: str) -> list[dict[str, str]]:
    """The history of the turn that follows."""
    return [*messages(text, history), {"role": "assistant", "content": answer}]


def root(base_url: str) -> str:
    """The address without a trailing `/` or `/v1`: both spellings are common."""
    return base_url.rstrip("/").removesuffix("/v1")


def probe(target: Target) -> Target:
    """The target with its model's name and the best usage options it accepts; `InputError` if it does not answer."""
    try:
        return asyncio.run(_probe(target))
    except (aiohttp.ClientError, OSError, ValueError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"no OpenAI-compatible server answers at {target.base_url} ({reason}).") from error


async def _probe(target: Target) -> Target:
    timeout = aiohttp.ClientTimeout(total=PROBE_TIMEOUT_S)
    async with aiohttp.ClientSession(timeout=timeout) as session:
        names = await _models(session, target.base_url)
        if target.model and names and target.model not in names:
            raise InputError(f"the server has no model {target.model!r}; it serves: {', '.join(names)}.")
        if not target.model and not names:
            raise InputError(f"the server at {target.base_url} lists no models; name one with --served-model.")
        return await _accepted(session, replace(target, model=target.model or names[0]))


async def _models(session: aiohttp.ClientSession, base_url: str) -> list[str]:
    async with session.get(f"{root(base_url)}/v1/models") as response:
        if response.status != 200:
            return []
        document = await response.json(content_type=None)
        return [str(entry["id"]) for entry in document.get("data", [])]


async def _accepted(session: aiohttp.ClientSession, target: Target) -> Target:
    """Sends a one-token request with each set of options until one is not refused as a bad request."""
    answer = ""
    for options in USAGE_OPTIONS:
        tried = replace(target, usage_options=tuple(options.items()))
        body = tried.body("ready?", [], 1, 0)
        async with session.post(tried.url, data=body, headers={"Content-Type": "application/json"}) as response:
            answer = f"HTTP {response.status}: {(await response.text())[:200]}"
            if response.status == 200:
                return tried
            if response.status not in (400, 422):
                break
    raise InputError(f"{target.url} refuses a request for one token ({answer}).")
