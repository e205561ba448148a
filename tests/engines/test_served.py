"""Methods through an engine, here a worker with the lab model: gates, figures, and what cannot run there."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from suite.engines.base import EngineModel, Limits
from suite.engines.native import NativeEngine
from suite.errors import InputError, UnitError
from suite.harness.contender import Contender
from suite.harness.gates import GateRequests, Gates
from suite.harness.meter import RequestMeter
from suite.harness.plan import Plan, Wishes, load_contenders, plan
from suite.harness.runner import Bench, run_blocks, start_sweep
from suite.harness.served import ServedContender
from suite.harness.store import Store
from suite.models.language_model import ServedModel
from suite.models.loaders import load_model, load_served
from suite.models.loaders.lab import CHECKPOINTS
from suite.spec import MethodSpec, ModelSpec
from workloads.schema import Request

NAME = "lab-recall"
REQUEST = Request(id="a", task="", prompt="the garden key is at the river " * 3, metric="", max_new_tokens=12)
BEST = MethodSpec(name="best_of_n", options={"samples": 2})


@pytest.fixture(scope="module")
def engine() -> Iterator[NativeEngine]:
    model = EngineModel(NAME, str(CHECKPOINTS / NAME), "fp32", 128)
    with NativeEngine(model, 1, Limits(generate_s=60)) as started:
        yield started


@pytest.fixture(scope="module")
def model() -> ServedModel:
    return load_served(ModelSpec(name=NAME, dtype="fp32"))


def complete(contender: Contender, *requests: Request) -> list:
    contender.prepare()
    return contender.complete(requests, RequestMeter())


def test_it_is_the_model_that_loads_here_but_for_its_weights(model: ServedModel) -> None:
    here = load_model(NAME, "fp32")
    assert (model.digest, model.window, model.config) == (here.digest, here.window, here.config)
    assert model.encode(REQUEST) == here.encode(REQUEST)


def test_dense_writes_what_it_writes_here(engine: NativeEngine, model: ServedModel) -> None:
    requests = [REQUEST, REQUEST.model_copy(update={"id": "b", "prompt": "a river", "max_new_tokens": 7})]
    served = complete(ServedContender.of(MethodSpec(name="dense"), model, engine), *requests)
    here = complete(Contender.load(MethodSpec(name="dense"), load_model(NAME, "fp32")), *requests)
    for one, other in zip(served, here, strict=True):
        assert (one.token_ids, one.text, one.stop_reason) == (other.token_ids, other.text, other.stop_reason)
        assert one.cost == other.cost
        assert len(set(one.token_ns)) > 1  # tokens count when they come, not at the end


def test_a_stop_text_ends_a_served_text(engine: NativeEngine, model: ServedModel) -> None:
    dense = ServedContender.of(MethodSpec(name="dense"), model, engine)
    (whole,) = complete(dense, REQUEST)
    word = whole.text.split()[-1]
    (cut,) = complete(dense, REQUEST.model_copy(update={"stop": (word,)}))
    assert cut.stop_reason == "stop"
    assert cut.text == whole.text[: whole.text.index(word)]


def test_gates_hold_through_an_engine(engine: NativeEngine, model: ServedModel) -> None:
    dense, best = (ServedContender.of(spec, model, engine) for spec in (MethodSpec(name="dense"), BEST))
    best.prepare()
    gates = Gates(GateRequests.of(REQUEST, model), dense)
    assert [gate.name for gate in gates.run(dense)] == ["deterministic"]
    found = gates.run(best)
    assert [gate.name for gate in found] == ["deterministic", "short"]
    assert all(gate.passed for gate in found), found


def test_given_texts_are_not_scored(engine: NativeEngine, model: ServedModel) -> None:
    dense = ServedContender.of(MethodSpec(name="dense"), model, engine)
    with pytest.raises(UnitError, match="scores no given texts"):
        complete(dense, REQUEST.model_copy(update={"target": "river"}))


def planned(*methods: MethodSpec) -> Plan:
    options = {"shots": 0, "new_tokens": 6}
    return plan(
        Wishes("gsm8k", NAME, methods, workload_options=options, dtype="fp32", engine="vllm", threads=1, limit=2)
    )


def test_a_run_through_an_engine_has_the_ledger_and_the_engines_memory(
    engine: NativeEngine, model: ServedModel, tmp_path: Path
) -> None:
    made, contenders = load_contenders(planned(BEST), model, partial(ServedContender.of, model=model, engine=engine))
    with Store(tmp_path / "s.sqlite") as store:
        bench = Bench(model, contenders, store, 1, elsewhere=engine)
        dense, best = run_blocks(made, start_sweep(store, made), bench).units
    assert {dense.status, best.status} <= {"ok", "unstable"}
    assert best.spec.engine.name == "vllm"
    for sample in best.samples:
        assert sample.search is not None
        assert (sample.search.samples, sample.search.verifier_passes) == (2, 2)
        assert sample.search.generated >= sample.search.sequential > 0
        assert sample.search.prefilled is None  # this engine does not say
    assert best.memory is not None
    assert best.memory.process_peak_bytes == engine.peak_memory_bytes()
    assert best.counts == best.kv == ()


def test_what_acts_inside_the_model_is_refused(engine: NativeEngine, model: ServedModel) -> None:
    load = partial(ServedContender.of, model=model, engine=engine)
    with pytest.raises(InputError, match="longheads cannot run on lab-recall: it acts inside the model"):
        load_contenders(planned(MethodSpec(name="longheads")), model, load)
