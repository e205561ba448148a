"""One random stream per item, the same in every process."""

from __future__ import annotations

import hashlib
import random


def item_rng(*parts: object) -> random.Random:
    """A generator seeded by the text of `parts`; `hash()` would differ between processes."""
    digest = hashlib.sha256("/".join(str(part) for part in parts).encode()).digest()
    return random.Random(int.from_bytes(digest[:16], "big"))
