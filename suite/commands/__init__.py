"""What the commands do. Each module is imported when its command runs, so that `--help` and `list` stay quick."""
