"""What the workload tests share: completions made of text, and small data files in every workload's public schema."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from workloads.schema import Completion, CostLedger, Request, Workload

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"


def completion(request: Request, text: str = "", logprobs: Sequence[float] = ()) -> Completion:
    """A completion of that text (or of those target log-probabilities), as an engine would return it."""
    return Completion(
        request_id=request.id,
        token_ids=(),
        text=text,
        start_ns=0,
        token_ns=(),
        stop_reason="eos",
        cost=CostLedger(prompt_tokens=1, generated_tokens=0),
        target_logprobs=tuple(logprobs),
    )


def perfect(request: Request) -> Completion:
    """The best there is: the reference (or all, where all are wanted), or certainty about every token of the target."""
    if request.target is not None:
        return completion(request, logprobs=(0.0, 0.0))
    wanted = request.references if request.metric == "all_references" else request.references[:1]
    return completion(request, " ".join(wanted))


def take(workload: Workload, task: str, limit: int, seed: int = 0) -> list[Request]:
    return list(workload.requests(task, limit, seed))


def write_jsonl(path: Path, records: Iterable[Any]) -> Path:
    path.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records), encoding="utf-8")
    return path


def longbench_record(**changes: Any) -> dict[str, Any]:
    record = {
        "input": "Who is the mayor?",
        "context": "The mayor is Ada.",
        "answers": ["Ada"],
        "length": 4,
        "dataset": "qasper",
        "language": "en",
        "all_classes": None,
        "_id": "1",
    }
    return {**record, **changes}


NEEDLE_RECORD = {
    "context_length": 400,
    "depth_percent": 50.0,
    "needle": "The code is 77.",
    "question": "What is the code?",
    "answer": "77",
    "context": "It rained. The code is 77. It snowed.",
}

RULER_RECORD = {
    "index": 0,
    "input": "VAR A = 1, VAR B = VAR A. Which are 1?",
    "outputs": ["A", "B"],
    "length": 60,
    "answer_prefix": " They are:",
}

LAB_RECORD = longbench_record(
    context="w01 k03 4 5 w02", input="? k03", answers=["4 5"], length=512, dataset="qa", language="lab"
)
INFILL_RECORD = {
    "task_id": "SingleLineInfilling/HumanEval/7/L1",
    "entry_point": "second",
    "prompt": "def second(items):\n    suffix = f'{suffix}'\n",
    "suffix": "\n    return f'{prefix}'\n",
    "canonical_solution": "    first = items",
    "test": "def check(candidate): pass",
}
CONVERSATION = {"conversations": [{"from": "human", "value": "Who is Ada?"}, {"from": "gpt", "value": "The mayor."}]}

QUOTE_RECORD = {
    "task": "quote",
    "context": "Fact 1: Ada won.\nFact 2: It rained.",
    "question": "Copy fact 1.",
    "answers": ["Ada won."],
}

SPEC_BENCH_RECORD = {
    "question_id": 161,
    "category": "translation",
    "turns": ["Translate German to English: Der Hund schläft."],
    "reference": ["The dog is asleep."],
}

MATH_RECORD = {
    "problem": "What is half of $1$?",
    "solution": "It is $\\boxed{\\frac{1}{2}}$.",
    "answer": "\\frac{1}{2}",
    "subject": "Prealgebra",
    "level": 1,
    "unique_id": "test/prealgebra/1.json",
}

GPQA_RECORD = {
    "Question": "Which metal is liquid at 20 degrees?",
    "Correct Answer": "mercury",
    "Incorrect Answer 1": "iron",
    "Incorrect Answer 2": "lead",
    "Incorrect Answer 3": "zinc",
    "High-level domain": "Chemistry",
    "Subdomain": "General",
    "Record ID": "rec1",
}

RECORDS: dict[str, tuple[str, dict[str, Any], str]] = {
    "chat-open": ("open.jsonl", {"prompt": "Who is Ada?"}, "prompt"),
    "aime": ("aime.jsonl", {"id": 60, "problem": "How many are $3$ and $21$?", "answer": "024"}, "problem"),
    "gpqa": ("gpqa_diamond.jsonl", GPQA_RECORD, "Correct Answer"),
    "gsm8k": ("problems.jsonl", {"question": "What is 2 and 3?", "answer": "2+3=<<2+3=5>>5\n#### 5"}, "answer"),
    "humaneval-infill": ("infill.jsonl", INFILL_RECORD, "suffix"),
    "lab-longbench": ("lab.jsonl", LAB_RECORD, "context"),
    "longbench": ("qasper.jsonl", longbench_record(), "context"),
    "math500": ("test.jsonl", MATH_RECORD, "level"),
    "needle": ("needles.jsonl", NEEDLE_RECORD, "answer"),
    "passkey": ("keys.jsonl", {"prompt": "The pass key is", "answer": "12", "length": 300}, "length"),
    "rag-copy": ("quotes.jsonl", QUOTE_RECORD, "answers"),
    "recall": ("recall.jsonl", {"prompt": "k01 3 4 ? k01", "answer": "3 4", "length": 128}, "prompt"),
    "ruler": ("vt.jsonl", RULER_RECORD, "outputs"),
    "serving": ("conversations.jsonl", CONVERSATION, "conversations"),
    "spec-bench": ("question.jsonl", SPEC_BENCH_RECORD, "turns"),
}
"""By workload: the name of a data file, one good record, and a field to leave out."""


def data_path(name: str, directory: Path, records: Iterable[Any]) -> Path:
    """Writes records as the workload's data file; returns what its `data` option takes."""
    path = write_jsonl(directory / RECORDS[name][0], records)
    return directory if name == "longbench" else path
