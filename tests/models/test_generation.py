"""`generate` end to end: stop reasons, stop strings, teacher forcing, seeds, and batches equal to single runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from suite.errors import UnitError
from suite.models.attention import DenseAttention
from suite.models.cache import KVCache
from suite.models.generation import generate, pass_tokens
from suite.models.language_model import LanguageModel, Tokenizer
from suite.models.stops import cut_at_stop
from tests.models.small import RecordingMeter, our_logits
from workloads.schema import Completion, Request

PROMPTS = ("the quick brown fox", "dog", "a longer prompt than the others, by far and away, of many small tokens", "x")


def request(name: str = "r", **fields: Any) -> Request:
    return Request(**{"id": name, "task": "t", "metric": "m", "prompt": "the fox", "max_new_tokens": 12} | fields)


def run(
    model: LanguageModel, *requests: Request, meter: RecordingMeter | None = None, **options: Any
) -> list[Completion]:
    return list(generate(model, DenseAttention(model.config), requests, meter or RecordingMeter(), **options))


class Script:
    """A decoder that says what it is told: `lines[b]` are the token ids of row b, one per step."""

    def __init__(self, model: LanguageModel, lines: Sequence[Sequence[int]]) -> None:
        self._decoder, self._lines, self._said = model.decoder, lines, 0
        self.config = model.config

    def new_cache(self, batch: int, capacity: int) -> KVCache:
        return self._decoder.new_cache(batch, capacity)

    def __call__(
        self, tokens: Tensor, cache: KVCache, attention: object, counts: Sequence[int] | None = None
    ) -> Tensor:
        cache.advance([tokens.shape[1]] * len(tokens) if counts is None else counts)
        logits = torch.zeros(len(tokens), self.config.vocab)
        for row, line in enumerate(self._lines):
            logits[row, line[min(self._said, len(line) - 1)]] = 5.0
        self._said += 1
        return logits


def scripted(model: LanguageModel, *texts: str) -> LanguageModel:
    """`model` with a decoder that writes `texts[b]` in row b, then its end token."""
    lines = [[*model.tokenizer.encode(text), model.config.eos_ids[0]] for text in texts]
    return replace(model, decoder=Script(model, lines))  # type: ignore[arg-type]


def test_the_end_token_stops_and_is_counted_but_not_shown(tiny: LanguageModel) -> None:
    (done,) = run(scripted(tiny, "the dog"), request())
    assert (done.text, done.stop_reason) == ("the dog", "eos")
    assert done.token_ids == (*tiny.tokenizer.encode("the dog"), 1)
    assert done.cost.generated_tokens == len(done.token_ids) == done.cost.sequential_depth


def test_the_limit_stops(tiny: LanguageModel) -> None:
    (done,) = run(scripted(tiny, "the quick brown fox jumps over"), request(max_new_tokens=3))
    assert (len(done.token_ids), done.stop_reason) == (3, "length")


def test_a_token_at_the_limit_that_ends_is_an_end(tiny: LanguageModel) -> None:
    length = len(tiny.tokenizer.encode("the dog"))
    (done,) = run(scripted(tiny, "the dog"), request(max_new_tokens=length + 1))
    assert done.stop_reason == "eos"


STOPS: dict[str, tuple[str, tuple[str, ...], str, str]] = {
    "newline": ("the dog\nthe fox", ("\n",), "the dog", "stop"),
    "leading newlines do not count": ("\n\nthe dog\nthe fox", ("\n",), "\n\nthe dog", "stop"),
    "only newlines": ("\n\n", ("\n",), "\n\n", "eos"),
    "several tokens": ("the dog sleeps under", ("sleeps",), "the dog ", "stop"),
    "at the very start": ("sleeps under", ("sleeps",), "", "stop"),
    "the earlier of two": ("the dog sleeps under", ("under", "dog"), "the ", "stop"),
    "inside a character sequence": ("日本語 text", ("本",), "日", "stop"),
    "absent": ("the dog", ("fox",), "the dog", "eos"),
}


@pytest.mark.parametrize("name", STOPS)
def test_stop_strings(name: str, tiny: LanguageModel) -> None:
    said, stops, shown, reason = STOPS[name]
    (done,) = run(scripted(tiny, said), request(stop=stops, max_new_tokens=60))
    assert (done.text, done.stop_reason) == (shown, reason)


def test_nothing_is_generated_after_a_stop_string(tiny: LanguageModel) -> None:
    (done,) = run(scripted(tiny, "the dog\nthe fox jumps"), request(stop=("\n",), max_new_tokens=60))
    assert tiny.tokenizer.decode(done.token_ids).split("\n")[0] == "the dog"
    assert len(done.token_ids) <= len(tiny.tokenizer.encode("the dog\nthe"))


def test_cut_at_stop_finds_the_earliest() -> None:
    assert cut_at_stop("a|b;c", (";", "|")) == "a"
    assert cut_at_stop("\n\nab\n", ("\n",)) == "\n\nab"
    assert cut_at_stop("\nQ: ab", ("\nQ:",)) == ""
    assert cut_at_stop("ab", ()) == "ab"


def test_rows_stop_on_their_own(tiny: LanguageModel) -> None:
    model = scripted(tiny, "the dog", "the quick brown fox jumps over the lazy dog", "fox\ndog")
    first, second, third = run(
        model, request("1"), request("2", max_new_tokens=9), request("3", stop=("\n",), max_new_tokens=20)
    )
    assert [done.stop_reason for done in (first, second, third)] == ["eos", "length", "stop"]
    assert (first.text, len(second.token_ids), third.text) == ("the dog", 9, "fox")


def greedy_by_hand(model: LanguageModel, prompt: str, steps: int) -> list[int]:
    """Greedy decoding by a full forward pass for every token."""
    ids = model.tokenizer.prompt(prompt, chat=False)
    start = len(ids)
    for _ in range(steps):
        ids.append(int(our_logits(model.decoder, torch.tensor(ids), [len(ids)])[-1].argmax()))
    return ids[start:]


@pytest.fixture(scope="module")
def endless(tiny: LanguageModel) -> LanguageModel:
    """The tiny model without an end token, so that every request runs to its limit."""
    decoder = type(tiny.decoder)(replace(tiny.config, eos_ids=()))
    decoder.load_state_dict(tiny.decoder.state_dict())
    return replace(tiny, decoder=decoder.requires_grad_(False))


@pytest.mark.parametrize("prefill_chunk", [4, 512])
def test_batch_of_different_lengths_equals_single_runs(endless: LanguageModel, prefill_chunk: int) -> None:
    requests = [request(str(i), prompt=prompt, max_new_tokens=5 + 4 * i) for i, prompt in enumerate(PROMPTS)]
    batch = run(endless, *requests, prefill_chunk=prefill_chunk)
    assert [done.request_id for done in batch] == ["0", "1", "2", "3"]
    for done, single in zip(batch, requests, strict=True):
        assert list(done.token_ids) == greedy_by_hand(endless, single.prompt, single.max_new_tokens)
        assert done.cost.prompt_tokens == len(endless.tokenizer.prompt(single.prompt, chat=False))


def test_sampled_tokens_depend_on_the_seed_only(endless: LanguageModel) -> None:
    requests = [
        request(str(i), prompt=prompt, seed=seed, temperature=0.8, top_k=40, top_p=0.95)
        for i, (prompt, seed) in enumerate(zip(PROMPTS, (1, 2, 3, 4), strict=True))
    ]
    together = {done.request_id: done.token_ids for done in run(endless, *requests)}
    backwards = {done.request_id: done.token_ids for done in run(endless, *reversed(requests))}
    alone = {done.request_id: done.token_ids for single in requests for done in run(endless, single)}
    assert together == backwards == alone
    other = run(endless, requests[0].model_copy(update={"seed": 99}))
    assert other[0].token_ids != alone["0"]


@pytest.mark.parametrize("prefill_chunk", [3, 512])
def test_teacher_forcing_scores_what_a_full_forward_does(endless: LanguageModel, prefill_chunk: int) -> None:
    targets = (" jumps over the lazy dog", " sleeps", "\nunder the old brown tree and then")
    requests = [request(str(i), prompt=PROMPTS[i], target=target) for i, target in enumerate(targets)]
    for done, single in zip(run(endless, *requests, prefill_chunk=prefill_chunk), requests, strict=True):
        prompt = endless.tokenizer.prompt(single.prompt, chat=False)
        target = endless.tokenizer.encode(single.target or "")
        ids = torch.tensor(prompt + target)
        scores = our_logits(endless.decoder, ids, [len(ids)]).log_softmax(-1)[len(prompt) - 1 : -1]
        expected = scores.gather(1, torch.tensor(target)[:, None])[:, 0]
        assert (done.stop_reason, list(done.token_ids)) == ("scored", target)
        torch.testing.assert_close(torch.tensor(done.target_logprobs), expected, atol=1e-4, rtol=0)


def test_scored_and_generated_requests_share_a_batch(endless: LanguageModel) -> None:
    scored, generated = run(endless, request("s", target=" jumps"), request("g", max_new_tokens=6))
    assert scored.stop_reason == "scored"
    assert list(generated.token_ids) == greedy_by_hand(endless, "the fox", 6)
    assert generated.target_logprobs == ()


def test_times_phases_and_steps_are_told_to_the_meter(endless: LanguageModel) -> None:
    meter = RecordingMeter()
    (done,) = run(endless, request(max_new_tokens=5), meter=meter, prefill_chunk=3)
    prompt = done.cost.prompt_tokens
    assert meter.phases == ["prefill", "decode"]
    assert meter.steps[-1] == (1, prompt + 4)
    assert sum(tokens for tokens, _ in meter.steps) == prompt + 4  # the last token is never fed back
    assert len(done.token_ns) == 5
    assert done.start_ns < done.token_ns[0]
    assert list(done.token_ns) == sorted(done.token_ns)


def test_nothing_to_begin_from_or_to_score_is_an_error(endless: LanguageModel) -> None:
    with pytest.raises(UnitError, match="request r has an empty target"):
        endless.encode(request(target=""))
    bare = replace(endless, tokenizer=WithoutBegin(endless.tokenizer))
    with pytest.raises(UnitError, match="request r has an empty prompt"):
        bare.encode(request(prompt=""))


class WithoutBegin:
    """A tokenizer whose prompts begin with no special token, as SmolLM2's."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.encode, self.decode = tokenizer.encode, tokenizer.decode

    def prompt(self, text: str, chat: bool) -> list[int]:
        return self.encode(text)


def test_ended_rows_never_make_the_cache_move(endless: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    caches: list[tuple[KVCache, int]] = []
    create = endless.decoder.new_cache

    def remembered(batch: int, capacity: int) -> KVCache:
        cache = create(batch, capacity)
        caches.append((cache, cache.capacity))
        return cache

    monkeypatch.setattr(endless.decoder, "new_cache", remembered)
    run(endless, request("long", prompt="the dog " * 60, max_new_tokens=1), request("short", max_new_tokens=100))
    ((cache, before),) = caches
    assert cache.capacity == before


class TestPromptsLongerThanTheWindow:
    """The window is 256 tokens."""

    long = "the quick brown fox jumps over the lazy dog. " * 60

    def test_the_middle_is_cut_and_said(self, endless: LanguageModel) -> None:
        for chat in (False, True):
            (done,) = run(endless, request(prompt=self.long, chat=chat, max_new_tokens=4))
            assert 250 <= done.cost.prompt_tokens <= 252
            assert done.notes[0].startswith("middle of the prompt cut: ")

    def test_the_cut_prompt_always_fits(self, endless: LanguageModel) -> None:
        """Cutting through a character makes more tokens of its halves: each becomes a replacement character."""
        for start in range(8):
            prompt = "x" * start + "🙂日" * 100
            assert len(endless.encode(request(prompt=prompt, max_new_tokens=5)).ids) <= 251

    @pytest.mark.parametrize("asked", [242, 254, 256, 1000])
    def test_no_room_beside_the_template_is_an_error(self, asked: int, endless: LanguageModel) -> None:
        with pytest.raises(UnitError, match=rf"asks for {asked} more, but"):
            endless.encode(request(prompt=self.long, chat=True, max_new_tokens=asked))

    def test_refuse_is_an_error_with_the_numbers(self, endless: LanguageModel) -> None:
        with pytest.raises(UnitError, match=r"request r has \d+ prompt tokens and asks for 4 more, .* trained on 256"):
            run(endless, request(prompt=self.long, max_new_tokens=4, truncation="refuse"))

    def test_extend_lets_it_run_and_says_so(self, endless: LanguageModel) -> None:
        (done,) = run(endless, request(prompt=self.long, max_new_tokens=4, truncation="extend"))
        assert done.cost.prompt_tokens > 256
        assert "runs past the trained window of 256" in done.notes[0]


@pytest.mark.parametrize(
    ("length", "most", "expected"),
    [(1024, 512, 512), (1025, 512, 511), (97, 8, 7), (1, 512, 512), (40, 1 << 30, 1 << 30)],
)
def test_no_prompt_ends_with_a_pass_of_one_token(length, most, expected):
    """A pass of single tokens is decoding to a method."""
    assert pass_tokens(length, most) == expected
    assert length == 1 or length % expected != 1
