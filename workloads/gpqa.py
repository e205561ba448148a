"""GPQA-Diamond (arXiv 2311.12022): 198 questions for experts, four options each. Its authors ask not to show them.

The official file has the right answer first. Options are put in an order drawn once from `shuffle_seed`, which is
stored with the options of the run; every repeat and every method then sees the same letters.
"""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from workloads.generators.ontology import ontology_question
from workloads.generators.seeding import item_rng
from workloads.reasoning import Problem, ReasoningConfig, ReasoningWorkload

LETTERS = "ABCD"


class GpqaRecord(BaseModel):
    """The columns of the official CSV that are used."""

    model_config = ConfigDict(populate_by_name=True)

    question: str = Field(alias="Question", min_length=1)
    right: str = Field(alias="Correct Answer", min_length=1)
    wrong_1: str = Field(alias="Incorrect Answer 1", min_length=1)
    wrong_2: str = Field(alias="Incorrect Answer 2", min_length=1)
    wrong_3: str = Field(alias="Incorrect Answer 3", min_length=1)
    domain: str = Field(alias="High-level domain", default="")
    subdomain: str = Field(alias="Subdomain", default="")
    record_id: str = Field(alias="Record ID", default="")


class GpqaConfig(ReasoningConfig):
    """`shuffle_seed`: of the order of the options, which no other seed changes."""

    shuffle_seed: int = Field(default=0, ge=0)


class Gpqa(ReasoningWorkload[GpqaRecord]):
    """The answer is a letter. `metadata["order"]` says which option of the file, the right one being 0, has which."""

    name = "gpqa"
    version = "1"
    kind = "letter"
    wanted = "the letter of the right option"
    schema = GpqaRecord
    files = ("gpqa_diamond",)
    hub = ("Idavidrein/gpqa", "gpqa_diamond.csv")
    Config = GpqaConfig
    config: GpqaConfig

    def problem(self, index: int, record: GpqaRecord) -> Problem:
        options = [record.right, record.wrong_1, record.wrong_2, record.wrong_3]
        order = list(range(len(LETTERS)))
        item_rng("gpqa order", self.config.shuffle_seed, index).shuffle(order)
        lines = [f"({letter}) {options[place].strip()}" for letter, place in zip(LETTERS, order, strict=True)]
        facts = {
            "order": order,
            "domain": record.domain,
            "subdomain": record.subdomain,
            "record_id": record.record_id,
        }
        return Problem("\n".join([record.question.strip(), "", *lines]), LETTERS[order.index(0)], facts)

    def generated(self, seed: int, index: int) -> GpqaRecord:
        made = ontology_question(item_rng("gpqa", seed, index))
        return GpqaRecord.model_validate({**made, "Record ID": f"generated/{seed}/{index}"})
