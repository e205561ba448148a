"""Draft and verify: several tokens per pass of the target model, without changing what it says."""
