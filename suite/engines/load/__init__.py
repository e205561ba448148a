"""The open-loop load generator: schedules requests, sends them to an OpenAI-compatible server, and counts honestly.

Definitions: `methods/_serving_metrics.md`. Neighbours it learned from: `vllm bench serve`, GuideLLM, AIPerf, LoadGen.
"""
