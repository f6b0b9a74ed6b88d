"""`llamalab score`: log probabilities of responses, JSON lines in and out; perplexity; the store of results."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llamalab.cli.jax_options import DtypeOption, Int8Option, MeshOption
from llamalab.cli.options import MODEL_HELP, EngineOptions, JsonOption, expand_options
from llamalab.cli.progress import rate_bar
from llamalab.cli.score_model import measure_text, show_perplexity, show_self_test
from llamalab.errors import ConfigError
from llamalab.scored import ScoreMode

if TYPE_CHECKING:
    from llamalab.scoring.policy import Policy
    from llamalab.scoring.run import Summary
    from llamalab.scoring.store import Store

FAILED = 1

_MEASURED_ALONE = ("temperature", "top_p", "top_k", "min_p", "system", "template", "date")


@dataclass(frozen=True, slots=True)
class PolicyOptions:
    """The distribution that a response is scored under."""

    temperature: Annotated[
        float | None, typer.Option("--temperature", "-t", metavar="T", min=0, help="Above 0; 1 is the model's own.")
    ] = None
    top_p: Annotated[
        float | None,
        typer.Option(metavar="P", min=0, max=1, help="Keep the smallest set whose mass reaches p; 1 keeps all."),
    ] = None
    top_k: Annotated[
        int | None, typer.Option(metavar="K", min=0, help="Keep the k most probable tokens; 0 keeps all.")
    ] = None
    min_p: Annotated[
        float | None,
        typer.Option(metavar="P", min=0, max=1, help="Keep tokens at least p times as probable as the best."),
    ] = None
    system: Annotated[
        str | None, typer.Option("--system", "-s", metavar="TEXT", help="A system message before each prompt.")
    ] = None
    template: Annotated[
        str | None, typer.Option(metavar="NAME|FILE", help="Chat template instead of the model's own.")
    ] = None
    date: Annotated[
        str | None, typer.Option(metavar="DAY", help="What the template is told when it asks for today's date.")
    ] = None
    dtype: DtypeOption = None
    int8: Int8Option = False
    mesh: MeshOption = None

    def given(self) -> dict[str, Any]:
        """What the user set."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {name: value for name, value in fields.items() if value is not None and value is not False}


@dataclass(frozen=True, slots=True)
class StoreOptions:
    """Where results are kept."""

    store: Annotated[
        Path | None, typer.Option(metavar="PATH", help="Store of results; one in the cache folder by default.")
    ] = None
    no_store: Annotated[bool, typer.Option("--no-store", help="Compute everything, keep nothing.")] = False

    @contextmanager
    def opened(self) -> Iterator[Store | None]:
        """The store, or None."""
        if self.no_store and self.store is not None:
            raise ConfigError("Give --store or --no-store, not both.")
        if self.no_store:
            yield None
            return
        from llamalab.scoring.store import Store

        with Store(self.store) as store:
            yield store


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command()(expand_options(score))


def score(
    rows: Annotated[
        str | None, typer.Argument(metavar="ROWS", help="JSON lines to score; - reads standard input.")
    ] = None,
    *,
    model: Annotated[str | None, typer.Option("--model", "-m", metavar="MODEL", help=MODEL_HELP)] = None,
    output: Annotated[
        str, typer.Option("--output", "-o", metavar="FILE", help="Where results go; - is standard output.")
    ] = "-",
    policies: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Policies to score under, YAML; instead of -m.")
    ] = None,
    policy: PolicyOptions,
    mode: Annotated[ScoreMode, typer.Option(help="strict: the same bits every time; fast: many at once.")] = "strict",
    tokens: Annotated[bool, typer.Option("--tokens", help="Write each token as well.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Write FILE anew, whatever is in it.")] = False,
    storing: StoreOptions,
    text: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Instead of rows: the perplexity of a text; - reads it.")
    ] = None,
    context: Annotated[
        int | None, typer.Option(metavar="N", min=2, help="Of --text: tokens of a window; the model's by default.")
    ] = None,
    stride: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Of --text: tokens a window moves on; half by default.")
    ] = None,
    self_test: Annotated[
        bool, typer.Option("--self-test", help="Instead of rows: what is equal to the bit on this machine.")
    ] = False,
    engine: EngineOptions,
    as_json: JsonOption = False,
) -> None:
    """Log probabilities of responses: log p(response | prompt), in nats.

    A row is {"id", "prompt" or "messages", "response", "finished"}; for each, in the same order, one row is written:
    "logprob" and what it is made of, or a typed "error". The same command goes on where it was stopped, and reads what
    was computed before from a store. The exit code is 1 if any row has an error. `score store --help` is about the
    store.
    """
    if sum((rows is not None, text is not None, self_test)) != 1:
        raise ConfigError("Give one of these: ROWS (JSON lines, or -), --text FILE, --self-test.")
    if policies is not None and rows is None:
        raise ConfigError("--policies goes with ROWS; --text and --self-test are about one model: -m MODEL.")
    if rows is None:
        what = "--text" if text is not None else "--self-test"
        alone = _one_model(model, policy, engine, what)
        if text is None:
            show_self_test(alone, as_json=as_json)
            return
        with storing.opened() as store, rate_bar("tokens") as progress:
            found = measure_text(alone, text, context=context, stride=stride, mode=mode, store=store, progress=progress)
        show_perplexity(found, as_json=as_json)
        return
    if context is not None or stride is not None or as_json:
        raise ConfigError("--context, --stride and --json go with --text; rows are always JSON lines.")
    named = _policies(policies, model, policy, engine)

    from llamalab.scoring.run import Plan, run

    plan = Plan(named, nested=policies is not None, mode=mode, tokens=tokens)
    try:
        with storing.opened() as store, rate_bar("rows") as progress:
            summary = run(rows, output, plan, store=store, force=force, progress=progress)
    except KeyboardInterrupt:
        if output != "-":
            print(f"stopped; the same command goes on where {output} ends", file=sys.stderr)
        raise
    print(_said(summary), file=sys.stderr)
    if summary.failed:
        raise typer.Exit(FAILED)


def _policies(file: Path | None, model: str | None, policy: PolicyOptions, engine: EngineOptions) -> dict[str, Policy]:
    """Those of the file, or the one that the options describe."""
    from llamalab.scoring.policy import load_policies, make_policy

    given = policy.given() | engine.given()
    given.pop("n_seq")
    if file is None:
        spec = model or "pico"
        if "system" in given:
            given["system_prompt"] = given.pop("system")
        return {spec: make_policy(spec, {"model": spec, **given})}
    if model is not None or given:
        what = ["-m", *(f"--{name.replace('_', '-')}" for name in given)] if model else list(given)
        raise ConfigError(f"With --policies, models and settings stand in {file}; leave out {what[0]}.")
    return load_policies(file)


def _one_model(model: str | None, policy: PolicyOptions, engine: EngineOptions, what: str) -> Policy:
    """A model alone, for what knows no sampler and no prompt."""
    for name in _MEASURED_ALONE:
        if name in policy.given():
            raise ConfigError(f"{what} looks at the model's own distribution: leave out --{name.replace('_', '-')}.")
    (found,) = _policies(None, model, policy, engine).values()
    return found


def _said(summary: Summary) -> str:
    """One line about a run."""
    parts = [f"{summary.rows:,} rows: {summary.values:,} scored"]
    if summary.kept:
        parts.append(f"{summary.kept:,} rows were there already")
    if summary.stored:
        parts.append(f"{summary.stored:,} from the store")
    if summary.out_of_support:
        parts.append(f"{summary.out_of_support:,} outside the policy's support")
    if summary.failed:
        kinds = ", ".join(f"{kind} {count:,}" for kind, count in sorted(summary.errors.items()))
        parts.append(f"{summary.failed:,} failed ({kinds})")
    return ", ".join(parts)


def complete_arguments(arguments: Sequence[str]) -> list[str]:
    """`score store ...` are commands of their own; a file of that name is ./store."""
    completed = list(arguments)
    at = next((i for i, argument in enumerate(completed) if not argument.startswith("-")), len(completed))
    if completed[at : at + 2] == ["score", "store"]:
        completed[at : at + 2] = ["score store"]
    return completed
