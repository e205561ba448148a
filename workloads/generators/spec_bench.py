"""`gen_spec_bench`: questions of Spec-Bench's schema from a seed, for its five tasks of one turn and its conversations.

The tasks differ in how much of an answer stands in the question already: almost all of it for passages and texts,
hardly a word for translations and open talk. That share is what drafts taken from the prompt live on.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Iterator
from functools import cache
from importlib import resources
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

from workloads.generators import infilling, questions, summaries
from workloads.generators.passages import Draft
from workloads.generators.seeding import item_rng
from workloads.generators.word_problems import without_marks, word_problem
from workloads.generators.world import World

SPEC_BENCH_FILE = Path(str(resources.files("workloads.data"))) / "spec_bench.json"
CONVERSATION = "conversation"
TOPICS = ("writing", "roleplay", "reasoning", "math", "coding", "extraction", "stem", "humanities")
"""Of a conversation: the categories of MT-Bench, as Spec-Bench's file names them."""
SINGLE = ("translation", "summarization", "qa", "math_reasoning", "rag")
"""Tasks of one turn, each a category of its own."""
TASKS = (CONVERSATION, *SINGLE)
REPORTS = ("gov_report", "multi_news")
CHAINS = ("multifieldqa_en", "hotpotqa", "2wikimqa")
CHOICES = 4
_SLOT = re.compile(r"\{([a-z]+)\d*\}")


class Talk(NamedTuple):
    """What is asked, turn by turn, and what a good answer to each turn says."""

    turns: list[str]
    answers: list[str]


def gen_spec_bench(seed: int, task: str, target_tokens: int) -> Iterator[dict[str, Any]]:
    """Records without end; `reference` has an answer to each turn. Conversations go round the topics.

    `target_tokens`: about how long the text of a summarization or rag item is. Record i depends on i, the seed, the
    task and that length alone.
    """
    for index in count():
        category = TOPICS[index % len(TOPICS)] if task == CONVERSATION else task
        talk = _talk(World(item_rng("spec-bench", task, seed, index), "en"), category, target_tokens)
        number = 1 + index * len(TASKS) + TASKS.index(task)
        yield {"question_id": number, "category": category, "turns": talk.turns, "reference": talk.answers}


@cache
def _wording() -> dict[str, Any]:
    document: dict[str, Any] = json.loads(SPEC_BENCH_FILE.read_text(encoding="utf-8"))
    return document


def _talk(world: World, category: str, tokens: int) -> Talk:
    if category in MAKERS:
        return MAKERS[category](world, tokens)
    shape = world.rng.choice(_wording()[CONVERSATION][category])
    bound: dict[str, str] = {}
    return Talk(*([world.bind(text, bound) for text in shape[part]] for part in ("turns", "answers")))


def _translation(world: World, tokens: int) -> Talk:
    """One to three German sentences, and the same in English."""
    pairs = [_parallel(world.rng) for _ in range(world.rng.randint(1, 3))]
    german, english = (" ".join(texts) for texts in zip(*pairs, strict=True))
    return Talk([world.rng.choice(_wording()["translation"]["asks"]).format(text=german)], [english])


def _parallel(rng: random.Random) -> tuple[str, str]:
    """A sentence in both languages: slots of the same name get the two forms of one entry."""
    wording = _wording()["translation"]
    german, english = rng.choice(wording["patterns"])
    slots: dict[str, list[str]] = {}
    for match in _SLOT.finditer(german):
        slots[match[0]] = rng.choice([pair for pair in wording["words"][match[1]] if pair not in slots.values()])
    return _filled(german, slots, 0), _filled(english, slots, 1)


def _filled(pattern: str, slots: dict[str, list[str]], side: int) -> str:
    sentence = _SLOT.sub(lambda match: slots[match[0]][side], pattern)
    return sentence[0].upper() + sentence[1:]


def _summarization(world: World, tokens: int) -> Talk:
    """A report with three key sentences; the reference repeats them."""
    draft = summaries.report(world, world.rng.choice(REPORTS), tokens)
    return Talk([_asked(world, "summarization", draft)], draft.answers)


def _rag(world: World, tokens: int) -> Talk:
    """Passages and a question. A good answer copies the facts as asked; the reference is the short answer alone."""
    draft = questions.question_answer(world, world.rng.choice(CHAINS), tokens, label="passages")
    answer = draft.answers[0].removeprefix("a ")  # "a goat called Tiger" is right without its article too
    return Talk([_asked(world, "rag", draft)], [answer])


def _asked(world: World, category: str, draft: Draft) -> str:
    template: str = world.rng.choice(_wording()[category])
    return template.format(context=draft.context, question=draft.input)


def _qa(world: World, tokens: int) -> Talk:
    """A question of general knowledge, with a few answers to choose from or with none."""
    kind = world.rng.choice(_wording()["qa"])
    asked, answer = world.rng.choice(kind["pairs"])
    if world.rng.random() < 0.5:
        return Talk([world.rng.choice(kind["asks"]).format(asked)], [answer])
    others = [other for _, other in kind["pairs"] if other != answer]
    choices = [answer, *world.rng.sample(others, CHOICES - 1)]
    world.rng.shuffle(choices)
    listed = f"{', '.join(choices[:-1])} or {choices[-1]}"
    return Talk([kind["choice"].format(asked, choices=listed)], [answer])


def _math_reasoning(world: World, tokens: int) -> Talk:
    problem = word_problem(world.rng)
    return Talk([problem["question"]], [without_marks(problem["answer"])])


def _math(world: World, tokens: int) -> Talk:
    """A word problem, then a question about its first sum."""
    asked, answer = _math_reasoning(world, tokens)
    first = answer[0].split("\n")[0]
    return Talk([*asked, "Which sum did you do first, and what does its result tell?"], [*answer, first])


def _coding(world: World, tokens: int) -> Talk:
    """A function from its description, then the same with another name for its argument."""
    head, body = infilling.function(world.rng)
    source = head + "\n".join(body)
    argument = head[head.index("(") + 1 : head.index(":")]
    renamed = re.sub(rf"\b{argument}\b", "numbers", source)
    turns = [f"Complete this Python function:\n\n{head}", "Write it again with its argument renamed to numbers."]
    return Talk(turns, [source, renamed])


MAKERS: dict[str, Callable[[World, int], Talk]] = {
    "translation": _translation,
    "summarization": _summarization,
    "qa": _qa,
    "math_reasoning": _math_reasoning,
    "rag": _rag,
    "math": _math,
    "coding": _coding,
}
