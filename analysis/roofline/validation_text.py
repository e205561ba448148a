"""What a validation says in sentences: the bound, the perturbation, the bars."""

from __future__ import annotations

from collections.abc import Iterator

from analysis.roofline.validation import Assessment
from suite.harness.noise import LOAD_LIMIT, STEAL_LIMIT


def sentences(found: Assessment) -> list[str]:
    """In this order: ceilings, how near the bound comes, what perturbation showed, noise, missed bars."""
    return [
        *_ceilings(found),
        *_bound(found),
        *_perturbation(found),
        *_noise(found),
        *(f"missed: {line}" for line in found.missed()),
    ]


def _bound(found: Assessment) -> Iterator[str]:
    shares = {point: point.bound_ms / point.measured_ms for point in found.points if point.bound_ms is not None}
    if not shares:
        yield "no stable ceiling was calibrated, so there is no bound: run `suite roofline --calibrate` again"
    else:
        near = max(shares, key=lambda point: shares[point])
        yield (
            f"the uncalibrated bound is above {len(found.above())} of {len(shares)} measurements; "
            f"it is nearest at {near.phase} {near.part} {near.where}, {shares[near]:.0%} of the time"
        )


def _ceilings(found: Assessment) -> Iterator[str]:
    for one in found.ceilings:
        unit = "GB/s of reading" if one.kind == "read" else "GFLOP/s"
        calibrated = "nothing stable" if one.calibrated is None else f"{one.calibrated:.3g}"
        yield (
            f"{unit}: {calibrated} as calibrated, {one.median:.3g} (best {one.best:.3g}) in {one.n} samples between "
            "the passes; the higher one is the bound's ceiling"
        )


def _perturbation(found: Assessment) -> Iterator[str]:
    if found.accuracy is None:
        return
    right = sum(one.right for one in found.perturbed)
    yield (
        f"with more new tokens for the same weights, keys and values, what the roofline calls bound by compute takes "
        f"longer as its FLOPs grow, and nothing else does, in {right} of {len(found.perturbed)} cases "
        f"({found.accuracy:.0%})"
    )
    for one in found.perturbed:
        if not one.right:
            yield (
                f"not so: {one.phase} {one.part} {one.batch} × {one.tokens}, called bound by {one.level}: "
                f"{one.flops:.2f} times the FLOPs and {one.bytes:.2f} times the bytes take {one.time:.2f} times as long"
            )


def _noise(found: Assessment) -> Iterator[str]:
    steal, load = found.disturbed
    if steal > STEAL_LIMIT or load > LOAD_LIMIT:
        yield f"the machine was not idle: {steal:.1%} stolen, {load:.2f} cores busy with other processes"
