"""Checkpoints the suite has trained: their manifest, their files, and the small committed ones, one folder each."""
