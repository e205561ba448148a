"""The hardware table: its figures, their sources, and the mistakes the loader refuses."""

from __future__ import annotations

from pathlib import Path

import pytest

from analysis.hardware import (
    Hardware,
    cpu_memory_gb_per_s,
    cpu_peak_tflops,
    hardware_names,
    load_hardware,
    read_hardware,
)
from suite.errors import InputError

GOOD = """
[{name}]
title = "Some device"
source = "S"
bf16_tflops = 312
fp8_tflops = 624
int8_tops = 624
memory_gb = 80
memory_gb_per_s = 2039
{extra}
"""


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "hardware.toml"
    path.write_text(text)
    return path


def test_every_device_of_the_shared_table_is_there() -> None:
    assert len(hardware_names()) == 20
    assert {"a100-sxm-80", "h100-sxm", "h200-sxm", "b200", "mi300x", "tpu-v5e", "xeon-8480plus"} <= set(
        hardware_names()
    )


@pytest.mark.parametrize(
    ("name", "figure", "value"),
    [
        ("a100-sxm-40", "memory_gb_per_s", 1555),
        ("a100-pcie-80", "memory_gb_per_s", 1935),
        ("h100-sxm", "bf16_tflops", 989.4),
        ("h100-pcie", "tdp_w", 350),
        ("h200-sxm", "memory_gb", 141),
        ("b200", "fp4_tflops", 9000),
        ("l40s", "int4_tops", None),
        ("rtx-4090", "fp16_accumulate_tflops", 330.3),
        ("rtx-3090", "fp8_tflops", None),
        ("mi300x", "memory_gb_per_s", 5300),
        ("tpu-v5e", "tdp_w", None),
        ("jetson-agx-orin-64", "dla_int8_tops", 52.5),
        ("apple-m4-max", "memory_gb_per_s", 546),
    ],
)
def test_figures(name: str, figure: str, value: float | None) -> None:
    assert getattr(load_hardware(name), figure) == value


def test_a_figure_knows_its_source() -> None:
    pcie = load_hardware("h100-pcie")
    assert pcie.figure_source("fp32_tflops") == "S"
    assert pcie.figure_source("bf16_tflops") == "M"


@pytest.mark.parametrize("name", hardware_names())
def test_one_direction_of_a_link_is_half(name: str) -> None:
    device = load_hardware(name)
    both = device.link_gb_per_s_bidirectional
    assert device.link_gb_per_s == (None if both is None else both / 2)


def test_a_processor_needs_a_clock_for_its_peak() -> None:
    xeon = load_hardware("xeon-8480plus")
    assert xeon.peak_tflops("bf16") is None
    assert xeon.peak_tflops("bf16", clock_ghz=2.0) == pytest.approx(56 * 1024 * 2.0 / 1e3)
    assert xeon.peak_tflops("int8", clock_ghz=2.0) == pytest.approx(56 * 2048 * 2.0 / 1e3)
    assert xeon.peak_tflops("fp8", clock_ghz=2.0) is None


def test_generic_processor_formulas() -> None:
    assert cpu_peak_tflops(cores=2, lanes=16, fma_units=2, clock_ghz=2.5) == pytest.approx(0.32)
    assert cpu_peak_tflops(2, 16, 2, 2.5, "amx_bf16") == pytest.approx(16 * 0.32)
    assert cpu_memory_gb_per_s(channels=8, megatransfers_per_s=4800) == pytest.approx(307.2)


def test_an_unknown_device_gets_a_suggestion() -> None:
    with pytest.raises(InputError, match="unknown hardware 'h100_smx'; did you mean 'h100-sxm'"):
        load_hardware("h100_smx")


def test_the_example_the_refusals_are_made_from_is_accepted(tmp_path: Path) -> None:
    assert read_hardware(written(tmp_path, GOOD.format(name="x", extra="")))["x"].memory_gb == 80


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (GOOD.format(name="x", extra="sparse = true"), "sparse figures are refused"),
        (GOOD.format(name="x", extra="").replace("fp8_tflops = 624", "fp8_tflops = 1248"), "fp8_tflops = 1248 is not"),
        (GOOD.format(name="x", extra="int4_tops = 2496"), "int4_tops = 2496 is not twice int8_tops"),
        (GOOD.format(name="x", extra="tf32_tflops = 312"), "bf16_tflops = 312 is not twice tf32_tflops"),
        (GOOD.format(name="x", extra="").replace("memory_gb = 80", "memory_gb = 85.9"), "is 80 with GiB taken for GB"),
        (GOOD.format(name="x", extra="").replace("memory_gb = 80", "memory_gb = 34.36"), "is 32 with GiB taken for GB"),
        (
            GOOD.format(name="x", extra="")
            + GOOD.format(name="y", extra="").replace("memory_gb = 80", "memory_gb = 74.5"),
            "y: memory_gb = 74.5 is 80",
        ),
        (GOOD.format(name="x", extra="link_gb_per_s = 300"), "write `link_gb_per_s_bidirectional`"),
        (GOOD.format(name="x", extra="watts = 300"), "unknown field 'watts'"),
        (GOOD.format(name="x", extra='sources = { tdp_w = "M" }'), "'tdp_w', which has no figure"),
        (GOOD.format(name="x", extra="tdp_w = -3"), "tdp_w: Input should be greater than 0"),
        (GOOD.format(name="x", extra="").replace('"S"', '"guess"'), "source: Input should be"),
        ("x = 3", "x must be a table"),
        ("[x", "cannot be read"),
    ],
)
def test_refused_with_one_sentence(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(InputError) as refusal:
        read_hardware(written(tmp_path, text))
    assert message in str(refusal.value)
    assert str(refusal.value).endswith(".")
    assert "\n" not in str(refusal.value)


def test_a_missing_file_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        read_hardware(tmp_path / "none.toml")


def test_dense_figures_double_with_each_halving_of_the_width() -> None:
    """GeForce cards double int8 from the fp16-accumulate rate; all others from bf16."""
    for name in hardware_names():
        device: Hardware = load_hardware(name)
        if device.int8_tops is not None and device.bf16_tflops is not None:
            base = device.fp16_accumulate_tflops or device.bf16_tflops
            assert device.int8_tops / base == pytest.approx(2, rel=0.05)
