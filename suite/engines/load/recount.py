"""Token counts of a run after the fact, by the model's own tokenizer: they check the server's usage, or replace it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace

from suite.engines.load.plan import Plan
from suite.engines.load.records import Record
from suite.engines.load.target import Endpoint, answered, joined, messages
from suite.models.tokenizer import HFTokenizer

History = list[dict[str, str]]


def recount(plan: Plan, records: Sequence[Record], endpoint: Endpoint, tokenizer: HFTokenizer) -> list[Record]:
    """The records with the tokenizer's counts; they are the counts where the server sent no usage.

    A request that failed stays as it is: its answer is not complete.
    """
    texts = {item.index: item.text for item in plan.items}
    histories: dict[str, History] = defaultdict(list)
    found = []
    for record in records:
        session, text = record.session or f"#{record.index}", texts[record.index]
        found.append(_counted(record, _prompt_tokens(text, histories[session], endpoint, tokenizer), tokenizer))
        histories[session] = answered(text, histories[session], record.text)
    return found


def _prompt_tokens(text: str, history: History, endpoint: Endpoint, tokenizer: HFTokenizer) -> int:
    if endpoint == "chat":
        return len(tokenizer.conversation(messages(text, history)))
    return len(tokenizer.prompt(joined(text, history), chat=False))


def _counted(record: Record, n_in: int, tokenizer: HFTokenizer) -> Record:
    if not record.ok:
        return record
    n_out = len(tokenizer.encode(record.text))
    checked = replace(record, n_tokenizer_in=n_in, n_tokenizer=n_out)
    return replace(checked, n_in=n_in, n_out=n_out, source="tokenizer") if record.source == "unknown" else checked
