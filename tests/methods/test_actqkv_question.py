"""ActQKV's question term: whose queries it averages, when it acts, and that it is counted."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from suite.harness.meter import CountingMeter, RequestMeter
from suite.methods.attention.actqkv import ActQKV, ActQKVConfig
from suite.methods.attention.question import question_query, scorer
from suite.models.attention import DenseAttention, Step
from suite.models.cache import KVCache
from suite.models.rope import Rope, rotate
from tests.methods.support import CONFIG, project, tiny_model
from workloads.schema import Completion, Request

B, INIT, LOCAL, WINDOW = 4, 8, 16, 8
SMALL = ActQKVConfig(
    block=B, n_init=INIT, n_local=LOCAL, window=WINDOW, topk=3, min_blocks=1, cached_blocks=6, repr_topk=2, cutoff=False
)
UNASKED = SMALL.model_copy(update={"question_weight": 0.0})
TEXT = "".join(chr(97 + (i * i * 7 + i) % 26) for i in range(150))
QUESTION = "Which of them is it?"


class Seen(ActQKV):
    """Notes what each choice was made from: whether a question's query was there, and the pages."""

    def __init__(self) -> None:
        self.prefill: list[Tensor | None] = []
        self.decode: list[Tensor | None] = []
        self._in = self.prefill

    def select(self, *args: Any) -> Any:
        self._in = self.decode
        return super().select(*args)

    def plan(self, *args: Any) -> Any:
        self._in = self.prefill
        return super().plan(*args)

    def _choose(self, layer: int, row: int, probe: Tensor, asked: Tensor | None = None) -> tuple[list[int], int]:
        self._in.append(asked)
        return super()._choose(layer, row, probe, asked)


def request(name: str = "r", question: str | None = QUESTION, text: str = TEXT) -> Request:
    prompt = f"{text} {QUESTION} "
    return Request(id=name, task="t", prompt=prompt, question=question, metric="none", max_new_tokens=6, target="abcd")


def complete(
    method: ActQKV, config: ActQKVConfig, *requests: Request, meter: RequestMeter | None = None
) -> list[Completion]:
    with method.attach(tiny_model(), config) as generator:
        return list(generator.generate(requests, meter or RequestMeter()))


def test_the_questions_query_averages_the_four_most_attended_tokens_of_each_head():
    """Traps: the mean of all tokens, the last four, or one choice for all heads."""
    H, D, n = 2, 3, 7
    h = torch.randn(n, H * D, generator=torch.Generator().manual_seed(0))
    mass = torch.tensor([[9.0, 0, 8, 0, 7, 6, 0], [0, 5, 6, 7, 0, 0, 8]])
    best = [[0, 2, 4, 5], [1, 2, 3, 6]]
    expected = torch.cat([h.view(n, H, D)[tokens, head].mean(dim=0) for head, tokens in enumerate(best)])
    torch.testing.assert_close(question_query(h, mass), expected / expected.norm())
    torch.testing.assert_close(  # a question of fewer tokens: all of them
        question_query(h[:2], mass[:, :2]), functional.normalize(h[:2].mean(dim=0), dim=0)
    )


def test_a_layer_hears_the_one_angle_queries_of_the_question_alone():
    """By a naive loop over heads, from the raw projections; the token before the question is never ranked."""
    q, k, v = project(10)
    method = ActQKV()
    method.begin_batch(CONFIG, SMALL, 1)
    reader, cache = method.question_reader(0, 1000), KVCache(CONFIG, 1, q.dtype, 10)
    assert reader is not None
    ours = reader(0, q.clone(), k.clone(), v.clone(), Step(cache, [10], 10))
    plain = DenseAttention(CONFIG)(0, q.clone(), k.clone(), v.clone(), Step(KVCache(CONFIG, 1, q.dtype, 10), [10], 10))
    torch.testing.assert_close(ours, plain, atol=0, rtol=0)
    cos, sin = Rope(CONFIG.rope, CONFIG.head_dim).tables(LOCAL + 1)
    rq, rk = (rotate(x[0], cos[:10, None], sin[:10, None]) for x in (q, k))
    parts = []
    for head in range(CONFIG.heads):
        logits = rq[:, head] @ rk[:, head // CONFIG.group].T * CONFIG.head_dim**-0.5
        mass = logits.masked_fill(torch.ones(10, 10).triu(1) > 0, -torch.inf).softmax(dim=-1).sum(dim=0)
        best = 1 + mass[1:].topk(4).indices
        parts.append(rotate(q[0, best, head], cos[LOCAL], sin[LOCAL]).mean(dim=0))
    heard = method._layers[0][0].asked
    assert heard is not None
    torch.testing.assert_close(heard, functional.normalize(torch.cat(parts), dim=0), atol=1e-5, rtol=1e-4)


def test_the_term_acts_in_every_window_of_prefill_and_never_in_decode():
    method = Seen()
    complete(method, SMALL, request())
    assert len(method.prefill) > CONFIG.layers * 10
    assert all(asked is not None for asked in method.prefill)
    assert len(method.decode) == 3 * CONFIG.layers
    assert all(asked is None for asked in method.decode)


def test_a_block_that_only_the_question_points_to_is_chosen_with_the_term_alone():
    needle, probe, other = torch.eye(64)[:3]
    method, chosen = ActQKV(), {}
    for config in (SMALL, UNASKED):
        method.begin_batch(CONFIG, config.model_copy(update={"topk": 1}), 1)
        state = method._layers[0][0]
        k = torch.zeros(INIT + 5 * B, CONFIG.kv_heads, CONFIG.head_dim)
        state.store.append(k, k)
        for _ in range(5):
            state.store.flush()
        state.reps = torch.stack([other, needle, (probe + other) / 2**0.5, other, other])
        chosen[config.question_weight] = method._choose(0, 0, probe, needle if config.question_weight else None)[0]
    assert chosen == {4.0: [INIT // B + 1], 0.0: [INIT // B + 2]}


def test_the_term_is_its_weight_times_a_cosine_beside_the_probes_cosine():
    """Trap: adding the vectors before the probe is brought to length 1."""
    probe, asked, rep = torch.randn(3, 64, generator=torch.Generator().manual_seed(1)) * 5
    asked, rep = functional.normalize(asked, dim=0), functional.normalize(rep, dim=0)
    cosine = functional.cosine_similarity
    expected = cosine(probe, rep, dim=0) + 4 * cosine(asked, rep, dim=0)
    torch.testing.assert_close(scorer(probe, asked, 4.0) @ rep, expected)


def test_without_weight_or_question_nothing_changes_and_with_both_something_does():
    without = complete(ActQKV(), UNASKED, request())[0].target_logprobs
    assert complete(ActQKV(), SMALL, request(question=None))[0].target_logprobs == without
    assert complete(ActQKV(), SMALL, request())[0].target_logprobs != without


def test_rows_with_and_without_a_question_share_a_batch():
    rows = [request("a"), request("b", None, TEXT[:90]), request("c", text=TEXT[20:])]
    together = complete(ActQKV(), SMALL, *rows)
    for row, completion in zip(rows, together, strict=True):
        alone = complete(ActQKV(), SMALL, row)[0]
        assert completion.target_logprobs == pytest.approx(alone.target_logprobs, abs=1e-4)


def test_the_questions_pass_is_a_counted_step_inside_the_requests_time():
    counted = {}
    for config in (SMALL, UNASKED):
        meter = CountingMeter(CONFIG.kv_bytes_per_token(4))
        completion = complete(ActQKV(), config, request(), meter=meter)[0]
        counted[config.question_weight] = meter.steps["prefill"], meter.kv_samples()[0].index_bytes
        assert completion.cost.prompt_tokens == len(request().prompt)
    (steps, kept), (unasked, kept_unasked) = counted.values()
    assert steps[0] == (1 + len(QUESTION), 1 + len(QUESTION))
    assert steps[1:] == unasked
    assert kept - kept_unasked == CONFIG.layers * CONFIG.heads * CONFIG.head_dim * 4


def test_a_prompt_that_stays_dense_reads_no_question():
    method = ActQKV()
    method.begin_batch(CONFIG, SMALL, 1)
    assert method.question_reader(0, INIT + LOCAL) is None
    assert method.question_reader(0, INIT + LOCAL + 1) is not None
