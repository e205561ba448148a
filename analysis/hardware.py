"""Datasheet ceilings of known devices, read from `hardware.toml`; refuses sparse, GiB and one-direction figures.

All rates are dense. TFLOP/s and TOP/s are 1e12 per second, GB is 1e9 bytes. Source: `methods/_roofline.md` section 6.
"""

from __future__ import annotations

import difflib
import functools
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt, ValidationError, model_validator

from suite.errors import InputError

HARDWARE_FILE = Path(__file__).with_name("hardware.toml")
GIB_IN_GB = 2**30 / 1e9
RATE_TOLERANCE = 0.05
"""Dense rates double with each halving of the width to within 3% in every listed row; a sparse one is off by 100%."""
SIZE_TOLERANCE = 0.003
CAPACITIES_GB = {
    float(size) for size in (4, 6, 8, 12, 16, 24, 32, 40, 48, 64, 80, 94, 96, 128, 141, 180, 192, 256, 288)
}

Source = Literal["V", "S", "M", "D"]
Dtype = Literal["fp32", "tf32", "bf16", "fp8", "fp4", "int8", "int4"]

# (faster figure, slower figures): the faster one is twice one of the slower ones, if both are listed.
_DOUBLES: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("bf16_tflops", ("tf32_tflops",)),
    ("fp8_tflops", ("bf16_tflops",)),
    ("fp8_fp16_accumulate_tflops", ("fp16_accumulate_tflops",)),
    ("int8_tops", ("bf16_tflops", "fp16_accumulate_tflops")),
    ("fp4_tflops", ("fp8_tflops",)),
    ("int4_tops", ("int8_tops",)),
)


class Hardware(BaseModel):
    """One device. A figure that is not known is None; `figure_source` says where a known one comes from."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    title: str
    source: Source
    sources: dict[str, Source] = Field(default_factory=dict)
    note: str = ""

    fp32_tflops: PositiveFloat | None = None
    fp32_tflops_high: PositiveFloat | None = None
    tf32_tflops: PositiveFloat | None = None
    bf16_tflops: PositiveFloat | None = None
    fp16_accumulate_tflops: PositiveFloat | None = None
    fp8_tflops: PositiveFloat | None = None
    fp8_fp16_accumulate_tflops: PositiveFloat | None = None
    fp4_tflops: PositiveFloat | None = None
    int8_tops: PositiveFloat | None = None
    dla_int8_tops: PositiveFloat | None = None
    int4_tops: PositiveFloat | None = None

    cores: PositiveInt | None = None
    fp32_flop_per_cycle: PositiveInt | None = None
    bf16_flop_per_cycle: PositiveInt | None = None
    int8_op_per_cycle: PositiveInt | None = None

    memory_gb: PositiveFloat | None = None
    memory_shared: bool = False
    memory_gb_per_s: PositiveFloat
    link: str = ""
    link_gb_per_s_bidirectional: PositiveFloat | None = None
    tdp_w_low: PositiveFloat | None = None
    tdp_w: PositiveFloat | None = None

    link_latency_us: PositiveFloat | None = None
    idle_w: PositiveFloat | None = None
    flop_pj: PositiveFloat | None = None
    byte_pj: PositiveFloat | None = None

    @model_validator(mode="before")
    @classmethod
    def _refuse_known_traps(cls, data: Any) -> Any:
        if data.get("sparse"):
            raise ValueError("sparse figures are refused; write the dense ones, which are half, and drop `sparse`")
        if "link_gb_per_s" in data:
            raise ValueError(
                "`link_gb_per_s` is ambiguous; write `link_gb_per_s_bidirectional`, both directions together"
            )
        return data

    @model_validator(mode="after")
    def _check_dense(self) -> Hardware:
        for fast, slows in _DOUBLES:
            expected = [2 * rate for slow in slows if (rate := getattr(self, slow)) is not None]
            rate = getattr(self, fast)
            if rate is None or not expected or any(_close(rate, twice, RATE_TOLERANCE) for twice in expected):
                continue
            raise ValueError(
                f"{fast} = {rate:g} is not twice {slows[0]}, about {expected[0]:g}: is it a sparse figure?"
            )
        return self

    @model_validator(mode="after")
    def _check_sources(self) -> Hardware:
        if strangers := [name for name in self.sources if getattr(self, name, None) is None]:
            raise ValueError(f"`sources` names {strangers[0]!r}, which has no figure")
        return self

    def figure_source(self, figure: str) -> Source:
        """The source tag of one figure: V vendor, S secondary page, M memory, D derived."""
        return self.sources.get(figure, self.source)

    @property
    def link_gb_per_s(self) -> float | None:
        """What one direction of the link carries: half of the bidirectional datasheet figure."""
        total = self.link_gb_per_s_bidirectional
        return None if total is None else total / 2

    def peak_tflops(self, dtype: Dtype, clock_ghz: float | None = None) -> float | None:
        """Dense peak in TFLOP/s (TOP/s for integers) with fp32 accumulate; None if it is not known.

        A processor lists its rate per cycle and core: its peak needs the clock it holds under that load.
        """
        unit, operation = ("tops", "op") if dtype.startswith("int") else ("tflops", "flop")
        rate: float | None = getattr(self, f"{dtype}_{unit}")
        if rate is not None or clock_ghz is None or self.cores is None:
            return rate
        per_cycle: int | None = getattr(self, f"{dtype}_{operation}_per_cycle", None)
        return None if per_cycle is None else self.cores * per_cycle * clock_ghz / 1e3


CPU_GAIN = {"fp32": 1, "avx512_bf16": 2, "amx_bf16": 16, "vnni_int8": 4}
"""What the matrix and dot-product instructions of a processor do per cycle, relative to its fp32 multiply-adds."""


def cpu_peak_tflops(cores: int, lanes: int, fma_units: int, clock_ghz: float, kind: str = "fp32") -> float:
    """Peak of a generic processor in TFLOP/s (TOP/s): cores x 2 x lanes x FMA units x clock x the gain of `kind`.

    `lanes` are fp32 lanes per vector (16 for AVX-512); 2 because a multiply-add is two operations.
    """
    return cores * 2 * lanes * fma_units * clock_ghz * CPU_GAIN[kind] / 1e3


def cpu_memory_gb_per_s(channels: int, megatransfers_per_s: float) -> float:
    """DRAM bandwidth of a generic processor in GB/s: channels x 8 bytes x MT/s."""
    return channels * 8 * megatransfers_per_s / 1e3


def read_hardware(path: Path) -> dict[str, Hardware]:
    """All devices of a hardware file by name; `InputError` with one sentence for a file that breaks a rule."""
    try:
        document = tomllib.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"hardware file {path} cannot be read: {error}.") from error
    devices = {name: _device(path, name, row) for name, row in document.items()}
    _check_sizes(path, devices)
    return devices


def _device(path: Path, name: str, row: Any) -> Hardware:
    if not isinstance(row, Mapping):
        raise InputError(f"{path.name}: {name} must be a table of figures, not {row!r}.")
    try:
        return Hardware.model_validate({**row, "name": name})
    except ValidationError as error:
        raise InputError(f"{path.name}: {name}: {_sentence(error)}.") from error


def _sentence(error: ValidationError) -> str:
    first = error.errors()[0]
    message = first["msg"].removeprefix("Value error, ")
    where = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        return f"unknown field {where!r}"
    return f"{where}: {message}" if where else message


def _check_sizes(path: Path, devices: Mapping[str, Hardware]) -> None:
    """Refuse a memory size that is a sold capacity, or another listed whole number, turned from GiB into GB or back."""
    listed = {device.memory_gb for device in devices.values() if device.memory_gb is not None}
    nominal = {size for size in listed if size.is_integer()} | CAPACITIES_GB
    mistaken = {size * factor: size for size in nominal for factor in (GIB_IN_GB, 1 / GIB_IN_GB)}
    for name, device in devices.items():
        for wrong, size in mistaken.items():
            if _close(device.memory_gb, wrong, SIZE_TOLERANCE):
                raise InputError(
                    f"{path.name}: {name}: memory_gb = {device.memory_gb:g} is {size:g} with GiB taken for GB or the "
                    "other way round; write the nominal size in GB (1e9 bytes)."
                )


def _close(value: float | None, target: float, tolerance: float) -> bool:
    return value is not None and abs(value - target) <= tolerance * target


@functools.cache
def _known() -> dict[str, Hardware]:
    return read_hardware(HARDWARE_FILE)


def hardware_names() -> list[str]:
    """Names of all devices of the built-in table, in its order."""
    return list(_known())


def load_hardware(name: str) -> Hardware:
    """A device of the built-in table, or `FILE.toml` or `FILE.toml:NAME` for one of the user's own.

    `h100_sxm` is `h100-sxm`. `InputError` with a suggestion for an unknown name.
    """
    file, colon, inner = name.rpartition(".toml")
    if colon and inner[:1] in ("", ":"):
        return _of_file(Path(f"{file}.toml").expanduser(), inner[1:])
    return _pick(_known(), name)


def _of_file(path: Path, name: str) -> Hardware:
    devices = read_hardware(path)
    if name or len(devices) != 1:
        return _pick(devices, name)
    return next(iter(devices.values()))


def _pick(devices: Mapping[str, Hardware], name: str) -> Hardware:
    for spelling in (name, name.lower().replace("_", "-")):
        if spelling in devices:
            return devices[spelling]
    near = difflib.get_close_matches(name.lower(), devices, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(devices)}."
    raise InputError(f"unknown hardware {name!r}; {hint}")
