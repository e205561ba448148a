"""vLLM's own arguments that are worth tuning, with their constraints (card hyperparams, section 6: CPU build 0.32)."""

from __future__ import annotations

import shlex
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, model_validator

from suite.harness.threads import available_cpus
from suite.methods.base import tunable


class VllmArguments(BaseModel):
    """What an engine is started with; the values here are vLLM's offline defaults, but for the size of the KV cache.

    `cores` "auto" leaves one of the given cores to the scheduler, as vLLM does by itself, "all" computes on all of
    them. vLLM's own KV cache takes nearly all memory of a machine that other programs use, too: here it is
    `kv_cache_gib`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_num_seqs: int = tunable(256, low=1, high=256, log=True)
    max_num_batched_tokens: int = tunable(4096, low=128, high=8192, log=True)
    enable_chunked_prefill: bool = tunable(True, choices=(True, False))
    enable_prefix_caching: bool = tunable(True, choices=(True, False))
    block_size: Literal[32, 64, 128, 256] = tunable(128, choices=(32, 64, 128, 256))
    cores: Literal["auto", "all"] = tunable("auto", choices=("auto", "all"))
    kv_cache_gib: int = tunable(2, low=1, high=4)

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.max_num_batched_tokens < self.max_num_seqs:
            raise ValueError(
                f"max_num_batched_tokens {self.max_num_batched_tokens} is below max_num_seqs {self.max_num_seqs}"
            )
        return self

    def misfit(self, window: int) -> str | None:
        """Why vLLM refuses these arguments for a context of `window` tokens; `None` where it does not."""
        if self.enable_chunked_prefill or self.max_num_batched_tokens >= window:
            return None
        return (
            f"without chunked prefill max_num_batched_tokens {self.max_num_batched_tokens} must hold a whole context "
            f"of {window} tokens"
        )

    def keywords(self) -> dict[str, Any]:
        """Keyword arguments of vLLM's `LLM`, and options of its server."""
        return self.model_dump(exclude={"cores", "kv_cache_gib"})

    def environment(self, threads: int) -> dict[str, str]:
        """vLLM's environment variables, on the first `threads` CPUs that this program may use.

        "auto" is spelled out: vLLM's own "auto" would take the whole machine's cores but one.
        """
        cpus = sorted(available_cpus())[:threads]
        kept = cpus[:-1] if self.cores == "auto" and len(cpus) > 1 else cpus
        cores = ",".join(map(str, kept))
        return {
            "VLLM_CPU_OMP_THREADS_BIND": cores,
            "OMP_NUM_THREADS": str(len(kept)),
            "VLLM_CPU_KVCACHE_SPACE": str(self.kv_cache_gib),
        }

    def command(self, model: str, window: int, dtype: str, threads: int) -> str:
        """A command line that starts vLLM's server with them."""
        variables = [f"{name}={shlex.quote(value)}" for name, value in self.environment(threads).items()]
        words = ["vllm", "serve", shlex.quote(model), "--dtype", dtype, "--max-model-len", str(window)]
        for name, value in self.keywords().items():
            option = name.replace("_", "-")
            words += [f"--{'' if value else 'no-'}{option}"] if isinstance(value, bool) else [f"--{option}", str(value)]
        return " ".join([*variables, *words])
