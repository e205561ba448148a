"""`suite tune --engine`: a live engine in processes of its own, with failures that are named and a race at the end.

The engine is the native one with one argument of vLLM's: how many prompts it runs at once.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import psutil
import pytest
from pydantic import BaseModel, ConfigDict, ValidationError

from analysis.summary import build_summary
from suite.cli import run
from suite.commands import engine_search, tune_engine
from suite.commands.engine_search import EngineTuning, Setting
from suite.engines.base import Chunk, Engine, EngineModel, Prompt
from suite.engines.native import NativeEngine
from suite.engines.trials import Slices, measure
from suite.engines.vllm_arguments import VllmArguments
from suite.errors import InputError
from suite.harness import machine
from suite.harness.store import Store
from suite.methods.base import tunable
from suite.models.loaders.lab import CHECKPOINTS
from tests.analysis.factory import calibration
from tests.cli.sweeps import calibrated

LAB = EngineModel("lab-recall", str(CHECKPOINTS / "lab-recall"), "fp32", 128)
PROMPTS = [Prompt(tuple(range(1 + i, 9 + i)), 4) for i in range(40)]


class Arguments(BaseModel):
    """`max_num_seqs` as vLLM has it; the other one names a model there is not."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    max_num_seqs: int = tunable(4, low=1, high=4)
    weights: Literal["there", "missing"] = tunable("there", choices=("there", "missing"))


class Grouped(NativeEngine):
    """Runs at most `max_num_seqs` prompts at a time."""

    def __init__(self, setting: Setting, arguments: Any) -> None:
        name = "lab-recall" if arguments.weights == "there" else "no-such-model"
        super().__init__(EngineModel(name, LAB.directory, "fp32", 128), setting.threads)
        self._group = arguments.max_num_seqs

    def stream(self, prompts: Sequence[Prompt]) -> Iterator[Chunk]:
        for first in range(0, len(prompts), self._group):
            for chunk in super().stream(prompts[first : first + self._group]):
                yield Chunk(first + chunk.index, chunk.token_ids, chunk.ns)


def tuning(**changed: Any) -> EngineTuning:
    wishes: dict[str, Any] = {
        "make": Grouped, "arguments": Arguments, "settings": [Setting(LAB, 1)], "slices": Slices(PROMPTS, 4),
        "trials": 2, "repeats": 2, "samplers": ["random"], "parameters": [], "bounds": {}, "seed": 0, "name": "study",
        "studies": None,
    }  # fmt: skip
    return EngineTuning(**wishes | changed)


def test_a_live_study_is_measured_raced_and_continued(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tune_engine, "RACE_ROUNDS", 2)
    monkeypatch.setattr(engine_search, "RACE_ROUNDS", 2)
    wanted = tuning(studies=tmp_path / "studies.sqlite")
    assert tune_engine.tune(wanted, tmp_path / "page.html", True) == 0
    told = json.loads(capsys.readouterr().out)["settings"][0]
    default = told["trials"]["random"][0]
    assert default["params"] == {"max_num_seqs": 4, "weights": "there"}, "the default is measured first"
    assert default["tokens"] == 2 * 4 * 4, "prompts x tokens x repeats"
    assert default["wall_s"] > default["start_s"] > 0
    assert default["started"] > 1e9
    assert default["pids"]
    assert not any(map(psutil.pid_exists, default["pids"]))
    assert set(told["race"]) == {"default", "best here", "batch 1"}
    assert (told["race"]["default"]["largest_batch"], told["race"]["batch 1"]["largest_batch"]) == (4, 1)
    assert len(told["race"]["batch 1"]["rates"]) == 2
    assert "best so far, random" in (tmp_path / "page.html").read_text()
    with Store() as store:
        (study,) = build_summary(store).studies
    assert [name for name, _ in study.race] == ["best here", "batch 1"]
    assert list(study.best_so_far) == ["random"]
    again = engine_search.search(tuning(studies=tmp_path / "studies.sqlite"), Setting(LAB, 1))
    assert len(again.study.trials) == 2, "finished trials are not measured again"


def test_the_roofline_says_where_to_start_and_a_guess_that_is_the_default_is_not_measured_twice() -> None:
    guessed = engine_search.search(tuning(guess=lambda setting: {"max_num_seqs": 2, "beyond": 7}), Setting(LAB, 1))
    starts = [(trial.user_attrs.get("origin"), trial.params["max_num_seqs"]) for trial in guessed.study.trials]
    assert starts == [("default", 4), ("roofline", 2)]
    same = engine_search.search(tuning(guess=lambda setting: {"max_num_seqs": 4}), Setting(LAB, 1))
    assert [trial.user_attrs.get("origin") for trial in same.study.trials] == ["default", None]


def test_a_failed_launch_is_a_trial_with_its_reason() -> None:
    outcome = engine_search.trial(tuning(), Setting(LAB, 1), {"weights": "missing"}, lambda repeat, value: False)
    assert outcome.values == ()
    assert outcome.reason is not None
    assert "did not start" in outcome.reason
    assert outcome.facts["wall_s"] > 0


def test_a_hopeless_trial_ends_early_and_a_slow_one_misses_its_objective() -> None:
    ended = engine_search.trial(tuning(), Setting(LAB, 1), {}, lambda repeat, value: value > 0)
    assert ended.reason is not None
    assert len(ended.facts["rates"]) == 1
    late = engine_search.trial(tuning(bounds={"ttft": 1e-3}), Setting(LAB, 1), {}, lambda repeat, value: False)
    assert late.shortfall > 0


def test_the_largest_batch_is_what_ran_at_once_not_what_was_asked() -> None:
    engine: Engine = Grouped(Setting(LAB, 1), Arguments(max_num_seqs=2))
    with engine:
        assert measure(engine, PROMPTS[:4]).largest_batch == 2


def test_every_repeat_gets_prompts_of_its_own(tmp_path: Path) -> None:
    slices = Slices(PROMPTS, 4)
    seen = [prompt for number in range(len(slices)) for prompt in slices[number]]
    assert len(seen) == len(set(seen)) == 40
    with pytest.raises(InputError, match="40 items, but fresh prompts for every repeat take 60"):
        tune_engine.tune(tuning(repeats=9), tmp_path / "never.html", False)
    assert not (tmp_path / "never.html").exists()


def test_arguments_that_do_not_fit_together_are_refused_before_a_start() -> None:
    with pytest.raises(ValidationError, match="below max_num_seqs"):
        VllmArguments(max_num_batched_tokens=128, max_num_seqs=200)
    whole = VllmArguments(enable_chunked_prefill=False, max_num_batched_tokens=1024)
    assert "must hold a whole context of 2048" in (whole.misfit(2048) or "")
    assert whole.misfit(1024) is None


def test_the_best_is_told_as_a_command_line_of_vllm() -> None:
    line = VllmArguments(max_num_seqs=32, enable_prefix_caching=False).command("some model", 2048, "bfloat16", 2)
    assert "VLLM_CPU_KVCACHE_SPACE=2 vllm serve 'some model' --dtype bfloat16" in line
    assert "--max-num-seqs 32" in line
    assert "--no-enable-prefix-caching" in line
    assert "--enable-chunked-prefill" in line


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--engine", "native"], "Give a method with --method, or --engine vllm"),
        (["--engine", "transformers"], "engine transformers has no arguments to tune"),
        (["--engine", "vllm", "-m", "dense"], "are two searches"),
        (["--engine", "vllm", "--against", "bayes"], "there is no sampler 'bayes'"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, list) else "",
)
def test_a_bad_wish_is_answered_by_one_sentence(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["tune", "--workload", "recall", *words]) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("repeat", [4, 6])
def test_the_roofline_guess_runs_a_repeats_prompts_together(store: Store, repeat: int) -> None:
    """Decoding reads the weights once for all of them; of limits that are equally fast it takes the smallest."""
    calibrated(store, machine.machine_id())
    guess = tune_engine._guess(Slices(PROMPTS, repeat), store.path, Setting(LAB, 1))
    assert guess == {"max_num_seqs": {4: 4, 6: 8}[repeat], "max_num_batched_tokens": 128}


def test_without_a_stable_ceiling_there_is_no_guess(store: Store) -> None:
    found = calibration()
    reads = tuple(ceiling for ceiling in found.ceilings if ceiling.kind == "read")
    store.add_machine(machine.machine_id(), "{}")
    store.add_calibration(found.model_copy(update={"machine_id": machine.machine_id(), "ceilings": reads}))
    assert tune_engine._guess(Slices(PROMPTS, 4), store.path, Setting(LAB, 1)) == {}
