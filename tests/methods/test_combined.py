"""Combinations: what goes together runs and means what its parts mean; what does not is refused in one sentence."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import pytest
import torch

from kernels.decode_layer import LayerStack
from suite.cost import Situation
from suite.errors import InputError
from suite.harness.contender import Contender
from suite.harness.gates import GateRequests, Gates
from suite.harness.meter import CountingMeter, RequestMeter
from suite.harness.options import cleaned
from suite.methods.attention.base import AttentionMethod
from suite.methods.base import Card, Method, MethodConfig
from suite.methods.combined import FAMILIES, Combined, combination
from suite.methods.decoding.acceptance import Verdict
from suite.methods.decoding.base import DecodingMethod
from suite.methods.decoding.context import Context
from suite.methods.decoding.ngram import Ngram
from suite.methods.decoding.selected import Under, along, verifier
from suite.methods.decoding.tree import TokenTree
from suite.methods.weights.linear import QuantisedLinear
from suite.models.cache import KVCache
from suite.models.decoder import STACK_ROWS
from suite.models.generation import prefill
from suite.models.language_model import LanguageModel
from suite.registry import METHODS, Entry
from suite.spec import MethodSpec
from tests.methods.drafting import Knowing, request, small_model
from tests.methods.support import CONFIG, selected, tiny_model
from workloads.schema import Completion, Request

BUDGET = 48
LONG = [
    request(name, length, new, truncation="extend")
    for name, length, new in (("a", 90, 60), ("bb", 3, 60), ("ccc", 47, 30))
]


def trained_to(attention: str) -> LanguageModel:
    """Texts here go beyond the window where that changes what a method does: dual chunks of 48 tokens."""
    return small_model(window=64 if attention == "qwen2_5_1m" else 512)


def of_family(family: str) -> list[str]:
    return [name for name in METHODS if issubclass(METHODS.load(name), FAMILIES[family])]


WEIGHTS, ATTENTION, DECODING = map(of_family, FAMILIES)
SELECTING = [name for name in ATTENTION if name != "dense"]
VERIFYING = [name for name in SELECTING if METHODS.load(name).verifies]
WINDOWS = {"streaming": [{"sinks": 4, "window": 44}, {"sinks": 5, "window": 3}, {"sinks": 0, "window": 1}]}
"""A draft crosses the end of what is dense, is deeper than the window, or holds the sinks itself."""


GIVEN: dict[str, Any] = {}


@pytest.fixture(autouse=True)
def _calibration_text(tmp_path, monkeypatch):
    """A short text that the smallest vocabulary here can write."""
    path = tmp_path / "calibration.txt"
    path.write_text("".join(chr((i * i // 7 + i) % 38) for i in range(1500)).replace("\r", "!"))
    monkeypatch.setitem(GIVEN, "data", path)


def options(name: str) -> dict[str, Any]:
    """Small budgets and a text, by the names of the options in a combination."""
    kinds = {part: METHODS.load(part) for part in name.split("+")}
    found = {part: kind.at_budget(BUDGET) for part, kind in kinds.items() if issubclass(kind, AttentionMethod)}
    found |= {part: GIVEN for part, kind in kinds.items() if getattr(kind, "calibrates", False)}
    if len(kinds) == 1:
        return found.get(name, {})
    return {f"{part}.{option}": value for part, own in found.items() for option, value in own.items()}


def prepared(name: str, model: LanguageModel, **given: Any) -> tuple[Method, MethodConfig]:
    kind = METHODS.load(name)
    method, config = kind(), kind.Config(**{**options(name), **given})
    method.prepare(model, config)
    return method, config


def complete(
    method: Method, config: MethodConfig, model: LanguageModel, requests: Sequence[Request], meter: Any = None
) -> list[Completion]:
    with method.attach(model, config) as generator:
        return list(generator.generate(requests, meter or RequestMeter()))


def same_texts(
    plain: tuple[Method, MethodConfig], model: LanguageModel, ours: Sequence[Completion], requests: Sequence[Request]
) -> int:
    """Greedy texts are those of the method without drafts, or part where it hesitates itself. Returns how many part."""
    parted = 0
    for one, mine, theirs in zip(requests, ours, complete(*plain, model, requests), strict=True):
        if mine.token_ids == theirs.token_ids:
            continue
        pairs = zip(mine.token_ids, theirs.token_ids, strict=False)
        same = next(index for index, (a, b) in enumerate(pairs) if a != b)
        told = [(*theirs.token_ids[:same], done.token_ids[same]) for done in (mine, theirs)]
        forced = [one.model_copy(update={"target": model.tokenizer.decode(ids)}) for ids in told]
        less, more = (complete(*plain, model, [request])[0].target_logprobs[-1] for request in forced)
        assert more - less < 1e-3, f"{one.id} parts at token {same}, where the two are {more - less} nats apart"
        parted += 1
    return parted


@pytest.mark.parametrize(("weights", "decoding"), list(itertools.product(WEIGHTS, DECODING)))
def test_drafts_leave_the_text_of_a_quantised_model_as_it_is(weights, decoding):
    model = small_model()
    name = f"{weights}+{decoding}"
    ours = complete(*prepared(name, model), model, LONG)
    assert same_texts(prepared(weights, model), model, ours, LONG) <= 1
    assert sum(done.drafts.accepted for done in ours) > 0
    assert [done.token_ids for done in ours] != [
        done.token_ids for done in complete(*prepared("dense", model), model, LONG)
    ]


@pytest.mark.parametrize("decoding", DECODING)
@pytest.mark.parametrize("attention", VERIFYING)
def test_drafts_leave_the_text_of_an_attention_method_as_it_is(attention, decoding):
    model, accepted = trained_to(attention), 0
    plain = prepared(attention, model)
    for given in WINDOWS.get(attention, [{}]):
        own = {f"{attention}.{option}": value for option, value in given.items()}
        ours = complete(*prepared(f"{attention}+{decoding}", model, **own), model, LONG)
        alone = plain[0], plain[1].model_copy(update=given)
        assert same_texts(alone, model, ours, LONG) <= 1
        accepted += sum(done.drafts.accepted for done in ours)
    assert accepted > 0


BRANCHED = TokenTree((5, 9, 7, 11, 3, 8, 2), (-1, -1, 0, 2, 1, 3, 4))


@pytest.mark.parametrize("attention", VERIFYING)
def test_every_node_gets_the_logits_its_path_would_get_token_by_token(attention):
    model, prompt = trained_to(attention), [index * index % 40 for index in range(100)]
    for given in WINDOWS.get(attention, [{}]):
        method, config = prepared(attention, model)
        config = config.model_copy(update=given)

        def begun(attends: Any, method: Any = method, config: Any = config) -> KVCache:
            cache = model.decoder.new_cache(1, 0)
            prefill(model.decoder, attends, cache, [prompt], None, method.prefill_chunk(config))
            return cache

        with torch.inference_mode():
            tree = verifier(model.config, 1, Under(method, config), RequestMeter(), None)
            cache = begun(tree)
            tree.plant(cache, [BRANCHED])
            ours = model.decoder(torch.tensor([[1, *BRANCHED.tokens]]), cache, tree, logits="all")[0]
            for node in range(-1, len(BRANCHED)):
                alone = selected(method, config, model.config)
                cache = begun(alone)
                for token in (1, *(BRANCHED.tokens[step] for step in BRANCHED.path(node))):
                    expected = model.decoder(torch.tensor([[token]]), cache, alone)
                torch.testing.assert_close(ours[node + 1], expected[0], atol=1e-5, rtol=0)


@pytest.mark.parametrize("decoys", [False, True], ids=["chains", "trees"])
@pytest.mark.parametrize("attention", VERIFYING)
def test_accepted_drafts_under_an_attention_method(attention, decoys):
    """A drafter that knows the text is nearly always believed, whatever stands beside the right nodes."""
    model = trained_to(attention)
    for given in WINDOWS.get(attention, [{}]):
        method, config = prepared(attention, model)
        config = config.model_copy(update=given)
        plain = complete(method, config, model, LONG)
        drafter = Knowing([done.token_ids for done in plain], length=7, decoys=decoys)
        drafter.attention = Under(method, config)
        ours = complete(drafter, MethodConfig(), model, LONG)
        assert same_texts((method, config), model, ours, LONG) <= 1
        assert sum(done.drafts.emitted for done in ours) > 2.5 * sum(done.drafts.rounds for done in ours)


@pytest.mark.parametrize("attention", ["streaming", "qwen2_5_1m"])
def test_a_round_under_a_selection_is_one_call(attention, monkeypatch):
    model, alone = small_model(), [request("a", STACK_ROWS + 10, 40)]
    method, config = prepared(attention, model)
    drafter = Knowing([done.token_ids for done in complete(method, config, model, alone)])
    drafter.attention = Under(method, config)
    calls = dict.fromkeys(("run", "project"), 0)

    def spied(name: str) -> Any:
        original = getattr(LayerStack, name)

        def spy(*args: Any) -> Any:
            calls[name] += 1
            return original(*args)

        return spy

    for name in calls:
        monkeypatch.setattr(LayerStack, name, spied(name))
    done = complete(drafter, MethodConfig(), model, alone)[0]
    assert done.drafts.rounds > 5
    assert calls == {"run": done.drafts.rounds, "project": 0}


def test_streaming_and_dense_texts_differ():
    """Else the equalities above would say nothing of the window."""
    model = small_model()
    windowed, dense = (complete(*prepared(name, model), model, LONG) for name in ("streaming+ngram", "ngram"))
    assert all(mine.token_ids != theirs.token_ids for mine, theirs in zip(windowed, dense, strict=True))


def test_a_prompt_is_read_in_the_passes_its_method_asks_for():
    """The blocks of a whole prompt are not those of its pieces."""
    model, long = small_model(window=1024), [request("a", 700, 30)]
    ours = complete(*prepared("dhsa_block+ngram", model), model, long)
    assert same_texts(prepared("dhsa_block", model), model, ours, long) == 0


def test_streaming_keeps_and_reads_under_drafts_what_it_does_alone():
    """Rounds evict as single tokens do. A round of many nodes reads a few tokens more than one, counted once."""
    model, long = small_model(), [request("a", 300, 80)]
    method, config = prepared("streaming", model)
    drafter = Knowing([done.token_ids for done in complete(method, config, model, long)], length=7)
    drafter.attention = Under(method, config)
    found = []
    for one, own in ((method, config), (drafter, MethodConfig())):
        meter = CountingMeter(model.config.kv_bytes_per_token(4))
        complete(one, own, model, long, meter)
        found += meter.kv_samples()
    alone, ours = found
    assert ours.stored_retention == pytest.approx(alone.stored_retention, rel=0.1)
    assert ours.selected_retention == pytest.approx(alone.selected_retention, rel=0.1)
    assert alone.read_bytes_per_step <= ours.read_bytes_per_step < 1.5 * alone.read_bytes_per_step
    assert ours.resident_bytes < 1.5 * alone.resident_bytes


def test_a_span_on_a_path_leaves_out_what_stands_beside_it():
    """Cache of 10 tokens; the pass holds the root (slot 10), and the path's nodes at its tokens 2, 3 and 5."""
    runs = [(0, 1), (2, 4), (5, 6)]
    assert list(along(runs, 10, (0, 4, 7))) == [(0, 4, 7)]
    assert list(along(runs, 10, (8, 14, 13))) == [(8, 10, 13), (10, 11, 13), (12, 14, 13), (15, 16, 13)]
    assert list(along(runs, 10, (12, 13, 12))) == [(13, 14, 12)]
    assert list(along(runs, 10, (0, 0, 0))) == []


def test_a_drafter_of_the_targets_own_layers_drafts_with_the_quantised_ones():
    model = tiny_model()
    method, config = prepared("w4g128+draft_model", model)
    assert isinstance(method, Combined)
    with method.attach(model, config) as generator:
        drafter: Any = method.parts["draft_model"]
        layers = drafter._drafter._decoder.layers
        own = list(model.decoder.modules())
        assert 0 < len(layers) < len(model.decoder.layers)
        for layer in layers:
            matrices = (layer.attention.qkv, layer.attention.out, layer.mlp.gate_up, layer.mlp.down)
            assert all(isinstance(matrix, QuantisedLinear) and matrix in own for matrix in matrices)
        (done,) = generator.generate([request("a", 40, 20)], RequestMeter())
        assert done.drafts.drafted > 0
    assert not any(isinstance(module, QuantisedLinear) for module in model.decoder.modules())


TRIPLES = [f"w4g128+{attention}+{decoding}" for attention, decoding in itertools.product(SELECTING, DECODING)]
PAIRS = [
    f"{a}+{b}" for left, right in itertools.combinations((WEIGHTS, ATTENTION, DECODING), 2) for a in left for b in right
]


@pytest.mark.parametrize("name", [*PAIRS, *TRIPLES])
def test_every_combination_runs_or_is_refused_in_one_sentence(name):
    parts = set(name.split("+"))
    if parts & set(DECODING) and parts & set(SELECTING) - set(VERIFYING):
        with pytest.raises(InputError, match="token by token, and a draft is verified in one pass"):
            METHODS.load(name)
        return
    model = tiny_model()
    method, config = prepared(name, model)
    before = {key: value.clone() for key, value in model.decoder.state_dict().items()}
    done = complete(method, config, model, [request("a", 150, 6)])[0]
    assert len(done.token_ids) == 6
    after = model.decoder.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(before[key], after[key]) for key in before)


REFUSED = {
    "squeezellm+w4g128": "squeezellm and w4g128 are both weights methods; a combination has one of each.",
    "lookahead+rtn+ngram": "lookahead and ngram are both decoding methods; a combination has one of each.",
    "streaming+dense": "streaming and dense are both attention methods; a combination has one of each.",
    "ngram+ngram": "ngram+ngram names ngram twice; a combination has at most one method of each family.",
    "longheads+ngram": "longheads cannot be combined with ngram: it chooses what to read token by token, and a draft "
    "is verified in one pass.",
    "squeezellm+lookahed": "unknown method 'lookahed'; did you mean 'lookahead'?",
}


@pytest.mark.parametrize(("name", "sentence"), REFUSED.items())
def test_what_does_not_go_together_is_refused(name, sentence):
    with pytest.raises(InputError) as refused:
        METHODS.load(name)
    assert str(refused.value) == sentence


def test_a_method_of_no_family_is_refused(monkeypatch):
    class Alone(Method):
        card: ClassVar[Card] = Card("alone", "plug-in", "t", "s", lossless=True)

    monkeypatch.setattr(METHODS, "_plugins", {"alone": Entry("alone", f"{__name__}:Alone", "plug-in", "")})
    monkeypatch.setitem(globals(), "Alone", Alone)
    with pytest.raises(
        InputError, match="alone cannot be combined: it belongs to none of weights, attention, decoding"
    ):
        combination("alone+ngram")


def test_a_part_that_refuses_the_model_refuses_for_all():
    few = tiny_model(type(CONFIG)(**{**vars(CONFIG), "layers": 1}))
    method = METHODS.load("w4g128+draft_model")()
    assert method.refusal(few, method.Config()) == "tiny has 1 layers, too few to leave some out; name a `drafter`"


def test_facts_of_a_combination_follow_from_its_parts():
    kind = METHODS.load("lookahead+streaming+squeezellm")
    assert kind.card.slug == "squeezellm+streaming+lookahead"
    assert kind.card.family == "weights+attention+decoding"
    assert not kind.card.lossless
    assert kind.quality_nats == METHODS.load("squeezellm").quality_nats
    assert METHODS.load("dense+ngram").card.lossless
    assert METHODS.load("dense+ngram").quality_nats is None
    ids = [claim.id for claim in kind.card.claims]
    assert len(set(ids)) == len(ids)
    assert {"lookahead.lossless"} <= set(ids)
    model = tiny_model()
    method, config = prepared("w4g128+streaming+ngram", model)
    alone, own = prepared("w4g128", model)
    assert method.model_bytes(model, config) == alone.model_bytes(model, own) < model.model_bytes


@pytest.mark.parametrize("tokens", [245.0, np.array([1.0, 64.0, 245.0, 1e5])], ids=["a length", "a sweep"])
def test_the_stated_cost_is_that_of_all_parts(tokens):
    at = Situation(tokens, CONFIG.layers, CONFIG.hidden, CONFIG.heads, CONFIG.kv_heads, CONFIG.head_dim, 4)
    names = ("w4g128", "streaming", "draft_model")
    kind = METHODS.load("+".join(names))
    found = kind.cost(kind.Config(**options("+".join(names))), at)
    weights, attention, drafts = (METHODS.load(one).cost(METHODS.load(one).Config(**options(one)), at) for one in names)
    assert found.weight_bits == weights.weight_bits < 16
    assert np.array_equal(found.kept, attention.kept)
    assert np.array_equal(found.stored, attention.stored)
    assert np.min(found.kept) < 1
    assert (found.drafted, found.drafter) == (4, drafts.drafter)


def test_options_belong_to_their_parts_and_equal_wishes_have_equal_keys():
    """Order and spelling do not matter; a part's own ranges and rules do."""
    texts = {"lookahead.decoding_length": "8", "streaming.window": 100}
    one = cleaned(MethodSpec(name="lookahead+streaming", options=texts))
    assert one == MethodSpec(
        name="streaming+lookahead", options={"streaming.window": 100, "lookahead.decoding_length": 8}
    )
    assert one.model_dump_json() == cleaned(one).model_dump_json()
    for given, sentence in {
        "lookahead.decoding_length": "option lookahead.decoding_length = '999' is not allowed; it must be at least 2",
        "decoding_length": "has no option 'decoding_length'; did you mean 'lookahead.decoding_length'?",
    }.items():
        with pytest.raises(InputError) as refused:
            cleaned(MethodSpec(name="streaming+lookahead", options={given: "999"}))
        assert sentence in str(refused.value)


def test_a_parts_own_rules_hold_in_a_combination():
    rule = "the options of method {} do not fit together: Value error, "
    texts = {}
    for name, prefix in (("dhsa", ""), ("dhsa+ngram", "dhsa.")):
        with pytest.raises(InputError) as refused:
            cleaned(MethodSpec(name=name, options={f"{prefix}budget": 16, f"{prefix}block": 512}))
        texts[name] = str(refused.value).removeprefix(rule.format(name))
    assert len(set(texts.values())) == 1, texts


class Careless(Ngram):
    """Says it is exact, and takes every draft."""

    card: ClassVar[Card] = Card("careless", "decoding", "t", "s", lossless=True)

    def draft(self, context: Context) -> TokenTree:
        return TokenTree.chain([(context.tokens[-1] + 1) % 40] * min(2, context.most_depth))

    def accept(self, tree: TokenTree, logits: torch.Tensor, sampler: Any) -> Verdict:
        exact = super().accept(TokenTree(), logits[-1:], sampler)
        return Verdict(tuple(range(len(tree))), (*tree.tokens, *exact.tokens))


@pytest.mark.parametrize("name", ["rtn+careless", "rtn+streaming+careless", "rtn+ngram", "rtn+streaming+ngram"])
def test_drafts_on_a_lossy_model_are_gated_against_that_model(name, monkeypatch):
    """A wrong acceptance rule cannot hide behind the quantised weights; a right one passes, and dense is not asked."""
    entries = {"careless": Entry("careless", f"{__name__}:Careless", "decoding", "")}
    monkeypatch.setattr(METHODS, "_plugins", entries)
    model = small_model()
    dense, ours = (Contender(*prepared(one, model), model) for one in ("dense", name))
    gates = {gate.name: gate for gate in Gates(GateRequests.of(request("a", 60, 40), model), dense).run(ours)}
    assert gates["lossless"].passed == ("careless" not in name)
    assert name.rpartition("+")[0] in gates["lossless"].detail


def test_a_method_without_exact_drafts_has_nothing_to_be_held_to():
    model = tiny_model()
    for name in ("rtn", "streaming", "rtn+streaming", "dense+ngram", "ngram"):
        method, config = prepared(name, model)
        assert method.undrafted(config) is None
    method, config = prepared("rtn+streaming+ngram", model)
    rest, own = method.undrafted(config)
    assert rest.card.slug == "rtn+streaming"
    assert rest.parts["rtn"] is method.parts["rtn"]
    assert own.part("streaming") == config.part("streaming")


def test_all_decoding_methods_of_the_registry_are_here():
    assert {*DECODING} == {name for name in METHODS if issubclass(METHODS.load(name), DecodingMethod)}
