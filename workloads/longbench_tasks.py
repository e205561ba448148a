"""The 21 data sets of LongBench: category, metric, new tokens and prompt handling (`_workloads.md` section 1)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from statistics import fmean


@dataclass(frozen=True)
class Task:
    """One data set. `chat`: the model's chat template is put around the prompt. `first_line`: only it is scored."""

    category: str
    metric: str
    max_new_tokens: int
    chat: bool = True
    first_line: bool = False
    stop: tuple[str, ...] = ()


SINGLE, MULTI, SUMMARY = "single-document QA", "multi-document QA", "summarization"
FEW_SHOT, SYNTHETIC, CODE = "few-shot", "synthetic", "code"

TASKS: Mapping[str, Task] = {
    "narrativeqa": Task(SINGLE, "f1", 128),
    "qasper": Task(SINGLE, "f1", 128),
    "multifieldqa_en": Task(SINGLE, "f1", 64),
    "multifieldqa_zh": Task(SINGLE, "f1_zh", 64),
    "hotpotqa": Task(MULTI, "f1", 32),
    "2wikimqa": Task(MULTI, "f1", 32),
    "musique": Task(MULTI, "f1", 32),
    "dureader": Task(MULTI, "rouge_l_zh", 128),
    "gov_report": Task(SUMMARY, "rouge_l", 512),
    "qmsum": Task(SUMMARY, "rouge_l", 512),
    "multi_news": Task(SUMMARY, "rouge_l", 512),
    "vcsum": Task(SUMMARY, "rouge_l_zh", 512),
    "trec": Task(FEW_SHOT, "classification", 64, chat=False, first_line=True),
    "triviaqa": Task(FEW_SHOT, "f1", 32, chat=False, first_line=True),
    "samsum": Task(FEW_SHOT, "rouge_l", 128, chat=False, first_line=True, stop=("\n",)),
    "lsht": Task(FEW_SHOT, "classification", 64, chat=False, first_line=True),
    "passage_count": Task(SYNTHETIC, "count", 32),
    "passage_retrieval_en": Task(SYNTHETIC, "retrieval", 32),
    "passage_retrieval_zh": Task(SYNTHETIC, "retrieval", 32),
    "lcc": Task(CODE, "edit_similarity", 64, chat=False),
    "repobench-p": Task(CODE, "edit_similarity", 64, chat=False),
}
BINS = ((4000, "0-4k"), (8000, "4-8k"))


def length_bin(length: int) -> str:
    """The bin of LongBench-E a record belongs to, by its `length` in words or characters."""
    return next((name for limit, name in BINS if length < limit), "8k+")


def aggregate(scores: Mapping[str, float]) -> dict[str, float]:
    """Scores by task (0-100) as LongBench sums them up.

    Returns the mean of each category present, `categories` (the mean of those means: LongBench's average) and `flat`
    (the mean over the tasks).
    """
    by_category: dict[str, list[float]] = {}
    for task, score in scores.items():
        by_category.setdefault(TASKS[task].category, []).append(score)
    means = {category: fmean(values) for category, values in by_category.items()}
    return {**means, "categories": fmean(means.values()), "flat": fmean(scores.values())}


def by_length(scored: Iterable[tuple[int, float]]) -> dict[str, float]:
    """LongBench-E: the mean score of each length bin, from pairs of a record's `length` and its score."""
    bins: dict[str, list[float]] = {}
    for length, score in scored:
        bins.setdefault(length_bin(length), []).append(score)
    return {name: fmean(bins[name]) for name in ("0-4k", "4-8k", "8k+") if name in bins}
