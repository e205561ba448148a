"""The latencies of a load run: their names, as in `vllm bench serve`, and what a table calls them."""

FROM_ARRIVAL = (("ttft", "TTFT from the scheduled arrival"), ("e2el", "E2E from the scheduled arrival"))
FROM_SENDING = (("ttft_send", "TTFT from sending"), ("e2el_send", "E2E from sending"))
BETWEEN = (("tpot", "TPOT: (last - first) / (tokens - 1)"), ("itl", "ITL: gap between events"))
