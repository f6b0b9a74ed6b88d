"""What an arena's configuration says, as frozen records; `config.py` reads them from a file."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias

from llamalab.engine import Schema
from llamalab.scoring.policy import Policy

JudgeKind: TypeAlias = Literal["llm", "logprob", "exact_match", "python"]
"""llm: a chat model with a rubric; logprob: mean log probability under a model; exact_match: against a reference;
python: a function."""

CHATBOT_ARENA = "lmsys/chatbot_arena_conversations"
"""The data set that prompts come from where the configuration names none."""


@dataclass(frozen=True, slots=True)
class Writing:
    """How a policy writes its responses; what of it decides which responses there can be must be alike in all.

    Attributes:
        max_tokens: most tokens of a response; a response that reaches it is not finished.
        stop: strings that end it.
        schema: JSON schema that it is held to; None: free text.
    """

    max_tokens: int = 256
    stop: tuple[str, ...] = ()
    schema: Schema | None = None


@dataclass(frozen=True, slots=True)
class PromptSettings:
    """Where prompts come from.

    Attributes:
        source: a file (.jsonl, .csv, .parquet), a folder with a data set in it, or the id of one on the Hugging Face
            hub.
        split: of a data set.
        field: that holds the prompt; None: the first known one that a row has.
        num: how many are drawn; None: all.
        seed: of the draw.
        stratify: a field; the draw then has each of its values as often as all rows have it.
    """

    source: str = CHATBOT_ARENA
    split: str = "train"
    field: str | None = None
    num: int | None = None
    seed: int = 0
    stratify: str | None = None


@dataclass(frozen=True, slots=True)
class ResponseSettings:
    """Which responses there are.

    Attributes:
        per_prompt: responses of the base to each prompt.
        draws: fresh responses of each target to each prompt; 0: none.
        file: responses of the base that were written before, JSON lines; None: they are generated.
        generated_by: who wrote those of `file`; it has to be the base in everything that decides a distribution.
    """

    per_prompt: int = 1
    draws: int = 0
    file: Path | None = None
    generated_by: Policy | None = None


@dataclass(frozen=True, slots=True)
class JudgeSettings:
    """Who scores responses.

    Attributes:
        kind: of judge.
        range: of its scores, least and most.
        model: of kinds "llm" and "logprob".
        rubric: of kind "llm"; None: a general one.
        repeats: of kind "llm": times that each response is judged; the score is their mean.
        function: of kind "python", as "module.function"; called with a prompt, a response and the whole row.
        folder: where its module is looked for first.
        reference: the field of a prompt that holds the right answer, of kind "exact_match".
    """

    kind: JudgeKind
    range: tuple[float, float]
    model: Policy | None = None
    rubric: str | None = None
    repeats: int = 1
    function: str | None = None
    folder: Path = field(default=Path(), compare=False)
    reference: str = "reference"


@dataclass(frozen=True, slots=True)
class OracleSettings:
    """Where labels, the costly truth, come from.

    Attributes:
        range: of the labels, least and most.
        judge: gives a label to the responses that are drawn for it.
        file: JSON lines of labels instead: "response_id" (or "prompt_id") and "label", "probability" on request.
        fraction: probability with which a response is drawn, in (0, 1]; of `file`: that of rows that give none.
        seed: of the draw.
        random: the labelled responses are a random draw; False: somebody chose them, so nothing is calibrated by them.
    """

    range: tuple[float, float]
    judge: JudgeSettings | None = None
    file: Path | None = None
    fraction: float = 1.0
    seed: int = 0
    random: bool = True


@dataclass(frozen=True, slots=True)
class EstimatorSettings:
    """How values are estimated.

    Attributes:
        names: of the estimators.
        level: of the intervals.
        folds: of the cross-fit, by prompt.
        replicates: of the bootstrap.
        seed: of folds and bootstrap.
        direct: also the mean of fresh draws, by cje-eval.
    """

    names: tuple[str, ...] = ("ips", "snips", "calibrated_ips", "dr", "stacked")
    level: float = 0.95
    folds: int = 5
    replicates: int = 2000
    seed: int = 0
    direct: bool = True


@dataclass(frozen=True, slots=True)
class CandidateSettings:
    """An arena with known truth: each prompt carries a finite list of candidates ("candidates"), and a policy is the
    model's probability renormalised over it.

    Attributes:
        num: candidates of each prompt that are used; None: all.
        seed: of the draw of responses.
    """

    num: int | None = None
    seed: int = 0


@dataclass(frozen=True, slots=True)
class ArenaConfig:
    """A whole configuration.

    Attributes:
        path: of the file.
        policies: by name, in the order of the file.
        writing: of each policy, by name.
        base: name of the policy that wrote the logged responses.
        targets: names of the policies whose value is wanted.
        clone: the target that agrees with the base in everything; None: there is none.
        prompts: where they come from.
        responses: which there are.
        judge: of responses.
        oracle: of labels; None: values stand on the judge's scale.
        estimators: settings.
        candidates: of an arena with known truth; None: an ordinary one.
        folder: of the run.
        lines: line of the file where a setting stands, by its dotted name.
        said: what the file leaves open and how that was filled, one sentence each.
    """

    path: Path
    policies: Mapping[str, Policy]
    writing: Mapping[str, Writing]
    base: str
    targets: tuple[str, ...]
    clone: str | None
    prompts: PromptSettings
    responses: ResponseSettings
    judge: JudgeSettings
    oracle: OracleSettings | None
    estimators: EstimatorSettings
    candidates: CandidateSettings | None
    folder: Path
    lines: Mapping[str, int] = field(default_factory=dict, repr=False)
    said: tuple[str, ...] = ()

    @property
    def compared(self) -> dict[str, Policy]:
        """The base and the targets, by name."""
        return {name: self.policies[name] for name in (self.base, *self.targets)}

    def at(self, place: str) -> str:
        """Where a setting stands, for a message: file, line and name; of one that is left out, the nearest above it."""
        return at(self.path, self.lines, place)

    def record(self) -> dict[str, Any]:
        """Everything that decides what comes out, as JSON can say it; neither folders nor lines."""
        return {
            "policies": {
                name: {**plain(policy), **plain(self.writing[name])} for name, policy in self.compared.items()
            },
            "base": self.base,
            "targets": list(self.targets),
            "clone": self.clone,
            "prompts": plain(self.prompts) | {"source": _name(self.prompts.source)},
            "responses": plain(self.responses),
            "judge": plain(self.judge),
            "oracle": plain(self.oracle),
            "estimators": plain(self.estimators),
            "candidates": plain(self.candidates),
        }


def at(path: Path, lines: Mapping[str, int], place: str) -> str:
    """Where a setting stands: file, line, dotted name. Line 0 is the command line."""
    above = place
    while above and above not in lines:
        above = above.rpartition(".")[0]
    line = lines.get(above)
    if line == 0:
        return f"the command line, {place}"
    return f"{path}, {place}" if line is None else f"{path}, line {line}, {place}"


def _name(source: str) -> str:
    """Of a file or folder, its name: a run that was moved is the same."""
    path = Path(source).expanduser()
    return path.name if path.exists() else source


def plain(value: Any) -> Any:
    """A record as JSON can say it: files by their names, and without what is not compared."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {each.name: plain(getattr(value, each.name)) for each in dataclasses.fields(value) if each.compare}
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, Path):
        return value.name
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)
