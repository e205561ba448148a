"""Open questions to a chat model: answers repeat neither the prompt nor each other, and nothing is right or wrong.

The control of drafting methods (card `methods/lookahead.md`): what they cost where there is little to copy.
"""

from __future__ import annotations

from collections.abc import Iterator

from pydantic import BaseModel, Field

from workloads.generators.seeding import item_rng
from workloads.generators.world import World
from workloads.loading import read_records
from workloads.schema import Completion, Request, Workload, WorkloadConfig

TASK = "questions"
ASKED = (
    "Write a short story about {first}, {first2} and a {adjective} {thing}.",
    "Why might {first} {last} keep a {thing} in the {place}?",
    "What would you tell {first} {last}, who is afraid of the {weather}?",
    "Describe how {first} {last} spends a {adjective} morning near the {place}.",
    "How could {first} {last} make a living with a {thing}?",
    "Give {first} {last} three unusual uses for a {adjective} {thing}.",
    "{first} {last} asks: what is the difference between a {thing} and a {thing2}?",
    "Write a letter from {first} {last} to {first2} about the {weather}.",
)


class ChatOpenRecord(BaseModel):
    """One item of a user's own file."""

    prompt: str = Field(min_length=1)


class ChatOpenConfig(WorkloadConfig):
    """`new_tokens`: the longest answer."""

    new_tokens: int = Field(default=128, ge=1, le=100_000)


class ChatOpen(Workload):
    """Any answer counts, as in `serving`; the prompts are sentences, and every one is another."""

    name = "chat-open"
    version = "1"
    tasks: tuple[str, ...] = (TASK,)
    score_name = "answered, 0-100"
    Config = ChatOpenConfig
    config: ChatOpenConfig

    def __init__(self, config: ChatOpenConfig | None = None) -> None:
        super().__init__(config)
        self._records = read_records(self.config.data, ChatOpenRecord) if self.config.data else []

    def requests(self, task: str, limit: int, seed: int) -> Iterator[Request]:
        self.check_task(task)
        prompts = [record.prompt for record in self._records] or [_prompt(index, seed) for index in range(limit)]
        for index, prompt in enumerate(prompts[:limit]):
            yield Request(
                id=f"chat-open/{index}",
                task=TASK,
                prompt=prompt,
                chat=True,
                references=("any answer",),
                metric="answered",
                max_new_tokens=self.config.new_tokens,
                seed=seed,
            )

    def score(self, completion: Completion, request: Request) -> float:
        """100 if there is an answer, else 0."""
        return 100.0 if completion.text.strip() else 0.0


def _prompt(index: int, seed: int) -> str:
    rng = item_rng("chat-open", seed, index)
    return World(rng, "en").bind(ASKED[index % len(ASKED)], {})
