"""Codes of 3 and 4 bits packed along the inputs, 16 bits at a time, in the order in which vectors unpack them.

A block of codes is `words` = 32 columns of 16-bit words, and a vector is one code of each column: vector j holds the
inputs `words` j, ..., `words` j + `words` - 1 of the block, so that a kernel reads x in order and gets 32 codes
by one shift.

- 4 bits: a block of 128 inputs is 32 words; vector j = 0..3 is bits 4 j, ..., 4 j + 3 of each word.
- 3 bits: a block of 512 inputs is three planes of 32 words. Plane p holds the vectors 5 p, ..., 5 p + 4, vector 5 p + i
  in bits 3 i, ..., 3 i + 2, and in bit 15 bit p of vector 15: three words are exactly sixteen codes.

What remains of a row is a narrower block, with `words` = ceil(rest / 4) or ceil(rest / 16): the only padding there is.
"""

from __future__ import annotations

import torch
from torch import Tensor

WORDS = 32
VECTORS = {3: 16, 4: 4}
"""Vectors of a block, by bits."""
PLANES = {3: 3, 4: 1}
"""Words that hold the codes of one column, by bits."""


def row_words(features: int, bits: int) -> int:
    """The 16-bit words of a packed row of `features` codes."""
    columns = -(-features // VECTORS[bits])
    return columns * PLANES[bits]


def pack(codes: Tensor, bits: int) -> Tensor:
    """codes [out, in] of any integer dtype, in [0, 2^bits) -> int16 [out, row_words(in, bits)]; bits is 3 or 4."""
    if bits not in VECTORS:
        raise ValueError(f"codes have 3 or 4 bits, not {bits}")
    if codes.numel() and not 0 <= int(codes.min()) <= int(codes.max()) < 2**bits:
        raise ValueError(f"codes of {bits} bits must lie in [0, {2**bits})")
    blocks = [_pack_block(block.int(), bits) for block in torch.split(codes, WORDS * VECTORS[bits], dim=1)]
    return torch.cat(blocks, dim=1)


def unpack(packed: Tensor, bits: int, features: int) -> Tensor:
    """int16 [out, row_words(features, bits)] -> codes [out, features] uint8, the inverse of `pack`."""
    if packed.shape[1] != row_words(features, bits):
        raise ValueError(
            f"{features} codes of {bits} bits are {row_words(features, bits)} words, not {packed.shape[1]}"
        )
    blocks = [_unpack_block(block.int(), bits) for block in torch.split(packed, WORDS * PLANES[bits], dim=1)]
    return torch.cat(blocks, dim=1)[:, :features]


def _pack_block(codes: Tensor, bits: int) -> Tensor:
    """[out, n] -> [out, planes ceil(n / vectors)], for n up to a whole block."""
    outputs, inputs = codes.shape
    words = -(-inputs // VECTORS[bits])
    padded = codes.new_zeros(outputs, VECTORS[bits], words)
    padded.view(outputs, -1)[:, :inputs] = codes
    vectors = padded[:, : 16 // bits * PLANES[bits]].view(outputs, PLANES[bits], 16 // bits, words)
    shifts = torch.arange(0, 16 // bits * bits, bits, device=codes.device)[:, None]
    planes = [*(vectors << shifts).sum(2).unbind(1)]
    if bits == 3:
        planes = [word | (padded[:, 15] >> plane & 1) << 15 for plane, word in enumerate(planes)]
    return torch.cat(planes, dim=1).to(torch.int16)


def _unpack_block(words: Tensor, bits: int) -> Tensor:
    """[out, planes n] -> uint8 [out, vectors n]."""
    planes = words.chunk(PLANES[bits], dim=1)
    vectors = [plane >> bits * i & 2**bits - 1 for plane in planes for i in range(16 // bits)]
    if bits == 3:
        low, middle, high = ((plane >> 15 & 1) << i for i, plane in enumerate(planes))
        vectors.append(low | middle | high)
    return torch.cat(vectors, dim=1).to(torch.uint8)
