"""What every registered method must hold: the suite a new method inherits by being registered."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from suite.harness.meter import CountingMeter, RequestMeter
from suite.methods.attention.base import AttentionMethod
from suite.methods.base import Method
from suite.methods.decoding.base import DecodingMethod
from suite.methods.search.base import SearchMethod
from suite.models.attention import DenseAttention
from suite.models.language_model import LanguageModel
from suite.registry import METHODS
from tests.methods.support import CONFIG, logits_of, selected, tiny_model
from workloads.schema import Request

BUDGET = 64
NAMES = list(METHODS)
DRAFTING = [name for name in NAMES if issubclass(METHODS.load(name), DecodingMethod)]
SEARCHING = [name for name in NAMES if issubclass(METHODS.load(name), SearchMethod)]
SELECTING = [name for name in NAMES if issubclass(METHODS.load(name), AttentionMethod)]
LONG = {"dhsa_block": 8 * BUDGET}
"""Prompt tokens beyond which a method is not dense, where 4 BUDGET do not suffice: here the first and the last 128
queries read everything."""
ACTING = {phase: [name for name in SELECTING if phase in METHODS.load(name).acts_in] for phase in ("prefill", "decode")}


def at_budget(name: str, model: LanguageModel | None = None) -> tuple[Method, Any]:
    """The method, prepared for `model` or a tiny one, and options that let it read BUDGET tokens."""
    kind = METHODS.load(name)
    options = kind.at_budget(BUDGET) if issubclass(kind, AttentionMethod) else {}
    method, config = kind(), kind.Config(**options)
    method.prepare(model or tiny_model(), config)
    return method, config


def request(identity: str, length: int, new: int = 8, **fields: Any) -> Request:
    text = "".join(chr(97 + (i * i + len(identity)) % 26) for i in range(length))
    return Request(id=identity, task="t", prompt=text, metric="none", max_new_tokens=new, **fields)


def complete(name: str, requests: list[Request], dtype: torch.dtype = torch.float32, meter: Any = None) -> list[Any]:
    model = tiny_model(dtype=dtype)
    method, config = at_budget(name, model)
    with method.attach(model, config) as generator:
        return list(generator.generate(requests, meter or RequestMeter()))


@pytest.mark.parametrize("name", SELECTING)
def test_short_input_is_dense(name):
    """Up to the budget, or what the method says of itself where that is less."""
    method, config = at_budget(name)
    selected(method, config)
    length = min(BUDGET, method.dense_until or BUDGET)
    tokens = torch.randint(0, 128, (1, length))
    model = tiny_model()
    dense = logits_of(model.decoder, DenseAttention(CONFIG), tokens, length)
    for chunk in (1, min(13, method.prefill_chunk(config)), min(length, method.prefill_chunk(config))):
        torch.testing.assert_close(
            logits_of(model.decoder, selected(method, config), tokens, chunk), dense, atol=1e-4, rtol=0
        )


@pytest.mark.parametrize("name", SELECTING)
def test_long_input_is_not_dense(name):
    """A method that attends to everything would pass every equality test: beyond its budget it must differ."""
    method, config = at_budget(name)
    prompt = LONG.get(name, 4 * BUDGET)
    tokens = torch.randint(0, 128, (1, prompt + 8))
    model = tiny_model()
    dense = continued(model.decoder, DenseAttention(CONFIG), tokens, prompt)
    ours = continued(model.decoder, selected(method, config), tokens, prompt, method.prefill_chunk(config))
    assert (ours - dense)[:, -1].abs().max() > 1e-3


def continued(decoder: Any, attention: Any, tokens: torch.Tensor, prompt: int, chunk: int = 4 * BUDGET) -> torch.Tensor:
    """Logits of the tokens after a prompt that is fed in passes of at most `chunk`, one by one."""
    cache = decoder.new_cache(tokens.shape[0], 0)
    with torch.inference_mode():
        for start in range(0, prompt, chunk):
            decoder(tokens[:, start : min(prompt, start + chunk)], cache, attention)
        return torch.stack([decoder(token, cache, attention) for token in tokens[:, prompt:].split(1, dim=1)], dim=1)


@pytest.mark.parametrize("name", [name for name in SELECTING if not METHODS.load(name).pools_queries])
def test_any_prefill_chunk_gives_the_same_logits(name):
    method, config = at_budget(name)
    tokens = torch.randint(0, 128, (1, 200))
    model = tiny_model()
    whole = logits_of(model.decoder, selected(method, config), tokens, 200)
    for chunk in (7, 64, 111):
        torch.testing.assert_close(
            logits_of(model.decoder, selected(method, config), tokens, chunk), whole, atol=1e-4, rtol=0
        )


@pytest.mark.parametrize("name", NAMES)
def test_a_ragged_batch_equals_single_requests(name):
    requests = [request("a", 150), request("bb", 40), request("ccc", 97)]
    alone = [complete(name, [r])[0].token_ids for r in requests]
    assert [c.token_ids for c in complete(name, requests)] == alone


@pytest.mark.parametrize("name", NAMES)
def test_attach_leaves_the_model_as_it_was(name):
    method, config = at_budget(name)
    model = tiny_model()
    before = {key: value.clone() for key, value in model.decoder.state_dict().items()}
    with method.attach(model, config) as generator:
        list(generator.generate([request("a", 100)], RequestMeter()))
    after = model.decoder.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.decoder.modules())


@pytest.mark.parametrize("name", NAMES)
def test_requests_do_not_leak_into_each_other(name):
    method, config = at_budget(name)
    model = tiny_model()
    with method.attach(model, config) as generator:
        first = next(iter(generator.generate([request("a", 150)], RequestMeter())))
        list(generator.generate([request("zz", 180)], RequestMeter()))
        again = next(iter(generator.generate([request("a", 150)], RequestMeter())))
    assert first.token_ids == again.token_ids


@pytest.mark.parametrize("name", NAMES)
def test_bf16_runs_and_stays_finite(name):
    completion = complete(name, [request("a", 150, target="hello world")], torch.bfloat16)[0]
    assert len(completion.target_logprobs) == 11
    assert all(-50 < value <= 0 for value in completion.target_logprobs)


@pytest.mark.parametrize("name", NAMES)
def test_retention_is_counted_by_its_definition(name):
    """Dense reads and stores everything, and so does a round of a drafting method, whatever it drafts.

    A selecting method reads its budget (up to g times as a union), no more.
    """
    meter = CountingMeter(CONFIG.kv_bytes_per_token(4))
    complete(name, [request("a", 240, new=10)], meter=meter)
    kv = meter.kv_samples()[0]
    if name in SEARCHING:  # reads of all samples, which share the prompt's pages
        assert kv.selected_retention == kv.stored_retention == 1.0
        assert kv.full_bytes <= kv.resident_bytes
        return
    if name not in ACTING["decode"]:
        assert kv.selected_retention == kv.stored_retention == 1.0
        assert kv.read_bytes_per_step == pytest.approx(kv.full_bytes, rel=0.05)
        assert kv.resident_bytes >= kv.full_bytes
        return
    per_head = BUDGET / 245
    assert kv.selected_retention_per_query_head == pytest.approx(per_head, rel=0.15)
    assert per_head * 0.85 <= kv.selected_retention <= per_head * CONFIG.group * 1.15
    evicts = name == "streaming"
    assert (kv.stored_retention < 0.6) if evicts else (kv.stored_retention == 1.0)
    assert kv.resident_bytes >= (0.25 if evicts else 0.99) * kv.full_bytes * kv.stored_retention


@pytest.mark.parametrize("name", ACTING["decode"])
def test_kernel_reads_scale_with_retention(name):
    """Bytes the decode kernel reports reading fall with the budget: no mask over a full read."""
    from kernels.counting import counting

    def decode_bytes(which: str) -> float:
        method, config = at_budget(which)
        with counting() as counter, method.attach(tiny_model(), config) as generator:
            list(generator.generate([request("a", 8 * BUDGET, new=2)], RequestMeter()))
            prefill = counter.costs["flash_decode"].read_bytes if "flash_decode" in counter.costs else 0.0
            list(generator.generate([request("a", 8 * BUDGET, new=22)], RequestMeter()))
            both = counter.costs["flash_decode"].read_bytes
        return both - 2 * prefill

    assert decode_bytes(name) < 0.5 * decode_bytes("dense")


@pytest.mark.parametrize("name", ACTING["prefill"])
def test_attention_work_of_prefill_falls_below_the_dense_one(name):
    """FLOPs that the attention kernels report for a long prompt: a mask over a full product would cost as many."""
    from kernels.counting import counting

    def flops(which: str) -> float:
        method, config = at_budget(which)
        with counting() as counter, method.attach(tiny_model(), config) as generator:
            list(generator.generate([request("a", 8 * BUDGET, new=1)], RequestMeter()))
        sparse = ("gathered_prefill", "block_sparse_prefill", "vertical_slash_prefill", "span_prefill")
        kinds = ("flash_prefill", "flash_decode", *sparse)
        return sum(counter.costs[kind].flops for kind in kinds if kind in counter.costs)

    assert flops(name) < 0.6 * flops("dense")


@pytest.mark.parametrize("name", DRAFTING)
@pytest.mark.parametrize("rules", [{}, {"temperature": 0.8, "top_p": 0.9, "seed": 5}], ids=["greedy", "sampled"])
def test_a_draft_changes_nothing_but_the_passes(name, rules):
    """Greedy text is dense's; sampled text does not depend on the batch. Drafts are counted, and some are taken.

    A method with an acceptance rule of its own says that it is lossy.
    """
    assert METHODS.load(name).card.lossless == (METHODS.load(name).accept is DecodingMethod.accept)
    requests = [request("a", 90, new=40, **rules), request("bb", 33, new=60, **rules)]
    ours = complete(name, requests)
    expected = complete("dense", requests) if not rules else [complete(name, [one])[0] for one in requests]
    assert [done.token_ids for done in ours] == [done.token_ids for done in expected]
    for done in ours:
        assert done.cost.verifier_passes == done.drafts.rounds
        assert done.cost.generated_tokens == len(done.token_ids) == 1 + done.drafts.emitted
        assert done.cost.discarded_tokens == done.drafts.drafted - done.drafts.accepted
        assert done.drafts.rounds <= done.drafts.emitted <= done.drafts.rounds + done.drafts.accepted
    assert sum(done.drafts.accepted for done in ours) > 0


@pytest.mark.parametrize("name", DRAFTING)
def test_drafting_forgets_everything_when_it_is_attached_anew(name):
    """Repeats of a request in one run must cost what the first cost: nothing may be learnt from its own answer."""
    rounds = [complete(name, [request("a", 150, new=40)])[0].drafts.rounds for _ in range(2)]
    method, config = at_budget(name)
    for _ in range(2):
        with method.attach(tiny_model(), config) as generator:
            done = next(iter(generator.generate([request("a", 150, new=40)], RequestMeter())))
        rounds.append(done.drafts.rounds)
    assert len(set(rounds)) == 1


@pytest.mark.parametrize("name", SEARCHING)
def test_a_search_without_chance_answers_as_dense(name):
    """All samples are the greedy text then, whatever is made of them."""
    method, config = at_budget(name)
    requests = [request("a", 90, new=20), request("bb", 33, new=30)]
    with method.attach(tiny_model(), method.gated(config)) as generator:
        ours = list(generator.generate(requests, RequestMeter()))
    assert [done.token_ids for done in ours] == [done.token_ids for done in complete("dense", requests)]


@pytest.mark.parametrize("name", SEARCHING)
def test_a_search_accounts_for_every_token_it_draws(name, monkeypatch):
    """Tokens are counted where they are drawn, once; what the answer does not hold was discarded."""
    from suite.methods.search import sampler

    drawn: list[int] = []
    choose = sampler._choose

    def counted(logits: torch.Tensor, rows: Any) -> torch.Tensor:
        drawn.append(len(rows))
        return choose(logits, rows)

    monkeypatch.setattr(sampler, "_choose", counted)
    done = complete(name, [request("a", 60, new=24)])[0]
    assert done.search.generated == sum(drawn)
    assert done.search.sequential == done.cost.sequential_depth == len(drawn)
    assert done.cost.generated_tokens == len(done.token_ids) > 0
    assert done.cost.discarded_tokens == done.search.generated - len(done.token_ids)
    assert 60 <= done.search.prefilled < 120


@pytest.mark.parametrize("name", SEARCHING)
def test_a_search_never_sees_the_references(name):
    """Another reference changes neither the answer nor its cost."""
    one, other = (complete(name, [request("a", 60, new=24, references=(said,))])[0] for said in ("yes", "no"))
    assert (one.token_ids, one.search) == (other.token_ids, other.search)


def test_every_registered_method_has_a_card_that_matches_its_entry():
    for name, entry in METHODS.items():
        card = METHODS.load(name).card
        assert (card.slug, card.family) == (name, entry.family)
        assert card.source
        assert len({claim.id for claim in card.claims}) == len(card.claims)


# Not qwen2_5_1m: it reads everything, but at distances of its own.
@pytest.mark.parametrize("name", sorted({*ACTING["prefill"]} - {*ACTING["decode"]} - {"qwen2_5_1m"}))
def test_a_method_of_prefill_alone_decodes_on_the_dense_path(name, monkeypatch):
    """On the cache its own prefill left; the family's path, which costs calls in every layer, is not taken."""
    method, config = at_budget(name)
    model, prompt = tiny_model(), torch.randint(0, 128, (1, 100))
    ours, cache = selected(method, config), model.decoder.new_cache(1, 0)
    with torch.inference_mode():
        model.decoder(prompt, cache, ours)
        for kind in (type(ours), type(method)):
            for hook in {"__call__", "learn", "select"} & vars(kind).keys():
                monkeypatch.setattr(kind, hook, lambda *args: pytest.fail("not the dense path"))
        logits = model.decoder(torch.tensor([[5]]), cache, ours)
        cache.truncate(0, 100)
        assert torch.equal(model.decoder(torch.tensor([[5]]), cache, DenseAttention(CONFIG)), logits)
