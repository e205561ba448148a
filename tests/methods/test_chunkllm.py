"""ChunkLLM against a naive transcription of its card, and the card's toy traps."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from kernels.counting import counting
from suite.harness.meter import CountingMeter, RequestMeter
from suite.methods.attention.chunkllm import ChunkLLM, ChunkLLMConfig, walk
from suite.methods.attention.selection import Selection
from suite.methods.attention.spans import spans_of
from suite.models.attention import DenseAttention, Step
from suite.models.recipes.chunkllm import ChunkAdapters, chunk_ends
from suite.models.rope import rotate
from tests.methods.support import CONFIG, logits_of, selected, tiny_model
from workloads.schema import Request

PROMPT, TOKENS = 150, 230
SMALL = {"retention": 0.0, "budget": 60, "local": 16, "longest": 24}
KINDS = {
    "tokens": SMALL,
    "share": SMALL | {"retention": 0.5, "budget": 0},
    "voted": SMALL | {"selection": "voted"},
    "no local": SMALL | {"local": 0},
    "forced": SMALL | {"longest": 5},
    "threshold": SMALL | {"threshold": 0.7},
}


class Hidden(DenseAttention):
    """Dense attention that keeps the first layer's output."""

    def plain(self, step: Step) -> None:
        """Layers are to be seen."""

    def observe(self, layer: int, hidden: Tensor, step: Step) -> None:
        if layer == 0:
            self.hidden = hidden.clone()


def text(batch: int = 1, tokens: int = TOKENS, seed: int = 0) -> Tensor:
    return torch.randint(0, 128, (batch, tokens), generator=torch.Generator().manual_seed(seed))


def hidden_of(tokens: Tensor) -> Tensor:
    model = tiny_model()
    seen = Hidden(CONFIG)
    logits_of(model.decoder, seen, tokens, tokens.shape[1])
    return seen.hidden


def prepared(boundaries: float = 0.15, **options: Any) -> tuple[ChunkLLM, ChunkLLMConfig]:
    """The method with random adapters whose head fires on about this share of the tokens."""
    method, config = ChunkLLM(), ChunkLLMConfig(**options)
    method.prepare(tiny_model(), config)
    head = method._adapters.boundary
    head.weight.mul_(20)
    head.bias.zero_()
    head.bias.copy_(-method._adapters.logits(hidden_of(text(4))).quantile(1 - boundaries))
    return method, config


def decode(attention: Any, tokens: Tensor, prompt: int = PROMPT) -> Tensor:
    """Logits of the tokens after the prompt, fed one by one, [B, T - prompt, vocab]."""
    decoder = tiny_model().decoder
    cache = decoder.new_cache(tokens.shape[0], 0)
    with torch.inference_mode():
        if prompt:
            decoder(tokens[:, :prompt], cache, attention)
        return torch.stack([decoder(token, cache, attention) for token in tokens[:, prompt:].split(1, dim=1)], dim=1)


class Naive(DenseAttention):
    """The card's pseudocode for one row: lists of spans, keys and k-bars; a Python set of tokens per layer."""

    def __init__(self, adapters: ChunkAdapters, config: ChunkLLMConfig) -> None:
        super().__init__(CONFIG)
        self.adapters, self.options = adapters, config
        layers = range(CONFIG.layers)
        self.k, self.v, self.q = ([torch.empty(0)] * CONFIG.layers for _ in range(3))
        self.spans: list[tuple[int, int]] = []
        self.kbar: list[list[Tensor]] = [[] for _ in layers]
        self.read: list[set[int]] = [set() for _ in layers]
        self.closed = 0

    def plain(self, step: Step) -> None:
        """Every layer is selected for."""

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor, step: Step) -> Tensor:
        first, T = step.starts[0], q.shape[1]
        cos, sin = (table[first : first + T, None] for table in self.tables(layer, step.seen))
        q, k, v = rotate(q[0], cos, sin), rotate(k[0], cos, sin), v[0]
        self.q[layer] = q[-1]
        self.k[layer], self.v[layer] = (
            torch.cat((old, new)) if len(old) else new.clone() for old, new in ((self.k[layer], k), (self.v[layer], v))
        )
        rows = [self._attend(layer, q[i], self._tokens(layer, first + i, T)) for i in range(T)]
        return torch.stack(rows)[None]

    def _tokens(self, layer: int, position: int, width: int) -> list[int]:
        """A_l = sink + selected + local; everything in prefill."""
        unfinished = range(self.choosing_from, position + 1) if width == 1 else range(position + 1)
        return sorted(self.read[layer] | set(unfinished))

    choosing_from = 0  # tokens from here on are local

    def _attend(self, layer: int, q: Tensor, tokens: list[int]) -> Tensor:
        keys, values = (x[layer][tokens].repeat_interleave(CONFIG.group, 1) for x in (self.k, self.v))
        weights = torch.softmax(torch.einsum("hd,thd->ht", q, keys) * CONFIG.scale, dim=1)
        return torch.einsum("ht,thd->hd", weights, values)

    def observe(self, layer: int, hidden: Tensor, step: Step) -> None:
        if layer == 0:
            self.y = [bool(torch.sigmoid(p) > self.options.threshold) for p in self.adapters.logits(hidden[0])]
        if layer == CONFIG.layers - 1:
            closed = [self._close(step.starts[0] + i, y) for i, y in enumerate(self.y)]
            if closed[-1] or step.width > 1:
                self._choose(step.stops[0])

    def _close(self, token: int, y: bool) -> bool:
        start = self.spans[-1][1] if self.spans else 0
        if not y and token + 1 - start < self.options.longest:
            return False
        self.spans.append((start, token + 1))
        for layer in range(CONFIG.layers):
            self.kbar[layer].append(self.k[layer][token].flatten() @ self.adapters.keys[layer])
        return True

    def _choose(self, t: int) -> None:
        o = self.options
        local = [span for span in self.spans[1:] if span[0] >= t - o.local]
        self.choosing_from = local[0][0] if local else (self.spans[-1][1] if self.spans else 0)
        middle = range(1, len(self.spans) - len(local))
        sink = self.spans[:1]
        room = max(o.budget, int(o.retention * t)) - sum(b - a for a, b in sink) - (t - self.choosing_from)
        chosen = [self._walk(self._ranked(layer, middle), room) for layer in range(CONFIG.layers)]
        if o.selection == "voted":
            votes = {c: sum(c in layer for layer in chosen) for c in middle}
            chosen = [self._walk(sorted(middle, key=lambda c: (-votes[c], -c)), room)] * CONFIG.layers
        self.read = [{t for c in [*range(len(sink)), *one] for t in range(*self.spans[c])} for one in chosen]

    def _ranked(self, layer: int, middle: range) -> list[int]:
        query = self.q[layer].flatten() @ self.adapters.queries[layer]
        return sorted(middle, key=lambda c: -float(query @ self.kbar[layer][c]))

    def _walk(self, ranking: list[int], room: int) -> list[int]:
        taken = []
        for c in ranking:
            room -= self.spans[c][1] - self.spans[c][0]
            if room < 0:
                break
            taken.append(c)
        return taken


class Watched(ChunkLLM):
    """Keeps what each layer read in each step, as sets of tokens."""

    def begin_batch(self, model: Any, config: Any, batch: int) -> None:
        super().begin_batch(model, config, batch)
        self.reads: list[list[set[int]]] = [[] for _ in range(model.layers)]

    def select(self, layer: int, q: Tensor, row: int, step: Step) -> Selection:
        selection = super().select(layer, q, row, step)
        self._watch(layer, selection.spans[0, 0])
        return selection

    def ahead(self, step: Step) -> Tensor | None:
        known = super().ahead(step)
        for layer, spans in enumerate([] if known is None else known[:, 0]):
            self._watch(layer, spans)
        return known

    def _watch(self, layer: int, spans: Tensor) -> None:
        self.reads[layer].append({t for a, b, _ in spans.tolist() for t in range(a, b)})


def watched(**options: Any) -> Watched:
    """A method that has decoded the text, with its reads."""
    method, config = prepared(**options)
    method.__class__ = Watched
    decode(selected(method, config), text())
    return method  # type: ignore[return-value]


@pytest.mark.parametrize("options", KINDS.values(), ids=list(KINDS))
@pytest.mark.parametrize("prompt", [0, PROMPT], ids=["decode only", "prompt"])
def test_matches_the_cards_pseudocode_token_by_token(options, prompt):
    method, config = prepared(**options)
    expected = decode(Naive(method._adapters, config), text(), prompt)
    ours = decode(selected(method, config), text(), prompt)
    torch.testing.assert_close(ours, expected, atol=1e-4, rtol=0)
    assert (expected - decode(DenseAttention(CONFIG), text(), prompt)).abs().max() > 1e-2


def test_chunks_end_where_the_adapter_says_and_nowhere_else():
    """Trap: fixed-length chunks, or a split on '.' at run time."""
    method, config = prepared(**SMALL | {"longest": 1000})
    decode(selected(method, config), text())
    fires = (method._adapters.logits(hidden_of(text()))[0, :PROMPT] > 0).nonzero().flatten() + 1
    assert [end for end in method._rows[0].ends if end <= PROMPT] == fires.tolist()
    assert len(set(torch.tensor(method._rows[0].ends).diff().tolist())) > 3
    assert method.forced == 0


def test_without_the_heads_weights_chunks_end_by_force_only():
    method, config = prepared(**SMALL)
    before = decode(selected(method, config), text())
    ends = method._rows[0].ends
    method._adapters.boundary.weight.zero_()
    method._adapters.boundary.bias.zero_()
    after = decode(selected(method, config), text())
    assert method._rows[0].ends == list(range(24, TOKENS + 1, 24)) != ends
    assert (method.predicted, method.forced) == (0, len(method._rows[0].ends))
    assert (before - after).abs().max() > 1e-3


def test_a_selection_is_made_at_boundaries_only():
    """Trap: reselecting every token. One selection by the prompt's last token, then one per boundary."""
    method, config = prepared(**SMALL | {"longest": 1000})
    attention = selected(method, config)
    decode(attention, text()[:, : PROMPT + 1])
    in_prompt = method.predicted
    decode(selected(method, config), text())
    assert 3 < method.predicted - in_prompt < (TOKENS - PROMPT) / 2
    assert method.selections == 1 + method.predicted - sum(end <= PROMPT for end in method._rows[0].ends)


def test_between_boundaries_the_same_tokens_are_read_and_the_closing_token_still_reads_the_old_ones():
    method = watched(**SMALL)
    changes = 0
    for reads in method.reads:
        for step, (before, after) in enumerate(itertools.pairwise(reads)):
            own = PROMPT + step + 1
            if own in method._rows[0].ends:  # the token before `own` closed a chunk: its choice serves from `own` on
                changes += after != before | {own}
            else:
                assert after == before | {own}
    assert changes > 10


def test_layers_choose_for_themselves_unless_they_vote():
    per_layer, voted = watched(**SMALL), watched(**KINDS["voted"])
    assert any(a != b for a, b in zip(per_layer.reads[0], per_layer.reads[2], strict=True))
    assert voted.reads[0] == voted.reads[1] == voted.reads[2]


def test_sink_local_and_own_token_are_always_read_and_the_budget_holds():
    method = watched(**SMALL)
    ends = method._rows[0].ends
    for reads in method.reads:
        for step, read in enumerate(reads):
            own = PROMPT + step
            seen = max(PROMPT, *(end for end in ends if end <= own))  # when the choice was made
            local = min(
                [start for start in ends if seen - 16 <= start <= seen], default=max(e for e in ends if e <= seen)
            )
            assert set(range(ends[0])) | set(range(local, own + 1)) <= read
            assert len(read) <= 60 + own + 1 - seen


def test_ties_of_votes_go_to_the_more_recent_chunk():
    method, _ = prepared(**KINDS["voted"])
    method.begin_batch(CONFIG, ChunkLLMConfig(**KINDS["voted"]), 1)
    taken = method._walk(torch.zeros(3, 4), torch.tensor([5, 5, 5, 5]), 10)  # all vote for chunks 0 and 1
    assert taken.tolist() == [[True, True, False, False]] * 3
    scores = torch.tensor([[2.0, 1, 0, 0], [0, 0, 1, 2], [0, 2, 1, 0]])
    assert method._walk(scores, torch.tensor([5, 5, 5, 5]), 10)[0].tolist() == [False, True, True, False]
    assert method._walk(torch.eye(4)[:3], torch.tensor([5, 5, 5, 5]), 5)[0].tolist() == [False, False, True, False]


def test_walking_down_the_ranking_never_splits_a_chunk():
    ranking, lengths = torch.tensor([[2, 0, 1], [1, 2, 0]]), torch.tensor([4, 7, 3])
    assert walk(ranking, lengths, 8).tolist() == [[True, False, True], [False, True, False]]
    assert not walk(ranking, lengths, -5).any()
    assert walk(ranking, lengths, 14).all()


def test_neighbouring_chunks_are_one_span():
    read, starts = torch.tensor([[1, 1, 0, 1], [1, 0, 0, 0]]).bool(), torch.tensor([0, 3, 5, 9, 12, 20])
    assert spans_of(read, starts)[..., :2].tolist() == [[[12, 0], [0, 5], [9, 12]], [[12, 0], [0, 3], [0, 0]]]


@pytest.mark.parametrize(
    ("predicted", "start", "stop", "ends"),
    [
        ([], 0, 7, []),
        ([], 0, 8, [8]),
        ([3], 0, 8, [3]),
        ([8], 0, 9, [8]),
        ([9], 0, 9, [8, 9]),
        ([30, 31], 4, 45, [12, 20, 28, 30, 31, 39]),
    ],
)
def test_a_chunk_that_grows_too_long_is_ended_by_force(predicted, start, stop, ends):
    assert chunk_ends(predicted, start, stop, longest=8) == ends


@pytest.mark.parametrize("prompt", [0, 40])
def test_everything_is_read_while_it_fits(prompt):
    for options in (SMALL, SMALL | {"budget": 0, "local": 60}, SMALL | {"budget": 0, "retention": 1.0}):
        method, config = prepared(**options)
        ours = decode(selected(method, config), text(tokens=60), prompt)
        torch.testing.assert_close(ours, decode(DenseAttention(CONFIG), text(tokens=60), prompt), atol=1e-4, rtol=0)


def test_the_prompt_is_read_in_full():
    method, config = prepared(**SMALL)
    dense = logits_of(tiny_model().decoder, DenseAttention(CONFIG), text(), 100)
    torch.testing.assert_close(logits_of(tiny_model().decoder, selected(method, config), text(), 100), dense)


def test_a_choice_made_before_more_prompt_is_made_again():
    method, config = prepared(**SMALL)
    tokens, results = text(), []
    for first in ((150, 1, 49), (200,)):
        decoder, attention = tiny_model().decoder, selected(method, config)
        cache = decoder.new_cache(1, 0)
        with torch.inference_mode():
            for part in (*tokens[:, :200].split(first, dim=1), *tokens[:, 200:].split(1, dim=1)):
                decoder(part, cache, attention)
        results.append(method._rows[0].spans.clone())
    assert torch.equal(*results)


def generate(meter: Any, **options: Any) -> ChunkLLM:
    method, config = prepared(**options)
    request = Request(id="r", task="t", prompt="".join(map(chr, text()[0].tolist())), metric="none", max_new_tokens=40)
    with method.attach(tiny_model(), config) as generator:
        list(generator.generate([request], meter))
    return method


def test_bytes_read_scale_with_retention():
    """Trap: a mask over full keys and values."""

    def read(retention: float) -> float:
        with counting() as counter:
            generate(RequestMeter(), retention=retention, budget=0, local=0)
        return counter.costs["flash_decode"].read_bytes

    half, whole = read(0.5), read(1.0)
    assert half == pytest.approx(0.5 * whole, rel=0.12)
    assert read(0.25) == pytest.approx(0.25 * whole, rel=0.2)


def test_this_is_no_memory_compression():
    """Trap: nothing is evicted, so stored retention is 1.0, and the index comes on top."""
    meter = CountingMeter(CONFIG.kv_bytes_per_token(4))
    method = generate(meter, retention=0.5, budget=0, local=0)
    kv = meter.kv_samples()[0]
    assert kv.stored_retention == 1.0
    assert kv.selected_retention == pytest.approx(0.5, abs=0.06)
    assert kv.selected_retention == kv.selected_retention_per_query_head  # one list for all heads
    keys = sum(chunks.keys.untyped_storage().nbytes() for chunks in method._rows)
    assert keys >= len(method._rows[0].ends) * CONFIG.layers * 64 * 4
    assert method.index_bytes() >= keys + CONFIG.layers * CONFIG.heads * CONFIG.head_dim * 4
    assert (kv.resident_bytes, kv.index_bytes) == (kv.full_bytes, method.index_bytes())


def test_index_bytes_count_in_the_first_step_a_choice_serves():
    method, config = prepared(**SMALL)
    attention = selected(method, config)
    bytes_read: list[int] = []
    attention._method.ahead = lambda step: None  # as in a counting pass
    attention._method.select = lambda *args: bytes_read.append((s := ChunkLLM.select(method, *args)).index_bytes) or s
    decode(attention, text())
    per_step = torch.tensor(bytes_read).view(-1, CONFIG.layers)
    choices = [PROMPT, *(end for end in method._rows[0].ends if PROMPT < end < TOKENS)]
    assert (per_step[:, 0] > 0).nonzero().flatten().tolist() == [end - PROMPT for end in choices]
    assert (per_step == per_step[:, :1]).all()
    assert int(per_step[0, 0]) % (64 * 4) == 0


@pytest.mark.parametrize(
    "options",
    [{"retention": 1.5}, {"threshold": 1.0}, {"longest": 0}, {"selection": "x"}, {"local": -1}, {"k": 1}],
)
def test_options_out_of_range_are_refused(options):
    with pytest.raises(ValueError, match="|".join(options)):
        ChunkLLMConfig(**options)
