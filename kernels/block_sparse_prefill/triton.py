"""Attention of query blocks to chosen blocks of keys on the GPU: by the kernel that reads lists."""

from __future__ import annotations

from kernels.gathered_prefill.triton import listed_prefill, variants

__all__ = ["listed_prefill", "variants"]
