"""Options that several commands have."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Store = Annotated[
    Path | None, typer.Option("--store", help="Results file (default results/suite.sqlite, or $SUITE_STORE).")
]
Json = Annotated[bool, typer.Option("--json", help="One JSON document on stdout, nothing else there.")]
Model = Annotated[str, typer.Option("--model", help="Registered name, directory, .gguf file or hub id.")]
Dtype = Annotated[str, typer.Option("--dtype", help="bf16 or fp32.")]
Threads = Annotated[int, typer.Option("--threads", min=0, help="OpenMP threads; 0 chooses by measurement.")]
