"""`gen_longbench`: records of LongBench's public schema from a seed, for all 21 data sets."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from workloads.generators import code, few_shot, paragraphs, questions, summaries
from workloads.generators.passages import Draft, Span
from workloads.generators.seeding import item_rng
from workloads.generators.world import Language, World

GENERATOR_VERSION = "1"
ATTEMPTS = 100
Maker = Callable[[World, str, int], Draft]

MAKERS: dict[str, Maker] = {
    "narrativeqa": questions.question_answer,
    "qasper": partial(questions.question_answer, label="paper"),
    "multifieldqa_en": questions.question_answer,
    "multifieldqa_zh": questions.question_answer,
    "hotpotqa": partial(questions.question_answer, label="passages"),
    "2wikimqa": partial(questions.question_answer, label="passages"),
    "musique": partial(questions.question_answer, label="passages"),
    "dureader": partial(questions.question_answer, label="articles"),
    "gov_report": summaries.report,
    "qmsum": partial(summaries.meeting, query=summaries.QUERY),
    "multi_news": summaries.news,
    "vcsum": summaries.meeting,
    "trec": partial(few_shot.classification, labels=("Question: ", "Type:")),
    "triviaqa": few_shot.trivia,
    "samsum": few_shot.dialogue,
    "lsht": partial(few_shot.classification, labels=("新闻：", "类别：")),
    "passage_count": paragraphs.passage_count,
    "passage_retrieval_en": partial(paragraphs.passage_retrieval, label="Paragraph "),
    "passage_retrieval_zh": partial(paragraphs.passage_retrieval, label="段落"),
    "lcc": code.one_file,
    "repobench-p": code.two_files,
}
CHINESE = ("multifieldqa_zh", "dureader", "vcsum", "lsht", "passage_retrieval_zh")


def gen_longbench(seed: int, dataset: str, n: int, target_tokens: int) -> Iterator[dict[str, Any]]:
    """`n` records of `dataset`, each about `target_tokens` long (`lengths.estimate_tokens` of its context).

    Beside the official fields a record holds `evidence_spans` (character spans in `context` the answer follows from)
    and `depth` (where the last of them starts, 0 to 1). Record i depends on the seed, the data set and i alone.
    """
    language: Language = "zh" if dataset in CHINESE else "en"
    for index in range(n):
        rng = item_rng("longbench", GENERATOR_VERSION, dataset, seed, index)
        for _ in range(ATTEMPTS):
            draft = MAKERS[dataset](World(rng, language), dataset, target_tokens)
            if not leaks(draft):
                break
        yield {
            "input": draft.input,
            "context": draft.context,
            "answers": draft.answers,
            "length": len(draft.context) if language == "zh" else len(draft.context.split()),
            "dataset": dataset,
            "language": draft.language or language,
            "all_classes": draft.all_classes,
            "_id": f"{dataset}-{seed}-{index}",
            "depth": draft.evidence[-1][0] / len(draft.context),
            "evidence_spans": [list(span) for span in draft.evidence],
        }


def leaks(draft: Draft) -> bool:
    """Whether an answer that should stand in the evidence only is found elsewhere in context or input."""
    if not draft.unique:
        return False
    rest = _without(draft.context, draft.evidence) + "\n" + draft.input
    return any(answer.casefold() in rest.casefold() for answer in draft.answers)


def _without(text: str, spans: tuple[Span, ...]) -> str:
    kept, position = [], 0
    for start, end in spans:
        kept.append(text[position:start])
        position = end
    return "\n".join([*kept, text[position:]])
