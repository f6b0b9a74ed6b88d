"""The sections of a configuration file: which settings there are, and of what kind."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field


class _Section(BaseModel):
    """A mapping in which an unknown name is an error."""

    model_config = ConfigDict(extra="forbid", strict=True, populate_by_name=True)


class PolicySection(_Section):
    """What of a policy's settings says how it writes; the rest is `llamalab.scoring.policy`'s."""

    max_tokens: int | None = Field(default=None, ge=1)
    stop: list[str] | str | None = None
    schema_: dict[str, Any] | str | None = Field(default=None, alias="schema")


class PromptsSection(_Section):
    """See `PromptSettings`."""

    file: str | None = None
    dataset: str | None = None
    split: str = "train"
    field: str | None = None
    num: int | None = None
    seed: int = 0
    stratify: str | None = None


class ResponsesSection(_Section):
    """See `ResponseSettings`, and `Writing` for what policies may say on their own."""

    per_prompt: int = 1
    draws: int = 0
    max_tokens: int = Field(default=256, ge=1)
    stop: list[str] | str | None = None
    schema_: dict[str, Any] | str | None = Field(default=None, alias="schema")
    file: str | None = None
    generated_by: dict[str, Any] | str | None = None


class JudgeSection(_Section):
    """See `JudgeSettings`; a function stands in `kind`, as python:module.function."""

    kind: str
    range: list[float] | None = None
    model: dict[str, Any] | str | None = None
    rubric: str | None = None
    repeats: int = 1
    reference: str = "reference"


class OracleSection(_Section):
    """See `OracleSettings`."""

    judge: JudgeSection | None = None
    file: str | None = None
    range: list[float] | None = None
    fraction: float | None = None
    seed: int = 0
    random: bool = True


class EstimatorsSection(_Section):
    """See `EstimatorSettings`."""

    names: list[str] | None = None
    level: float = 0.95
    folds: int = 5
    replicates: int = 2000
    seed: int = 0
    direct: bool = True


class CandidatesSection(_Section):
    """See `CandidateSettings`."""

    num: int | None = None
    seed: int = 0


class OutputSection(_Section):
    """Where the run is kept."""

    folder: str | None = None


class File(_Section):
    """A whole file."""

    policies: dict[str, Any]
    base: str | None = None
    targets: list[str] | None = None
    prompts: PromptsSection = PromptsSection()
    responses: ResponsesSection = ResponsesSection()
    judge: JudgeSection | None = None
    oracle: OracleSection | None = None
    estimators: EstimatorsSection = EstimatorsSection()
    candidates: CandidatesSection | None = None
    output: OutputSection = OutputSection()
