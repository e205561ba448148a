"""The serving workload: the lengths it draws, the prefixes it shares, and the conversations it reads."""

from __future__ import annotations

import json

import numpy as np
import pytest

from tests.workloads.support import take
from workloads.schema import DataError
from workloads.serving import Serving, ServingConfig

TASK = "requests"


def lengths(count=2000, **options):
    """Words of the prompts, and the tokens asked for."""
    requests = take(Serving(ServingConfig(**options)), TASK, count)
    return np.array([[len(r.prompt.split()), r.max_new_tokens] for r in requests]).T


def test_fixed_lengths_are_exact():
    words, new = lengths(20, lengths="fixed", input_words=40, output_words=7)
    assert set(words) == {40}
    assert set(new) == {7}


def test_uniform_lengths_fill_their_range():
    words, new = lengths(lengths="uniform", input_words=100, output_words=50, spread=0.5)
    assert (words.min(), words.max(), new.min(), new.max()) == (50, 150, 25, 75)
    assert words.mean() == pytest.approx(100, rel=0.03)
    assert abs(np.corrcoef(words, new)[0, 1]) < 0.1


def test_lognormal_lengths_have_the_mean_and_the_spread_asked_for():
    words, _ = lengths(lengths="lognormal", input_words=200, output_words=1, spread=0.8)
    assert words.mean() == pytest.approx(200, rel=0.05)
    assert words.std() / words.mean() == pytest.approx(0.8, rel=0.1)
    logs = np.log(words)
    assert abs(((logs - logs.mean()) ** 3).mean() / logs.std() ** 3) < 0.2


def test_lengths_are_clipped():
    words, _ = lengths(200, input_words=100, spread=3, max_words=120)
    assert words.max() == 120


def test_groups_share_their_prefix_and_nothing_else():
    options = ServingConfig(lengths="fixed", input_words=20, prefix_words=30, prefix_groups=3)
    prompts = [request.prompt.split() for request in take(Serving(options), TASK, 60)]
    assert {len(prompt) for prompt in prompts} == {50}
    assert len({tuple(prompt[:30]) for prompt in prompts}) == 3
    assert len({tuple(prompt[30:]) for prompt in prompts}) == 60


def test_sharegpt_takes_the_first_exchange_and_skips_conversations_without_one(tmp_path):
    def talk(*turns):
        return {"id": "x", "conversations": [{"from": who, "value": text} for who, text in turns]}

    path = tmp_path / "talks.json"
    talks = [
        talk(("system", "be kind"), ("human", "one"), ("gpt", "a b c"), ("human", "more"), ("gpt", "d")),
        talk(("gpt", "an answer alone")),
        talk(),
        {"conversations": [{"role": "user", "content": "two"}, {"role": "assistant", "content": "d"}]},
    ]
    path.write_text(json.dumps(talks))
    requests = take(Serving(ServingConfig(data=path)), TASK, 9)
    assert {(r.prompt, r.max_new_tokens) for r in requests} == {("one", 3), ("two", 1)}
    path.write_text(json.dumps(talks[1:3]))
    with pytest.raises(DataError, match=r"talks\.json: no conversation"):
        Serving(ServingConfig(data=path))


def test_the_seed_chooses_the_order_of_a_file(tmp_path):
    path = tmp_path / "talks.json"
    pair = [{"from": "human", "value": ""}, {"from": "gpt", "value": "a"}]
    path.write_text(json.dumps([{"conversations": [{**pair[0], "value": f"q{i}"}, pair[1]]} for i in range(20)]))
    orders = [[r.prompt for r in take(Serving(ServingConfig(data=path)), TASK, 20, seed)] for seed in (0, 1, 0)]
    assert orders[0] == orders[2]
    assert orders[0] != orders[1]
    assert sorted(orders[0]) == sorted(orders[1])
