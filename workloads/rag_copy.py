"""Answers that copy from the context: eight short facts, two or three of which are wanted word for word.

The small experiment of card `methods/lookahead.md` ("RAG-like"): where drafts from the prompt should be at their best.
"""

from __future__ import annotations

from collections.abc import Iterator

from pydantic import BaseModel, Field

from workloads.generators.seeding import item_rng
from workloads.generators.world import World
from workloads.loading import read_records
from workloads.schema import Completion, Request, Workload, WorkloadConfig

TASKS = ("quote", "list")
ANSWER_TOKENS = 128
ASKED = {
    "quote": "Copy facts {numbers} from the list above, word for word, one on each line.",
    "list": "List the facts about {town} from the list above, word for word, one on each line.",
}
DATASETS = ("gov_report", "qmsum", "multi_news")
"""Whose key points are the facts, of the lexicon's."""


class RagCopyRecord(BaseModel):
    """One item of a user's own file; each answer stands in the context word for word."""

    task: str = Field(pattern="^(quote|list)$")
    context: str = Field(min_length=1)
    question: str = Field(min_length=1)
    answers: list[str] = Field(min_length=1)


class RagCopyConfig(WorkloadConfig):
    """`facts` in the context; two or three of them are wanted."""

    facts: int = Field(default=8, ge=4, le=64)


class RagCopy(Workload):
    """Task "quote" asks for facts by number, "list" for those about one town."""

    name = "rag-copy"
    version = "1"
    tasks: tuple[str, ...] = TASKS
    score_name = "facts quoted, 0-100"
    Config = RagCopyConfig
    config: RagCopyConfig

    def __init__(self, config: RagCopyConfig | None = None) -> None:
        super().__init__(config)
        self._records = read_records(self.config.data, RagCopyRecord) if self.config.data else []
        if self._records:
            held = {record.task for record in self._records}
            self.tasks = tuple(task for task in TASKS if task in held)

    def requests(self, task: str, limit: int, seed: int) -> Iterator[Request]:
        self.check_task(task)
        if self._records:
            chosen = [record for record in self._records if record.task == task][:limit]
        else:
            chosen = [_record(task, self.config.facts, index, seed) for index in range(limit)]
        for index, record in enumerate(chosen):
            yield Request(
                id=f"rag-copy/{task}/{index}",
                task=task,
                prompt=f"{record.context}\n\n{record.question}",
                question=record.question,
                chat=True,
                references=tuple(record.answers),
                metric="all_references",
                max_new_tokens=ANSWER_TOKENS,
                seed=seed,
                metadata={"facts": self.config.facts, "wanted": len(record.answers)},
            )

    def score(self, completion: Completion, request: Request) -> float:
        """The share of the wanted facts that stand in the output word for word, in percent."""
        found = sum(fact in completion.text for fact in request.references)
        return 100.0 * found / len(request.references)


def _record(task: str, count: int, index: int, seed: int) -> RagCopyRecord:
    rng = item_rng("rag-copy", seed, task, index)
    world = World(rng, "en")
    templates = [
        template for name in DATASETS for template in world.lexicon["key_points"][name] if "{town}" in template
    ]
    town, wanted = world.draw("town"), rng.sample(range(count), rng.choice((2, 3)))
    facts = []
    for place in range(count):
        bound = {"{town}": town} if place in wanted else {}
        facts.append(world.bind(templates[(index + place) % len(templates)], bound))
    numbers = [str(place + 1) for place in sorted(wanted)]
    return RagCopyRecord(
        task=task,
        context="\n".join(f"Fact {number}: {fact}" for number, fact in enumerate(facts, start=1)),
        question=ASKED[task].format(numbers=" and ".join([", ".join(numbers[:-1]), numbers[-1]]), town=town),
        answers=[facts[place] for place in sorted(wanted)],
    )
