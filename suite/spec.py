"""`RunSpec`: the complete, frozen description of one unit of work. Its content hash is the key of its result."""

from __future__ import annotations

import hashlib
import json
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Dtype = Literal["bf16", "fp32"]


class Spec(BaseModel):
    """Frozen and strict: an unknown field is an error, and two equal specs have equal hashes."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class WorkloadSpec(Spec):
    """`limit` items of one `task`; `options` are the workload's own `Config` fields."""

    name: str
    task: str
    limit: int = Field(ge=1)
    seed: int = Field(default=0, ge=0)
    options: dict[str, Any] = Field(default_factory=dict)


class MethodSpec(Spec):
    """A method and its own `Config` fields."""

    name: str
    options: dict[str, Any] = Field(default_factory=dict)


class ModelSpec(Spec):
    """A registered model name, a local directory or GGUF file, or a hub id."""

    name: str
    dtype: Dtype = "bf16"


class EngineSpec(Spec):
    """What executes the model. `threads` = 0 lets the harness choose by measurement."""

    name: str = "native"
    threads: int = Field(default=0, ge=0)
    batch_size: int = Field(default=1, ge=1)


class Sampling(Spec):
    """Token sampling; temperature 0 is greedy."""

    temperature: float = Field(default=0.0, ge=0.0)
    top_k: int = Field(default=0, ge=0)
    top_p: float = Field(default=1.0, gt=0.0, le=1.0)


class Protocol(Spec):
    """How a unit is timed: untimed warm-up runs, timed repeats of every request; then `counted` requests are run again,
    untimed, for `counted_steps` decode steps each, and every operator is counted."""

    warmup: int = Field(default=1, ge=0)
    repeats: int = Field(default=1, ge=1)
    counted: int = Field(default=1, ge=0)
    counted_steps: int = Field(default=8, ge=1)


class RunSpec(Spec):
    """One unit: a task of a workload, under a method, on a model, in an engine."""

    workload: WorkloadSpec
    method: MethodSpec
    model: ModelSpec
    engine: EngineSpec = EngineSpec()
    sampling: Sampling = Sampling()
    protocol: Protocol = Protocol()

    def key(self, *context: str) -> str:
        """Content hash of the spec and its context (code version, workload revision, model digest, machine)."""
        document = json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256("\n".join((document, *context)).encode()).hexdigest()[:24]
