"""The two files of Spec-Bench: its questions, and a model's answers to them."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, Field, field_validator

from workloads.generators.spec_bench import CONVERSATION, SINGLE, TOPICS

Text = Annotated[str, Field(min_length=1)]


class SpecBenchRecord(BaseModel):
    """One line of the official `question.jsonl`. `reference`: an answer to each turn; few official ones have it."""

    question_id: int
    category: str
    turns: list[Text] = Field(min_length=1)
    reference: list[str] = []

    @field_validator("category")
    @classmethod
    def _known(cls, value: str) -> str:
        if value not in (*TOPICS, *SINGLE):
            raise ValueError(f"{value!r} is not one of {', '.join((*TOPICS, *SINGLE))}")
        return value

    @property
    def task(self) -> str:
        """The task it belongs to: its category, or that of all conversations."""
        return self.category if self.category in SINGLE else CONVERSATION


class Choice(BaseModel):
    """One answer of a model to every turn."""

    turns: list[str]


class AnswerRecord(BaseModel):
    """One line of a file that Spec-Bench's or FastChat's scripts write; the first choice is taken."""

    question_id: int
    choices: list[Choice] = Field(min_length=1)
