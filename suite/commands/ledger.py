"""`suite reproduce`: runs the experiments of the cards and prints claim beside measurement."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from suite.commands.output import interval, print_json, stderr, table
from suite.commands.stores import open_store
from suite.errors import InputError
from suite.experiments import EXPERIMENTS
from suite.harness import machine
from suite.harness import threads as thread_pool
from suite.harness.measurement import Finding
from suite.harness.store import Store


def reproduce(slugs: Sequence[str], everything: bool, threads: int, store_file: Path | None, as_json: bool) -> int:
    """Exit code 1 when a claim was measured and not reproduced."""
    if bool(slugs) == everything:
        raise InputError("name the systems to reproduce, or give --all; `python -m suite list claims` shows them.")
    chosen = list(EXPERIMENTS) if everything else list(dict.fromkeys(slugs))
    for slug in chosen:
        _ = EXPERIMENTS[slug]  # an unknown name is refused before anything is measured
    with open_store(store_file) as store:
        store.add_machine(machine.machine_id(), json.dumps(machine.fingerprint()))
        findings = [finding for slug in chosen for finding in _measure(slug, threads, store)]
    _print(findings, as_json)
    return 1 if any(finding.verdict == "not reproduced" for finding in findings) else 0


def _measure(slug: str, threads: int, store: Store) -> list[Finding]:
    from suite.experiments.base import Workbench

    findings: list[Finding] = []
    with stderr().status(f"reproducing {slug}") as status:
        bench = Workbench(threads or thread_pool.choose_threads(), lambda text: status.update(f"{slug}: {text}"))
        for finding in EXPERIMENTS.load(slug)().findings(bench):
            store.add_findings([finding])  # each row is kept as soon as it is there
            findings.append(finding)
    return findings


def _print(findings: Sequence[Finding], as_json: bool) -> None:
    from analysis.claims import reproduce_document

    if as_json:
        print_json(reproduce_document(findings))
        return
    columns = ["system", "claim", "paper", "measured", "verdict", "conditions"]
    rows = [
        [
            f.slug,
            f.claim,
            f.paper,
            f"{interval(f.measured, f.low, f.high)} {f.unit}",
            f.verdict,
            f.conditions + (f" ({f.reason})" if f.reason else ""),
        ]
        for f in findings
    ]
    table("claims ledger", columns, rows, left=99)
