"""What a validation says in sentences: the bound, the perturbation, the bars."""

from __future__ import annotations

from collections.abc import Iterator

from analysis.roofline.validation import Assessment
from suite.harness.noise import LOAD_LIMIT, STEAL_LIMIT


def sentences(found: Assessment) -> list[str]:
    """In this order: how near the bound comes, what the companions did, noise, missed bars."""
    return [*_bound(found), *_perturbation(found), *_noise(found), *(f"missed: {line}" for line in found.missed())]


def _bound(found: Assessment) -> Iterator[str]:
    shares = {point: point.bound_ms / point.measured_ms for point in found.points if point.bound_ms is not None}
    if shares:
        near = max(shares, key=lambda point: shares[point])
        yield (
            f"the uncalibrated bound is above {len(found.above())} of {len(shares)} measurements; "
            f"it is nearest at {near.phase} {near.part} {near.where}, {shares[near]:.0%} of the time"
        )


def _perturbation(found: Assessment) -> Iterator[str]:
    if found.controls is None:
        yield "no bound was perturbed: that needs a second core and a longer budget"
        return
    read, multiply = found.controls
    yield (
        f"on one thread, beside a core that copies memory instead of multiplying, a read from memory takes {read:.2f} "
        f"times as long, a product in a cache {multiply:.2f} times"
    )
    if found.accuracy is None:
        yield "that is too little contrast to tell what bounds an operator"
        return
    right = sum(one.right for one in found.perturbed)
    yield (
        f"what the roofline calls bound by memory slows down more like the read, all else more like the product, "
        f"in {right} of {len(found.perturbed)} cases ({found.accuracy:.0%})"
    )
    for one in found.perturbed:
        if not one.right:
            yield (
                f"not so: {one.phase} {one.part} {one.batch} × {one.tokens}, called bound by {one.level}, "
                f"takes {one.slowdown:.2f} times as long"
            )


def _noise(found: Assessment) -> Iterator[str]:
    steal, load = found.disturbed
    if steal > STEAL_LIMIT or load > LOAD_LIMIT:
        yield f"the machine was not idle: {steal:.1%} stolen, {load:.2f} cores busy with other processes"
