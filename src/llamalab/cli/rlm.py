"""`llamalab rlm`: questions over texts that no context holds."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llamalab.cli.options import JsonOption, expand_options
from llamalab.cli.output import check_argument, print_json
from llamalab.cli.rlm_bench import bench
from llamalab.cli.rlm_options import RootAndSub
from llamalab.cli.rlm_view import describe_answer, print_answer, turns_view
from llamalab.cli.schema_file import read_schema
from llamalab.errors import ConfigError, EngineError, InputError, LlamalabError, SchemaError

if TYPE_CHECKING:
    from llamalab.rlm.answer import Answer
    from llamalab.rlm.text import Document

FAILED = 1

SourcesArgument = Annotated[
    list[str] | None,
    typer.Argument(metavar="FILE...", help="Files, folders, patterns such as 'logs/*.txt', or - for standard input."),
]


@dataclass(frozen=True, slots=True)
class JournalOptions:
    """Where a run is written down."""

    journal: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write the run there; a new file in your state folder by default."),
    ] = None
    no_journal: Annotated[bool, typer.Option("--no-journal", help="Write nothing down.")] = False
    resume: Annotated[
        Path | None, typer.Option(metavar="RUN", help="Go on with a run that was broken off: its journal.")
    ] = None
    cache: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Keep replies there; the same call of the same model is not made twice."),
    ] = None

    def new(self) -> Path | None:
        """The journal to begin; None where none is wanted, or one goes on.

        Raises:
            ConfigError: options that exclude each other.
        """
        given = [self.journal is not None, self.no_journal, self.resume is not None]
        if sum(given) > 1:
            raise ConfigError("Give one of these: --journal FILE, --no-journal, --resume RUN.")
        if self.no_journal or self.resume is not None:
            return None
        if self.journal is not None:
            return self.journal.expanduser()
        from llamalab.rlm.journal import default_journal

        return default_journal()


def register(app: typer.Typer) -> None:
    """Add the commands to `app`."""
    rlm = typer.Typer(name="rlm", help="Answer questions over texts larger than any context.", no_args_is_help=True)
    for command in (ask, replay, bench):
        rlm.command()(expand_options(command))
    app.add_typer(rlm)


def ask(
    question: Annotated[
        str | None, typer.Argument(metavar="QUESTION", help="What you want to know, in quotes.", show_default=False)
    ] = None,
    sources: SourcesArgument = None,
    *,
    models: RootAndSub,
    schema: Annotated[
        Path | None, typer.Option(metavar="FILE", help="JSON schema that the answer must satisfy.")
    ] = None,
    journals: JournalOptions,
    turns: Annotated[
        bool | None, typer.Option("--turns/--no-turns", help="Show each turn; on a terminal by default.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Answer QUESTION over documents that the model never sees whole.

    The root model gives commands (find, count, regex, map, ...) until it knows; what supports the answer is printed
    with line numbers. Without --config, --root and --sub the built-in pico does it, a demonstration model. An answer
    that a budget ended, or that rests on nothing read, is printed, marked incomplete, and the exit code is 1.
    """
    held = _schema(schema) if schema is not None else None
    journal = journals.new()

    from llamalab import rlm

    asked, documents = _asked(question, sources or [], journals.resume)
    events = rlm.events(
        asked,
        documents,
        config=models.config,
        root=models.root,
        sub=models.sub,
        schema=held,
        journal=journal,
        resume=journals.resume,
        cache=journals.cache,
    )
    answer: Answer | None = None
    try:
        with turns_view(sys.stderr.isatty() if turns is None else turns) as view, closing(events):  # type: ignore[type-var]
            for event in events:
                view(event)
                if isinstance(event, rlm.Answered) and not event.path:
                    answer = event.answer
    except (LlamalabError, KeyboardInterrupt) as error:
        if not isinstance(error, InputError | ConfigError | SchemaError):
            _say_how_to_go_on(journals.resume or journal, documents, models)
        raise
    if answer is None:
        raise EngineError("A run ended without an answer.")
    if as_json:
        print_json(describe_answer(answer))
    else:
        print_answer(answer)
    if not answer.complete:
        raise typer.Exit(FAILED)


def replay(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The journal of a run.")],
    sources: SourcesArgument = None,
    *,
    as_json: JsonOption = False,
) -> None:
    """Do a run again from its journal, without any model, and compare every byte.

    The documents are read from where the run found them, unless others are named. The exit code is 1 if anything
    differs.
    """
    from llamalab.rlm.replay import replay as replay_run

    found = replay_run(run.expanduser(), sources or None)
    if as_json:
        answer = None if found.answer is None else describe_answer(found.answer)
        print_json(
            {
                "equal": found.equal,
                "compared": found.compared,
                "difference": found.difference,
                "finished": found.finished,
                "answer": answer,
                "said": list(found.said),
            }
        )
    else:
        if found.answer is not None:
            print_answer(found.answer)
        whole = "" if found.finished else " The run was broken off there; it can be resumed."
        said = "all the same" if found.equal else found.difference
        for sentence in found.said:
            print(sentence)
        print(f"replayed without a model: {found.compared:,} compared, {said}.{whole}")
    if not found.equal:
        raise typer.Exit(FAILED)


def _schema(file: Path) -> dict[str, Any]:
    schema = json.loads(read_schema(file))
    if not isinstance(schema, dict):
        raise SchemaError(f"{file}: the schema of an answer must be an object, not {json.dumps(schema)}.")
    return schema


def _asked(question: str | None, sources: list[str], resume: Path | None) -> tuple[str, Sequence[str | Document]]:
    """Question and documents: as they are given, or those of the run that goes on."""
    if question is not None:
        if sources and _exists(question) and not any(map(_exists, sources)):
            raise InputError(f"{question} is there as a file. The question comes first: llamalab rlm ask QUESTION FILE")
        return check_argument(question, "The question"), sources
    if resume is None:
        raise InputError('There is no question. Put one in quotes before the files: llamalab rlm ask "Who?" a.txt')
    from llamalab.rlm.begun import begun_run

    return begun_run(resume.expanduser())


def _exists(name: str) -> bool:
    try:
        return name == "-" or Path(name).exists()
    except (OSError, ValueError):  # a question is no name: too long, or with a zero byte in it
        return False


def _say_how_to_go_on(journal: Path | None, documents: Sequence[str | Document], models: RootAndSub) -> None:
    """What was answered is not lost: name the command that uses it."""
    if journal is None or not journal.is_file() or "-" in documents:
        return
    words = ["llamalab", "rlm", "ask", "--resume", str(journal)]
    for option in ("config", "root", "sub"):
        value = getattr(models, option)
        words += [] if value is None else [f"--{option}", str(value)]
    print(f"go on with: {shlex.join(words)}", file=sys.stderr)
