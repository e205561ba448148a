"""`.ci/nightly`: the history on its branch, one issue, the exit code. git is real; GitHub's `gh` is a recorder."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from suite.harness import machine
from suite.harness.store import Store
from tests.cli.sweeps import DEFAULTS, calibrated

ROOT = Path(__file__).resolve().parents[2]
WORKFLOW = ROOT / ".github" / "workflows" / "nightly.yml"
SUITE = """#!/bin/sh
printf '%s\\n' "$*" >> "$CALLS"
while [ $# -gt 0 ]; do
    case "$1" in
        --history) echo '{"night": "'"$NIGHT"'"}' >> "$2" ;;
        --markdown) echo "night $NIGHT" > "$2" ;;
    esac
    shift
done
exit "$CODE"
"""
GH = """#!/bin/sh
printf 'gh %s\\n' "$*" >> "$CALLS"
case "$1 $2" in
    "issue list") cat "$ISSUE" 2> /dev/null || true ;;
    "issue create") echo 7 > "$ISSUE" ;;
    "issue close") rm "$ISSUE" ;;
esac
"""


class Checkout:
    """A clone with a bare repository as its origin, and what `.ci/nightly` calls replaced by recorders."""

    def __init__(self, folder: Path, name: str = "clone") -> None:
        self.folder, self.path = folder, folder / name
        self.origin = folder / "origin.git"
        if not self.origin.exists():
            self._git("init", "--quiet", "--bare", str(self.origin), cwd=folder)
        self._git("clone", "--quiet", str(self.origin), str(self.path), cwd=folder)
        (self.path / ".ci").mkdir()
        shutil.copy(ROOT / ".ci" / "nightly", self.path / ".ci")
        for program, text in (("gh", GH), ("python", SUITE)):
            (folder / program).write_text(text)
            (folder / program).chmod(0o755)

    def _git(self, *arguments: str, cwd: Path | None = None) -> str:
        command = ["git", "-c", "user.name=t", "-c", "user.email=t@t", *arguments]
        return subprocess.run(command, cwd=cwd or self.path, check=True, capture_output=True, text=True).stdout

    def night(self, night: str, code: int = 0, *arguments: str, python: str = "", job: str = "cpu") -> int:
        environment = {
            **os.environ, "PATH": f"{self.folder}:{os.environ['PATH']}", "CALLS": str(self.folder / "calls"),
            "ISSUE": str(self.folder / "issue"), "NIGHT": night, "CODE": str(code), "GIT_CONFIG_GLOBAL": os.devnull,
            "PYTHON": python or str(self.folder / "python"),
        }  # fmt: skip
        for name in ("GITHUB_STEP_SUMMARY", "GITHUB_RUN_ID"):
            environment.pop(name, None)
        (self.folder / "calls").write_text("")
        return subprocess.run([".ci/nightly", job, *arguments], cwd=self.path, env=environment).returncode

    def calls(self) -> list[str]:
        """The issue commands of the last night."""
        lines = (self.folder / "calls").read_text().splitlines()
        return [" ".join(line.split()[1:3]) for line in lines if line.startswith("gh issue")]

    def history(self, job: str = "cpu") -> list[str]:
        text = self._git("show", f"nightly-history:{job}.jsonl", cwd=self.origin)
        return [json.loads(line)["night"] for line in text.splitlines()]


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    return Checkout(tmp_path)


def test_the_history_grows_on_its_branch(checkout: Checkout) -> None:
    assert [checkout.night("n1"), checkout.night("n2"), checkout.night("n3", 1)] == [0, 0, 1]
    assert checkout.history() == ["n1", "n2", "n3"]
    assert checkout.night("g1", job="gpu") == 0
    assert (checkout.history(), checkout.history("gpu")) == (["n1", "n2", "n3"], ["g1"])


def test_a_night_pushed_meanwhile_is_kept(tmp_path: Path, checkout: Checkout) -> None:
    """The second clone's run pushes while the first is measuring: its suite is a script that runs the other's night."""
    checkout.night("n1")
    other = Checkout(tmp_path, "other")
    meanwhile = tmp_path / "meanwhile"
    inner = f"cd {other.path} && PYTHON={tmp_path}/python NIGHT=n2 CODE=0 .ci/nightly cpu > /dev/null"
    meanwhile.write_text(f'#!/bin/sh\n({inner}) || exit 9\nexec {tmp_path}/python "$@"\n')
    meanwhile.chmod(0o755)
    assert checkout.night("n3", python=str(meanwhile)) == 0
    assert sorted(checkout.history()) == ["n1", "n2", "n3"]


def test_one_issue_is_opened_rewritten_and_closed(checkout: Checkout) -> None:
    calls = []
    for night, code in (("n1", 0), ("n2", 1), ("n3", 3), ("n4", 0), ("n5", 0)):
        assert checkout.night(night, code) == code
        calls.append([call for call in checkout.calls() if call != "issue list"])
    assert calls == [[], ["issue create"], ["issue edit"], ["issue close"], []]


def test_the_real_program_runs_in_it(checkout: Checkout, store: Store) -> None:
    calibrated(store, machine.machine_id())
    (checkout.path / "n.toml").write_text(DEFAULTS + 'method = "dense"\n')
    (checkout.path / "sitecustomize.py").write_text(f"import sys; sys.path[1:1] = {[str(ROOT), *sys.path]!r}\n")
    (checkout.folder / "suite-python").write_text(f'#!/bin/sh\nPYTHONPATH=. exec {sys.executable} "$@"\n')
    (checkout.folder / "suite-python").chmod(0o755)
    options = ("n.toml", "--ledger", "none", "--budget", "1m", "--store", str(store.path))
    assert checkout.night("", 0, *options, python=str(checkout.folder / "suite-python")) == 0
    assert len(checkout.history()) == 3  # the beginning of the run, its unit, its end
    assert (checkout.path / "report.html").exists()


def test_the_workflow_runs_it_on_both_machines() -> None:
    jobs = yaml.safe_load(WORKFLOW.read_text())["jobs"]
    for name, runner in (("cpu", "ubuntu-24.04"), ("gpu", ["self-hosted", "gpu"])):
        assert jobs[name]["runs-on"] == runner
        assert any(step.get("run", "").startswith(f".ci/nightly {name} ") for step in jobs[name]["steps"])
