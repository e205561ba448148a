"""The generation loop of the native decoder, and the meter it reports to."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from suite.models.attention import Attention
from suite.models.cache import KVCache
from suite.models.decoder import Decoder
from suite.models.language_model import EncodedPrompt, LanguageModel
from suite.models.sampling import Sampler
from suite.models.stops import cut_at_stop
from workloads.schema import Completion, CostLedger, DraftFigures, Request, StopReason

PREFILL_CHUNK = 512  # tokens per prefill pass: enough rows for a full-speed matrix product, little scratch memory


@dataclass(frozen=True)
class AttentionRead:
    """What one attention call of one layer read for its last query row (definitions: `_kv_retention.md`).

    `tokens` is t (tokens seen, current included). `stored`, `union` and `padded` count positions per KV head, averaged
    over the KV heads; `per_query_head` averages |A_q| over the query heads. Bytes are those of this call.
    """

    layer: int
    tokens: int
    prompt_tokens: int
    stored: float
    union: float
    per_query_head: float
    padded: float
    kv_bytes: int
    index_bytes: int
    copy_bytes: int
    fetch_bytes: int = 0  # brought from the host tier


class Meter(Protocol):
    """Takes the time stamps and, in a counting pass, the figures that would cost time to collect.

    `counting` is False in timed runs; then `attention`, `planned` and `resident` are never called.
    """

    counting: bool

    def start(self, request_id: str, prompt_tokens: int) -> None:
        """The tokenised prompt is handed over now: the clock of this request starts."""

    def token(self, request_id: str, token_id: int) -> None:
        """A token of this request is known to the caller now."""

    def times(self, request_id: str) -> tuple[int, tuple[int, ...]]:
        """When the request started and when each of its tokens was known, in `time.perf_counter_ns()`."""
        ...

    def phase(self, name: str) -> None:
        """The forward passes that follow belong to `name`: "prefill" or "decode"."""

    def step(self, tokens: int, context_tokens: int) -> None:
        """One forward pass over `tokens` new tokens begins, with `context_tokens` in the cache after it."""

    def attention(self, read: AttentionRead) -> None:
        """One decode attention call (counting pass only)."""

    def planned(self, index_bytes: int) -> None:
        """One prefill attention call chose what to read, for which it read that much of an index (counting pass)."""

    def resident(self, kv_bytes: int, index_bytes: int, host_bytes: int = 0) -> None:
        """Bytes of the cache's and the index's real storages at the end of a request (counting pass only).

        `host_bytes` are those of `kv_bytes` that are on the host tier.
        """


@dataclass
class Slot:
    """One request of the running batch: what it has produced, and whether it is done.

    `told`: the log-probabilities of what it draws are wanted too, the model's own, before temperature.
    """

    request: Request
    prompt: EncodedPrompt
    eos_ids: tuple[int, ...]
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    stop_reason: StopReason | None = None
    told: bool = False

    @property
    def limit(self) -> int:
        """Tokens this request may produce, or has to score."""
        return len(self.prompt.target_ids) or self.request.max_new_tokens


def generate(
    model: LanguageModel,
    attention: Attention,
    requests: Sequence[Request],
    meter: Meter,
    prefill_chunk: int = PREFILL_CHUNK,
) -> Iterator[Completion]:
    """Runs one batch of requests to their ends; completions come in the order of the requests.

    Requests with a `target` are teacher-forced on the decode path.
    """
    slots = [Slot(request, model.encode(request), model.config.eos_ids) for request in requests]
    for _ in steps(model, attention, slots, meter, prefill_chunk):
        pass
    yield from (completion(model, slot, meter) for slot in slots)


def steps(
    model: LanguageModel, attention: Attention, slots: Sequence[Slot], meter: Meter, prefill_chunk: int
) -> Iterator[None]:
    """Runs the slots' prompts as one batch; comes back after every token step."""
    sampler = Sampler([slot.request for slot in slots])
    # A row that has ended goes on until the batch does, so its cache grows with the longest of the others.
    longest = max(len(slot.prompt.ids) for slot in slots) + max(slot.limit for slot in slots)
    cache = model.decoder.new_cache(len(slots), attention.capacity(longest))
    for slot in slots:
        meter.start(slot.request.id, len(slot.prompt.ids))
    with torch.inference_mode():
        meter.phase("prefill")
        _read_questions(model, attention, slots, meter)
        logits = prefill(model.decoder, attention, cache, [slot.prompt.ids for slot in slots], meter, prefill_chunk)
        meter.phase("decode")
        while _take(model, sampler(logits), logits, slots, meter):
            yield
            last = torch.tensor([[slot.tokens[-1]] for slot in slots])
            active = [int(slot.stop_reason is None) for slot in slots]
            meter.step(sum(active), max(cache.seen) + 1)
            logits = model.decoder(last, cache, attention)
    if meter.counting:
        kv_bytes = cache.live_bytes() + attention.kv_bytes()
        meter.resident(kv_bytes, attention.index_bytes(), attention.host_bytes())
    yield


def _read_questions(model: LanguageModel, attention: Attention, slots: Sequence[Slot], meter: Meter) -> None:
    """A pass over each question alone for an attention that asks for it: timed and counted, its cache thrown away.

    The prompt's first token goes before the question: the attention that any first token draws is not the question's.
    """
    for row, slot in enumerate(slots):
        reader = attention.question_reader(row, len(slot.prompt.ids)) if slot.prompt.question_ids else None
        if reader is not None:
            ids = (slot.prompt.ids[0], *slot.prompt.question_ids)
            meter.step(len(ids), len(ids))
            model.decoder(torch.tensor([ids]), model.decoder.new_cache(1, len(ids)), reader)


def prefill(
    decoder: Decoder,
    attention: Attention,
    cache: KVCache,
    prompts: Sequence[Sequence[int]],
    meter: Meter | None,
    chunk: int = PREFILL_CHUNK,
) -> Tensor:
    """Feeds all prompts in ragged chunks; returns the logits [B, vocab] after each prompt's last token."""
    sizes = [pass_tokens(len(ids), chunk) for ids in prompts]
    logits = torch.empty(len(prompts), decoder.config.vocab)
    for turn in range(max(-(-len(ids) // size) for ids, size in zip(prompts, sizes, strict=True))):
        pieces = [ids[turn * size : (turn + 1) * size] for ids, size in zip(prompts, sizes, strict=True)]
        counts = [len(piece) for piece in pieces]
        if meter is not None:
            meter.step(sum(counts), max(cache.seen) + max(counts))
        fresh = decoder(padded(pieces), cache, attention, counts)
        for row, count in enumerate(counts):
            if count:
                logits[row] = fresh[row]
    return logits


def padded(pieces: Sequence[Sequence[int]]) -> Tensor:
    """Token ids of a ragged batch as [B, T], filled up with zeros on the right."""
    width = max(map(len, pieces))
    return torch.tensor([[*piece, *[0] * (width - len(piece))] for piece in pieces])


def pass_tokens(length: int, most: int) -> int:
    """Tokens per pass of a prompt, `most` or a little less, so that it does not end with a pass of one token.

    Methods take a pass of single tokens for decoding. A prompt of one token cannot be helped.
    """
    return next((size for size in range(most, most // 2, -1) if length % size != 1), most)


def _take(model: LanguageModel, drawn: Sequence[int], logits: Tensor, slots: Sequence[Slot], meter: Meter) -> bool:
    """Hands each running request its next token; False when all are done."""
    for row, slot in enumerate(slots):
        if slot.stop_reason is not None:
            continue
        token = drawn[row]
        if slot.prompt.target_ids:
            token = score_target(slot, logits[row])
        elif slot.told:
            slot.logprobs.append(float(logits[row].log_softmax(dim=-1)[token]))
        give(model, slot, token, meter)
    return any(slot.stop_reason is None for slot in slots)


def score_target(slot: Slot, logits: Tensor) -> int:
    """The next token of a teacher-forced request; notes what the logits [vocab] give to it."""
    token = slot.prompt.target_ids[len(slot.tokens)]
    slot.logprobs.append(float(logits.log_softmax(dim=-1)[token]))
    return token


def give(model: LanguageModel, slot: Slot, token: int, meter: Meter) -> None:
    """Hands a running request its next token, and ends it there if that is its last one."""
    meter.token(slot.request.id, token)
    slot.tokens.append(token)
    slot.stop_reason = _stopped(model, slot)


def _stopped(model: LanguageModel, slot: Slot) -> StopReason | None:
    if slot.prompt.target_ids:
        return "scored" if len(slot.tokens) == slot.limit else None
    if slot.tokens[-1] in slot.eos_ids:
        return "eos"
    if _reached_stop(model, slot):
        return "stop"
    return "length" if len(slot.tokens) == slot.limit else None


def _reached_stop(model: LanguageModel, slot: Slot) -> bool:
    """Looks at the newest tokens only, at four per character at most; the whole text is decoded on a hit."""
    if not (stops := slot.request.stop):
        return False
    newest = model.tokenizer.decode(slot.tokens[-4 * max(map(len, stops)) :])
    if not any(stop in newest for stop in stops):
        return False
    text = model.tokenizer.decode(slot.tokens)
    return cut_at_stop(text, stops) != text


def _text(model: LanguageModel, slot: Slot) -> str:
    """The text without the end token and without what follows a stop string (the ids keep both)."""
    text = model.tokenizer.decode([token for token in slot.tokens if token not in model.config.eos_ids])
    return cut_at_stop(text, slot.request.stop)


def completion(
    model: LanguageModel,
    slot: Slot,
    meter: Meter,
    cost: CostLedger | None = None,
    drafts: DraftFigures | None = None,
) -> Completion:
    """What a request that has ended came to; without a ledger every token was a pass of its own."""
    start_ns, token_ns = meter.times(slot.request.id)
    plain = CostLedger(len(slot.prompt.ids), len(slot.tokens), sequential_depth=len(slot.tokens))
    return Completion(
        request_id=slot.request.id,
        token_ids=tuple(slot.tokens),
        text=_text(model, slot),
        start_ns=start_ns,
        token_ns=token_ns,
        stop_reason=slot.stop_reason or "length",
        cost=cost or plain,
        drafts=drafts,
        target_logprobs=tuple(slot.logprobs),
        notes=slot.prompt.notes,
    )
