"""The program: command line, harness, models, methods and engines."""

__version__ = "0.1.0"
