"""The figures of an estimate by name, at one point or at all points of a sweep at once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from analysis.hardware import Hardware
from analysis.roofline.estimate import Phases, Setup, joules, memory, price_per_million, seconds
from suite.cost import Count

Figures = dict[str, Count | None]
"""None where nothing is known, or nothing was asked."""


@dataclass(frozen=True)
class Usage:
    """What a model is used for: `generate` tokens behind the prompt, `accepted` of them per step, at a device's price.

    `device` has the power, the energy constants and the memory of the machine where they are known.
    """

    device: Hardware | None = None
    generate: int = 0
    accepted: float = 1.0
    price_per_hour: float | None = None


def summary(setup: Setup, usage: Usage, phases: Phases, batch: Count, tokens: Count) -> Figures:
    """Time, rate, memory on a device, energy per generated token, price per million tokens read and written."""
    first, step = setup.prefill_seconds(phases, batch), setup.round_seconds(phases)
    rate, held = setup.tokens_per_second(phases, batch, usage.accepted), memory(setup, phases, batch, tokens)
    chat = setup.chat_seconds(batch, tokens, usage.generate, usage.accepted) if usage.generate else None
    room = usage.device.memory_gb if usage.device else None
    return {
        "batch": batch,
        "seqlen": tokens,
        "prefill_ms": 1e3 * first,
        "step_ms": 1e3 * step,
        "break_even_tokens_per_step": step / seconds(phases["decode"]) if "verify" in phases else None,
        "tokens_per_s": rate,
        "chat_s": chat,
        "memory_gb": held.total / 1e9,
        "weights_gb": held.weights / 1e9,
        "kv_cache_gb": held.kv_cache / 1e9,
        "fits": None if room is None else np.less_equal(held.total, room * 1e9),
        **_energy(setup, usage, phases, rate),
        **_price(setup, usage, batch * tokens / first, rate),
    }


def _energy(setup: Setup, usage: Usage, phases: Phases, rate: Count) -> Figures:
    """Joules per generated token, and a bound on it: the devices' rated power all the time."""
    times = [*phases.get("verify", phases["decode"]), *phases.get("draft", [])]
    devices, rated = setup.parallel.devices, usage.device.tdp_w if usage.device else None
    spent = joules(usage.device, times) if usage.device else None
    return {
        "joules_per_token": None if spent is None else devices * spent / (rate * setup.round_seconds(phases)),
        "joules_per_token_at_rated_power": None if rated is None else devices * rated / rate,
    }


def _price(setup: Setup, usage: Usage, read: Count, written: Count) -> Figures:
    hour, devices = usage.price_per_hour, setup.parallel.devices
    rates = {"price_per_million_in": read, "price_per_million_out": written}
    return {name: None if hour is None else price_per_million(hour, devices, rate) for name, rate in rates.items()}


def rows(figures: Mapping[str, Count | None], points: int) -> list[dict[str, Any]]:
    """One dictionary of plain numbers per point."""
    spread = {
        name: [None] * points if value is None else np.broadcast_to(value, (points,)).tolist()
        for name, value in figures.items()
    }
    return [dict(zip(spread, values, strict=True)) for values in zip(*spread.values(), strict=True)]
