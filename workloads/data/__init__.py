"""Word lists, sentence templates and prompt templates."""
