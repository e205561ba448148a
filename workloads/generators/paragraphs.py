"""The synthetic tasks: counting distinct paragraphs, and finding the paragraph an abstract was made from."""

from __future__ import annotations

from workloads.generators.passages import Draft, Passage, evidence, join
from workloads.generators.questions import instance
from workloads.generators.world import World
from workloads.lengths import estimate_tokens

PARAGRAPHS_TO_SEARCH = 30
"""As the English prompt says. The Chinese one names no number, and shorter items have fewer paragraphs there."""
TOKENS_TO_SEARCH_ZH = 60
TOKENS_TO_COUNT = 120
"""Length of a paragraph of passage_count; their number follows from the item's length, 4 to 50."""


def passage_count(world: World, dataset: str, tokens: int) -> Draft:
    """Paragraphs of which some come twice or more; the answer is how many differ."""
    total = min(50, max(4, tokens // TOKENS_TO_COUNT))
    distinct = world.rng.randint(total // 2, total)
    texts = [_of_length(world, [], tokens // total) for _ in range(distinct)]
    texts += [world.rng.choice(texts) for _ in range(total - distinct)]
    world.rng.shuffle(texts)
    passages = [evidence(f"Paragraph {number}: {text}") for number, text in enumerate(texts, start=1)]
    whole = join(passages, "\n\n")
    return Draft("", whole.text, [str(distinct)], whole.evidence, unique=False)


def passage_retrieval(world: World, dataset: str, tokens: int, label: str) -> Draft:
    """Numbered paragraphs; the abstract states again the fact that only one of them holds."""
    total = PARAGRAPHS_TO_SEARCH
    if not world.blank:
        total = max(5, min(total, tokens // TOKENS_TO_SEARCH_ZH))
    chains = [chain for chain in world.lexicon["facts"][_FACTS[dataset]] if len(chain["facts"]) == 1]
    drawn = [instance(world, world.rng.choice(chains))[0][0] for _ in range(total)]
    answer = world.rng.randrange(total)
    passages = []
    for index, fact in enumerate(drawn):
        text = f"{label}{index + 1}: {_of_length(world, [fact], tokens // total)}"
        passages.append(evidence(text) if index == answer else Passage(text))
    whole = join(passages, "\n\n")
    return Draft(drawn[answer], whole.text, [f"{label}{answer + 1}"], whole.evidence, unique=False)


_FACTS = {"passage_retrieval_en": "multifieldqa_en", "passage_retrieval_zh": "multifieldqa_zh"}


def _of_length(world: World, sentences: list[str], tokens: int) -> str:
    """The sentences, and filler up to about `tokens` tokens; at least one sentence in all."""
    chosen = list(sentences) or [world.sentence()]
    while estimate_tokens(world.join(chosen)) < tokens:
        chosen.append(world.sentence())
    return world.join(chosen)
