"""`--budget`: measures how fast each method is here, and chooses how many items of how many tasks fit into the time."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from suite.errors import UnitError
from suite.harness.contender import Contender
from suite.harness.gates import GATE_NEW_TOKENS, GATE_PROMPT_TOKENS, GateRequests
from suite.harness.meter import RequestMeter
from suite.harness.options import make_workload, read_requests
from suite.harness.plan import Block, Plan, contender_id
from workloads.schema import Request, truncate_middle

if TYPE_CHECKING:
    from suite.models.language_model import LanguageModel

PROBE_TOKENS = (GATE_PROMPT_TOKENS // 4, GATE_PROMPT_TOKENS)
COUNTED_STEP_FACTOR = 10.0  # a counted decode step takes about this many times as long as a timed one
GATE_RUNS = 5  # prompts of gate length that gates and warm-up run per method


@dataclass(frozen=True)
class Rates:
    """Time of one method: prefill of n tokens takes `linear_s` n + `quadratic_s` n^2, each decoded token `decode_s`."""

    linear_s: float
    quadratic_s: float
    decode_s: float

    def seconds(self, prompt_tokens: int, new_tokens: int) -> float:
        """Estimated time of one request."""
        return (self.linear_s + self.quadratic_s * prompt_tokens) * prompt_tokens + self.decode_s * new_tokens


@dataclass(frozen=True)
class Lengths:
    """Tokens of one request, before it ran: the prompt, and at most so many new ones."""

    prompt_tokens: int
    new_tokens: int


def fit_rates(short: tuple[int, float], long: tuple[int, float], decode_s: float) -> Rates:
    """Rates through two measured prefills (tokens, seconds); noise must not make either coefficient negative."""
    (n, a), (m, b) = short, long
    quadratic = max(0.0, (b / m - a / n) / (m - n)) if m > n else 0.0
    return Rates(max(0.0, b / m - quadratic * m), quadratic, decode_s)


def probe(contender: Contender, request: Request) -> Rates:
    """Runs two shortened copies of `request` teacher-forced, so that neither ends early; the first run warms up."""
    forced = GateRequests.of(request, contender.model).forced
    tokens = len(contender.model.tokenizer.encode(forced.prompt))
    lengths = [min(tokens // 4, PROBE_TOKENS[0]), min(tokens, PROBE_TOKENS[1])]
    runs = [_timed(contender, forced, max(1, length)) for length in (lengths[0], *lengths)][1:]
    (short, short_s, _), (long, long_s, decode_s) = runs
    return fit_rates((short, short_s), (long, long_s), decode_s)


def _timed(contender: Contender, request: Request, tokens: int) -> tuple[int, float, float]:
    """Prompt tokens, time to the first token, and mean time per further token, in seconds."""
    text, _ = truncate_middle(request.prompt, tokens, contender.model.tokenizer)
    meter = RequestMeter()
    contender.complete([request.model_copy(update={"prompt": text})], meter)
    start_ns, stamps = meter.times(request.id)
    decode_ns = (stamps[-1] - stamps[0]) / max(1, len(stamps) - 1)
    return meter.prompt_tokens(request.id), (stamps[0] - start_ns) / 1e9, decode_ns / 1e9


def fit(plan: Plan, contenders: Mapping[str, Contender], model: LanguageModel) -> Plan:
    """The plan with limits that fit its budget; a plan without a budget stays as it is.

    The time of the probe itself and of the gates comes out of the budget.
    """
    if plan.budget_s is None:
        return plan
    start = time.perf_counter()
    first = next(_requests(plan.blocks[0]))
    rates = {name: _rates(contender, first) for name, contender in contenders.items()}
    gates_s = GATE_RUNS * sum(rate.seconds(GATE_PROMPT_TOKENS, GATE_NEW_TOKENS) for rate in rates.values())
    left_s = plan.budget_s - gates_s - (time.perf_counter() - start)
    costs = [_Costs(block, rates, model) for block in plan.blocks]
    limit = plan.limit if plan.limit is not None else plan.blocks[0].workload.limit
    return _chosen(plan, costs, left_s, limit)


def _rates(contender: Contender, request: Request) -> Rates:
    """Measured rates; a method that cannot run costs nothing: its units will say why and fail at once."""
    try:
        contender.prepare()
        return probe(contender, request)
    except Exception:  # whatever a method raises; see `BlockRun._guarded`
        return Rates(0.0, 0.0, 0.0)


class _Costs:
    """Cumulated cost of a block's items in seconds; requests are encoded only as far as they are asked for."""

    def __init__(self, block: Block, rates: Mapping[str, Rates], model: LanguageModel) -> None:
        self.block = block
        self._rates = [rates[contender_id(unit.method)] for unit in block.units]
        self._requests = _requests(block)
        self._model = model
        self._cumulated: list[float] = []

    def seconds(self, items: int) -> float:
        """Cost of the first `items` items under all methods; of all there are, where there are fewer."""
        while len(self._cumulated) < items:
            request = next(self._requests, None)
            if request is None:
                break
            before = self._cumulated[-1] if self._cumulated else 0.0
            self._cumulated.append(before + self._item(request, len(self._cumulated)))
        return self._cumulated[min(items, len(self._cumulated)) - 1] if self._cumulated else 0.0

    def _item(self, request: Request, index: int) -> float:
        lengths = _lengths(request, self._model)
        protocol = self.block.protocol
        timed = sum(rate.seconds(lengths.prompt_tokens, lengths.new_tokens) for rate in self._rates) * protocol.repeats
        if index >= protocol.counted:
            return timed
        steps = COUNTED_STEP_FACTOR * min(lengths.new_tokens, protocol.counted_steps)
        return timed + sum(rate.seconds(lengths.prompt_tokens, 0) + steps * rate.decode_s for rate in self._rates)


def _requests(block: Block) -> Iterator[Request]:
    return read_requests(make_workload(block.workload), block.workload)


def _lengths(request: Request, model: LanguageModel) -> Lengths:
    """A prompt the model refuses costs nothing: its unit will fail at once."""
    try:
        prompt = model.encode(request)
    except UnitError:
        return Lengths(0, 0)
    return Lengths(len(prompt.ids), len(prompt.target_ids) or request.max_new_tokens)


def _chosen(plan: Plan, costs: Sequence[_Costs], left_s: float, limit: int) -> Plan:
    items = _items(costs, left_s, limit)
    if items:
        note = f"the budget of {plan.budget_s:.0f} s allows {items} items of each of {len(costs)} tasks."
        return _with(plan, costs, items, note)
    chosen = _balanced(costs, left_s)
    total_s = sum(cost.seconds(1) for cost in chosen)
    note = f"the budget of {plan.budget_s:.0f} s allows 1 item of each of {len(chosen)} of the {len(costs)} tasks."
    if total_s > left_s:
        note = (
            f"the budget of {plan.budget_s:.3g} s leaves {max(left_s, 0.0):.3g} s after the probe and the gates; "
            f"the cheapest task takes about {total_s:.3g} s and is measured all the same."
        )
    return _with(plan, chosen, 1, note)


def _with(plan: Plan, costs: Sequence[_Costs], items: int, note: str) -> Plan:
    blocks = tuple(cost.block.limited(items, cost.seconds(items)) for cost in costs)
    return plan.model_copy(update={"blocks": blocks, "notes": (*plan.notes, note)})


def _items(costs: Sequence[_Costs], left_s: float, limit: int) -> int:
    """The largest number of items per task, at most `limit`, whose cost fits; 0 when one does not."""
    items, total_s = 0, 0.0
    while items < limit:
        next_s = sum(cost.seconds(items + 1) for cost in costs)
        if next_s > left_s or (items and next_s == total_s):  # too much, or no task has a further item
            break
        items, total_s = items + 1, next_s
    return items


def _balanced(costs: Sequence[_Costs], left_s: float) -> list[_Costs]:
    """As many tasks as fit with one item each, evenly spaced over the list (whose order groups kinds of tasks)."""
    for count in range(len(costs) - 1, 1, -1):
        chosen = [costs[round(place * (len(costs) - 1) / (count - 1))] for place in range(count)]
        if sum(cost.seconds(1) for cost in chosen) <= left_s:
            return chosen
    return [min(costs, key=lambda cost: cost.seconds(1))]
