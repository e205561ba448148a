"""First Finish Search: samples start together, the first that ends is the answer and the others are called off."""

from __future__ import annotations

from collections.abc import Callable
from statistics import fmean
from typing import ClassVar, Literal, Self

from pydantic import model_validator

from suite.methods.base import Card, Claim, tunable
from suite.methods.search.base import SearchConfig, SearchMethod
from suite.methods.search.policy import Policy
from suite.methods.search.racing import Arrival, Race, arrived, elected, race
from suite.methods.search.trace import Answer, Trace
from suite.methods.search.verifier import Verifier
from suite.methods.search.voting import answers


class FirstFinishConfig(SearchConfig):
    """`k` of `samples` chains are waited for and vote: FFS-k@N. `wait_for` "last": LFS-k@N, the control.

    `tie`: which of the chains that end in the same step comes first, the lowest index or the likeliest text. `skip`: a
    chain that answers nothing does not count, as in the follow-up (2512.02008); the first paper returns it.
    """

    samples: int = tunable(4, low=1, high=256, log=True)
    temperature: float = tunable(0.6, low=0.0, high=2.0)
    top_p: float = tunable(0.95, low=0.05, high=1.0)
    k: int = tunable(1, low=1, high=256, log=True)
    wait_for: Literal["first", "last"] = tunable("first", choices=("first", "last"))
    tie: Literal["index", "likelier"] = tunable("index", choices=("index", "likelier"))
    skip: bool = True

    @model_validator(mode="after")
    def _enough(self) -> Self:
        if self.k > self.samples:
            raise ValueError(f"k={self.k} of samples={self.samples} chains cannot be waited for; k is at most samples")
        return self


class FirstFinishSearch(SearchMethod):
    """Sync-FFS: the chains are rows of one batch, so the first to end is the shortest (2505.18149).

    A chain ends with its whole answer, where short-m@k looks at the thinking alone. One that runs out of tokens has not
    ended. `suite.engines.first_finish` is the asynchronous form, where processes race and the earliest wins.
    """

    Config = FirstFinishConfig
    card: ClassVar[Card] = Card(
        slug="first_finish_search",
        family="search",
        title="First Finish Search: Efficient Test-Time Scaling in Large Language Models",
        source="arXiv 2505.18149; FFS-k and LFS-k: arXiv 2512.02008",
        lossless=False,
        claims=(
            Claim("decoding", "the first to finish is right more often than one sample",
                  "+5 to +9 points on short-horizon models (public traces), +15 % (DeepSeek-R1)", "points, n=8", 5.0),
            Claim("tokens", "FFS makes fewer tokens than majority voting over as many chains",
                  "up to 45 % (27 to 40 % on public traces, n=8)", "fewer tokens, n=8, %", 27.0),
            Claim("time", "FFS answers sooner than majority voting", "37 to 54 % of its sequential tokens, n=8",
                  "less time to answer, n=8, %", 46.0),
            Claim("majority", "FFS comes close to majority voting", "-3 to -8 points on public traces, n=8",
                  "points against majority@8", -8.0),
            Claim("beam", "FFS is better than beam search", "beam search gains nothing from width",
                  "points against the best of 8 beams", 0.0),
            Claim("forcing", "FFS makes fewer tokens than budget forcing", "up to 45 %", "fewer tokens, n=8, %", 0.0),
            Claim("falls", "the time to answer falls with n where majority's rises", "E[min] against E[max]",
                  "sequential tokens of n=8 against n=1, %", None),
            Claim("theory", "lengths of right and wrong chains, taken as normal, predict the accuracy of FFS",
                  "shorter is better iff right chains are shorter on average", "points of error, n=8", 5.0),
            Claim("lfs", "the last to finish are never better than majority voting", "LFS-k@N <= MV (2512.02008)",
                  "points against majority@8", 0.0),
            Claim("control", "where length says nothing, FFS gains nothing", "the sign follows the lengths",
                  "points against one sample, n=8", 0.0),
            Claim("loses", "where right chains are longer, FFS loses", "-26 points (Qwen3-32B)",
                  "points against one sample, n=8", -5.0),
            Claim("online", "the stop in the running batch is the offline rule", "chains do not depend on the policy",
                  "share of 20 questions", 1.0),
            Claim("async", "the first of two processes to finish is the shorter chain, at equal speeds",
                  "the winner is the earliest in time", "share of 20 questions", None),
        ),
    )  # fmt: skip

    async def search(self, policy: Policy, verifier: Verifier, config: FirstFinishConfig) -> Answer:
        """Race to the end, or wait for all; those that count vote."""
        counts = answers if config.skip else None
        if config.wait_for == "last":
            return elected(policy, await _last(policy, config, counts), "first")
        order = _unlikelihood if config.tie == "likelier" else None
        return elected(policy, await race(policy, config.samples, config.k, None, counts, order), "shortest")


async def _last(policy: Policy, config: FirstFinishConfig, counts: Callable[[Trace], bool] | None) -> Race:
    """All run to their ends; the longest that ended by themselves are taken."""
    chains = await policy.finish([policy.root] * config.samples)
    ended = [chain for chain in chains if arrived(chain, None)]
    usable = [chain for chain in ended if counts is None or counts(chain)]
    longest = sorted(usable, key=lambda chain: -chain.length)[: config.k]
    return Race([Arrival(chain, chain) for chain in longest], chains, skipped=len(ended) - len(usable))


def _unlikelihood(whole: Trace) -> float:
    return -fmean(whole.all_logprobs)
