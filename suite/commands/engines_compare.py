"""`suite engines compare`: the same prompts on several engines, in one table with what each engine says of itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from suite.commands.engine_models import engine_model
from suite.commands.output import interval, number, print_json, progress_bar, stdout, table
from suite.commands.stores import keep_document
from suite.commands.wishes import numbers
from suite.engines import vllm_environment
from suite.engines.base import Engine, EngineModel, Prompt
from suite.engines.comparison import Cell, Comparison, Difference, Prompts, differences
from suite.errors import InputError, NothingMeasuredError
from suite.harness import machine, noise
from suite.harness import threads as thread_pool
from suite.harness.measurement import Noise
from suite.registry import ENGINES

if TYPE_CHECKING:
    from analysis.statistics import Estimate

SCHEMA = "inference-suite.engines/1"
REFERENCE = "native"
Row = dict[str, Any]


@dataclass(frozen=True)
class CompareOptions:
    """The options of `suite engines compare`, as given; no engines means all that work here."""

    model: str
    engines: str
    batches: str
    prompt_tokens: int
    new_tokens: int
    rounds: int
    dtype: str
    threads: int
    base_url: str


def compare(options: CompareOptions, store_file: Path | None, as_json: bool) -> int:
    """Exit code 3 where an engine failed: its row says how, and no average hides it."""
    batches, names = numbers(options.batches, "--batch"), _names(options)
    model = engine_model(options.model, options.dtype, options.prompt_tokens + options.new_tokens)
    prompts = _prompts(options, model, batches)
    threads = options.threads or thread_pool.choose_threads()
    engines = [_engine(name, model, threads, options.base_url) for name in names]
    with progress_bar() as listener:
        cells = Comparison(engines, prompts, batches, options.rounds, listener).run()
    document = _document(cells, options, model, threads)
    _weigh(document["outputs"], model, prompts, {cell.batch: cell for cell in cells if cell.engine == REFERENCE})
    keep_document(store_file, "engines", f"{model.name} {model.dtype} {options}", document)
    if as_json:
        print_json(document)
    else:
        _print(document)
    faults = [cell.fault for cell in cells if cell.fault is not None]
    if not any(cell.outputs for cell in cells):
        raise NothingMeasuredError(f"nothing was measured: {faults[0]}" if faults else "nothing was measured.")
    return 3 if faults else 0


# ---- what is asked for -------------------------------------------------------------------------------------------


def _names(options: CompareOptions) -> list[str]:
    """The engines asked for; by default those that work here."""
    if not options.engines:
        installed = vllm_environment.installed()
        names = ["native", "transformers", *(["vllm", "vllm-server"] if installed else [])]
        return [*names, *(["openai"] if options.base_url else [])]
    names = list(dict.fromkeys(options.engines.split(",")))
    for name in names:
        _ = ENGINES[name]  # raises with a suggestion
        if name.startswith("vllm"):
            vllm_environment.python()  # raises when it is not installed
    if options.base_url and "openai" not in names:
        raise InputError("--base-url is the address of engine openai, which is not among --engines.")
    if "openai" in names and not options.base_url:
        raise InputError("engine openai talks to a server that runs already: say where with --base-url URL.")
    return names


def _prompts(options: CompareOptions, model: EngineModel, batches: Sequence[int]) -> Prompts:
    """Generated prose, cut to exactly so many tokens; every batch size and round has its own."""
    from suite.models.tokenizer import HFTokenizer
    from workloads.perplexity import Perplexity, PerplexityConfig

    each = options.rounds + 1
    workload = Perplexity(PerplexityConfig(context_words=options.prompt_tokens, stride_words=1))
    tokenizer = HFTokenizer.from_directory(Path(model.directory))
    texts = [request.prompt for request in workload.requests("text", sum(batches) * each, 0)]

    def prompts(batch: int, round_: int) -> list[Prompt]:
        before = each * sum(batches[: batches.index(batch)]) + round_ * batch
        ids = (tokenizer.encode(text)[: options.prompt_tokens] for text in texts[before : before + batch])
        return [Prompt(tuple(one), options.new_tokens) for one in ids]

    return prompts


def _engine(name: str, model: EngineModel, threads: int, base_url: str) -> Engine:
    more = {"base_url": base_url} if name == "openai" else {}
    engine: Engine = ENGINES.load(name)(model, threads, **more)
    return engine


# ---- what came out -----------------------------------------------------------------------------------------------


def _document(cells: Sequence[Cell], options: CompareOptions, model: EngineModel, threads: int) -> Row:
    references = {cell.batch: cell for cell in cells if cell.engine == REFERENCE}
    others = list(dict.fromkeys(cell.engine for cell in cells if cell.engine != REFERENCE))
    return {
        "schema": SCHEMA,
        "machine": machine.fingerprint(),
        "model": model.name,
        "dtype": model.dtype,
        "threads": threads,
        "prompt_tokens": options.prompt_tokens,
        "new_tokens": options.new_tokens,
        "rounds": options.rounds,
        "rows": [_row(cell, references.get(cell.batch), threads) for cell in cells],
        "outputs": [_agreement(name, cells, references) for name in others if references],
    }


def _row(cell: Cell, reference: Cell | None, threads: int) -> Row:
    """One engine at one batch size; of a faulted one only what it said."""
    row: Row = {"engine": cell.engine, "batch": cell.batch, "status": "fault", "rounds": len(cell.outputs)}
    if cell.fault is not None:
        return row | {"fault": {"kind": cell.fault.kind, "detail": str(cell.fault)}}
    disturbed = _noise(cell, threads)
    ratio = None if reference is None or reference is cell else _ratio(cell, reference)
    return row | {
        "status": "unstable" if disturbed.reasons else "ok",
        "fault": None,
        "noise": disturbed.model_dump(),
        **_speed(cell),
        "peak_memory_bytes": cell.peak_memory_bytes,
        "token_source": cell.token_source,
        "metrics": dict(cell.metrics),
        "native_ratio": None if ratio is None else vars(ratio),
    }


def _speed(cell: Cell) -> Row:
    """Totals over totals for the throughput; the spread of requests for the latencies (`_serving_metrics.md`)."""
    from suite.engines.load.summary import statistics

    outputs = [output for batch in cell.outputs.values() for output in batch]
    ttft = [one.ttft_ms for one in outputs]
    tpot = [one.tpot_ms for one in outputs if one.tpot_ms is not None]
    tokens, seconds = sum(len(one.token_ids) for one in outputs), cell.seconds()
    return {
        "total_output_tokens": tokens,
        "duration": sum(seconds.values()),
        "output_throughput": tokens / sum(seconds.values()),
        **statistics("ttft", ttft),
        **statistics("tpot", tpot),
        "samples": {"seconds": list(seconds.values()), "ttft_ms": ttft, "tpot_ms": tpot},
    }


def _ratio(cell: Cell, reference: Cell) -> Estimate | None:
    """Native's speed over the engine's, from pairs of rounds on the same prompts: above 1 native is faster."""
    from analysis.statistics import paired_ratio

    theirs, ours = (
        {(str(one.batch), number): seconds for number, seconds in one.seconds().items()} for one in (cell, reference)
    )
    return paired_ratio(theirs, ours)


def _noise(cell: Cell, threads: int) -> Noise:
    from analysis.statistics import coefficient_of_variation

    seen = Noise(
        threads=threads,
        pinned=True,  # every engine binds its own threads, in its own process
        steal_share=cell.disturbance.steal_share,
        other_load=cell.disturbance.other_load,
        spread=coefficient_of_variation(list(cell.seconds().values())),
    )
    return seen.model_copy(update={"reasons": noise.reasons(seen, thread_pool.available_cores())})


def _agreement(engine: str, cells: Sequence[Cell], references: Mapping[int, Cell]) -> Row:
    """How many greedy answers are native's own, and where the first other one leaves it."""
    own = [cell for cell in cells if cell.engine == engine]
    found = [difference for cell in own for difference in differences(references[cell.batch], cell)]
    compared = sum(
        len(outputs) for cell in own for turn, outputs in cell.outputs.items() if turn in references[cell.batch].outputs
    )
    first = _first(found[0]) if found else None
    return {"engine": engine, "compared": compared, "equal": compared - len(found), "first_difference": first}


def _first(difference: Difference) -> Row:
    native, other = difference.tokens
    where = {"batch": difference.batch, "round": difference.round, "request": difference.request}
    return where | {"position": difference.position, "native_token": native, "token": other}


def _weigh(agreements: Sequence[Row], model: EngineModel, prompts: Prompts, references: Mapping[int, Cell]) -> None:
    """Adds to each first difference how far apart the two tokens' logits are natively in fp32: `fp32_gap`."""
    firsts = [row["first_difference"] for row in agreements if row["first_difference"]]
    weighed = [first for first in firsts if None not in (first["native_token"], first["token"])]
    if not weighed:
        return
    from suite.engines.margins import logit_gap
    from suite.models.loaders import load_model

    native = load_model(model.name, "fp32")
    for first in weighed:
        batch, turn, request = first["batch"], first["round"], first["request"]
        answer = references[batch].outputs[turn][request].token_ids[: first["position"]]
        ids = (*prompts(batch, turn)[request].ids, *answer)
        first["fp32_gap"] = logit_gap(native, ids, (first["native_token"], first["token"]))


# ---- what a person sees ------------------------------------------------------------------------------------------

_COLUMNS = ("engine", "batch", "", "tok/s", "TTFT ms", "TPOT ms", "memory MB", "native x", "KV used", "preempted")


def _print(document: Row) -> None:
    title = (
        f"{document['model']} ({document['dtype']}, {document['threads']} threads): {document['prompt_tokens']} prompt "
        f"tokens, {document['new_tokens']} new ones, {document['rounds']} rounds"
    )
    table(title, _COLUMNS, [_cells(row) for row in document["rows"]])
    say: Callable[[str], None] = lambda text: stdout().print(text, markup=False)  # noqa: E731
    for row in document["rows"]:
        for remark in [row["fault"]["detail"]] if row["fault"] else row["noise"]["reasons"]:
            say(f"{row['engine']}, batch {row['batch']}: {remark}")
    say("native x: native's speed over the engine's; memory: all processes of the engine, at its peak so far")
    for found in document["outputs"]:
        say(_sentence(found, document["dtype"]))


def _cells(row: Row) -> list[str]:
    if row["fault"]:
        return [row["engine"], str(row["batch"]), f"fault: {row['fault']['kind']}", *["-"] * (len(_COLUMNS) - 3)]
    ratio, metrics, memory = row["native_ratio"], row["metrics"], row["peak_memory_bytes"]
    usage = metrics.get("kv_cache_usage_perc")
    return [
        row["engine"] + (" (tokens from text)" if row["token_source"] == "text" else ""),
        str(row["batch"]),
        row["status"],
        number(row["output_throughput"]),
        number(row["median_ttft_ms"]),
        number(row["median_tpot_ms"]),
        number(None if memory is None else memory / 1e6),
        "-" if ratio is None else interval(ratio["value"], ratio["low"], ratio["high"]),
        "-" if usage is None else f"{usage:.1%}",
        number(metrics.get("num_preemptions")),
    ]


def _sentence(found: Row, dtype: str) -> str:
    head = f"{found['engine']}: {found['equal']} of {found['compared']} greedy answers are native's"
    first = found["first_difference"]
    if first is None:
        return f"{head}."
    where = f"batch {first['batch']}, round {first['round']}, request {first['request']}, token {first['position']}"
    told = f"{head}; first difference at {where}: {first['token']}, natively {first['native_token']}"
    gap = first.get("fp32_gap")
    if gap is None:
        return f"{told}."
    prefers = "native's" if gap > 0 else "the engine's"
    close = " (numeric ties are expected in bf16: every engine sums and rounds its own way)" if dtype == "bf16" else ""
    return f"{told}; fp32 prefers {prefers} token by {abs(gap):.2g} of logit{close}."
