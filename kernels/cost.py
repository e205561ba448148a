"""What a kernel call must do at least: floating-point operations and bytes, from shapes alone."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Cost:
    """Compulsory work of a call: each tensor is read or written once, a multiply-add counts as two FLOPs."""

    flops: int
    read_bytes: int
    write_bytes: int

    @property
    def bytes(self) -> int:
        """All bytes moved."""
        return self.read_bytes + self.write_bytes

    @property
    def intensity(self) -> float:
        """Arithmetic intensity in FLOPs per byte."""
        return self.flops / self.bytes if self.bytes else 0.0

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.flops + other.flops, self.read_bytes + other.read_bytes, self.write_bytes + other.write_bytes)


ZERO = Cost(0, 0, 0)
