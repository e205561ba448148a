"""The claims ledger's experiments: what `suite reproduce NAME` can measure. Listing them imports nothing heavy."""

from __future__ import annotations

from suite.registry import Entry, Registry

EXPERIMENTS = Registry(
    "claim",
    (
        Entry(
            "chunkllm",
            "suite.experiments.chunkllm:ChunkLLMExperiment",
            "attention",
            "frontier, decode speed, selections",
        ),
        Entry(
            "actqkv", "suite.experiments.actqkv:ActQKVExperiment", "attention", "needle blocks, reads, time, k by layer"
        ),
        Entry(
            "chimera",
            "suite.experiments.chimera:ChimeraExperiment",
            "decoding",
            "losslessness, speed, against Medusa's heads and the ablations on one tree, head accuracies",
        ),
        Entry("dense", "suite.experiments.dense:DenseExperiment", "attention", "the baseline against transformers"),
        Entry(
            "dhsa", "suite.experiments.dhsa:DHSAExperiment", "attention", "prefill time and memory, keys found, recall"
        ),
        Entry(
            "hyperparams",
            "suite.experiments.hyperparams:HyperparamsExperiment",
            "analysis",
            "vLLM by batch size and dtype: saturation, irregularity, gain of tuning again",
        ),
        Entry(
            "dhsa_block",
            "suite.experiments.dhsa_block:DHSABlockExperiment",
            "attention",
            "attention and prefill time against length, keys and attention mass found by each mask",
        ),
        Entry(
            "bag_of_tricks",
            "suite.experiments.bag_of_tricks:BagOfTricksExperiment",
            "search",
            "six methods, temperature, top-p, judges and rewards on the lab's tasks: which directions hold",
        ),
        Entry(
            "first_finish_search",
            "suite.experiments.first_finish_search:FirstFinishExperiment",
            "search",
            "accuracy, tokens and time against sampling, voting, beams and budget forcing; the theory; processes",
        ),
        Entry(
            "self_consistency",
            "suite.experiments.self_consistency:SelfConsistencyExperiment",
            "search",
            "tokens per second and memory of 16 chains against one",
        ),
        Entry(
            "short_m_at_k",
            "suite.experiments.short_m_at_k:ShortMAtKExperiment",
            "search",
            "short-1@k and short-3@k against majority voting: accuracy, tokens, time",
        ),
        Entry(
            "longheads",
            "suite.experiments.longheads:LongHeadsExperiment",
            "attention",
            "recall and cost against length",
        ),
        Entry(
            "lookahead",
            "suite.experiments.lookahead:LookaheadExperiment",
            "decoding",
            "losslessness, speed on copied and on open text, tries and modes, cost model",
        ),
        Entry(
            "reasoning_lab",
            "suite.experiments.reasoning_lab:ReasoningLab",
            "analysis",
            "what the lab for test-time search is: accuracies, lengths, step entropies, quality of its reward models",
        ),
        Entry(
            "particle_filtering",
            "suite.experiments.particle_filtering:ParticleFilteringExperiment",
            "search",
            "accuracy against tokens on the lab's chains, beside best of n, beam search, voting; ablations",
        ),
        Entry(
            "astar_decoding",
            "suite.experiments.astar_decoding:AStarExperiment",
            "search",
            "tokens, verifier passes and sequential steps at equal accuracy on the lab's chains; ablations",
        ),
        Entry(
            "specmquant",
            "suite.experiments.specmquant:SpecMQuantExperiment",
            "decoding",
            "losslessness, cost of trees by precision, the hierarchy against trees and chains on int4",
        ),
        Entry(
            "squeezellm",
            "suite.experiments.squeezellm:SqueezeLLMExperiment",
            "weights",
            "perplexity at 3 and 4 bits against round to nearest, decode speed",
        ),
        Entry(
            "qwen2_5_1m",
            "suite.experiments.qwen2_5_1m:Qwen25Experiment",
            "attention",
            "recall against length, sparse prefill, refinement, chunk memory",
        ),
    ),
)
