"""Search over chains of reasoning: many samples of one policy, judged by a verifier or by each other."""
