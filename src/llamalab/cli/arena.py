"""`llamalab arena`: is the new policy better, and can these data say so."""

from __future__ import annotations

import dataclasses
import re
import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llamalab.cli.options import JsonOption, expand_options
from llamalab.cli.output import print_json, print_table, shown
from llamalab.cli.progress import progress_bar
from llamalab.errors import ConfigError, InputError

if TYPE_CHECKING:
    from llamalab.arena.results import PolicyResult, Results

ConfigArgument = Annotated[Path, typer.Argument(metavar="CONFIG", help="The configuration, YAML.")]
OutOption = Annotated[
    Path | None, typer.Option("--out", "-o", metavar="FOLDER", help="Where the run is kept; arena_run by default.")
]

_DATASET = re.compile(r"[\w.-]+/[\w.-]+")
_FILES = (".jsonl", ".ndjson", ".json", ".csv", ".parquet")


@dataclass(frozen=True, slots=True)
class RunOptions:
    """What the command line says instead of the file."""

    prompts: Annotated[
        str | None,
        typer.Option(metavar="SOURCE", help="Prompts: a .jsonl, .csv or .parquet file, a folder, or a dataset's id."),
    ] = None
    num_prompts: Annotated[int | None, typer.Option(metavar="N", help="Draw so many of them.")] = None
    judge: Annotated[
        str | None,
        typer.Option(metavar="KIND", help="llm, logprob, exact_match or python:module.function."),
    ] = None
    judge_range: Annotated[
        str | None, typer.Option(metavar="LOW,HIGH", help="Least and largest score of --judge, as in 0,10.")
    ] = None

    def overrides(self, folder: Path | None) -> dict[str, Any]:
        """Settings by their dotted names.

        Raises:
            ConfigError: `--judge-range` is no range, or goes with nothing.
        """
        given: dict[str, Any] = {}
        if self.prompts is not None:
            remote = _DATASET.fullmatch(self.prompts) and Path(self.prompts).suffix.lower() not in _FILES
            if remote and not Path(self.prompts).expanduser().exists():
                given |= {"prompts.file": None, "prompts.dataset": self.prompts}
            else:
                given |= {"prompts.dataset": None, "prompts.file": str(Path(self.prompts).expanduser().absolute())}
        if self.num_prompts is not None:
            given["prompts.num"] = self.num_prompts
        if self.judge is not None:
            given["judge"] = {"kind": self.judge}
        if self.judge_range is not None:
            if self.judge is None:
                raise ConfigError("--judge-range goes with --judge; in the file, the range stands under 'judge'.")
            given["judge"]["range"] = _range(self.judge_range)
        if folder is not None:
            given["output.folder"] = str(folder)
        return given


def register(app: typer.Typer) -> None:
    """Add the commands to `app`."""
    arena = typer.Typer(
        name="arena",
        help="Is the new policy better than the old one, and can these data say so?",
        no_args_is_help=True,
    )
    for command in (run, status, report):
        arena.command()(expand_options(command))
    app.add_typer(arena)


def run(
    config: ConfigArgument,
    *,
    options: RunOptions,
    out: OutOption = None,
    only: Annotated[str | None, typer.Option(metavar="STEP", help="Run one step alone.")] = None,
    from_: Annotated[
        str | None, typer.Option("--from", metavar="STEP", help="Begin here; what the steps before left is used.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="The steps that run write their files anew.")] = False,
) -> None:
    """Run an arena from prompts to report, or go on with it.

    The steps are prompts, responses, draws, logprobs, judge, labels, estimate and report. The same command goes on
    where it was stopped. The report is report.html in the run's folder, its numbers are results.json.
    """
    from llamalab.arena.config import load_config
    from llamalab.arena.pipeline import run as run_arena
    from llamalab.arena.pipeline import selected

    loaded = load_config(config, options.overrides(out))
    steps = selected(only, from_)
    for sentence in loaded.said:
        print(sentence, file=sys.stderr)
    try:
        with _steps() as progress:
            folder = run_arena(loaded, only, from_, progress, force=force, commands=[_command(config, options)])
    except KeyboardInterrupt:
        print(f"stopped; the same command goes on where {loaded.folder} ends", file=sys.stderr)
        raise
    if "estimate" in steps or "report" in steps:
        from llamalab.arena.results import read_results  # it needs the extra, which the run has seen to be there

        print_results(read_results(folder / "results.json"))
    if "report" in steps:
        print(f"\nreport: {folder / 'report.html'}")


def status(config: ConfigArgument, *, out: OutOption = None, as_json: JsonOption = False) -> None:
    """How far each step of a run is: rows done, failed and left."""
    from llamalab.arena.config import load_config
    from llamalab.arena.pipeline import status as look

    loaded = load_config(config, RunOptions().overrides(out))
    found = look(loaded)
    if as_json:
        print_json({"folder": str(loaded.folder), "steps": [dataclasses.asdict(step) for step in found]})
        return
    rows = [[step.step, f"{step.done:,}", f"{step.failed:,}", shown(step.left), step.file] for step in found]
    print_table(["step", "done", "failed", "left", "file"], rows, right=("done", "failed", "left"))
    print(f"in {loaded.folder}")


def report(
    source: Annotated[
        Path, typer.Argument(metavar="CONFIG|FOLDER", help="A configuration, a run's folder, or one in CJE's layout.")
    ],
    *,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="FOLDER", help="Where results.json and report.html go.")
    ] = None,
    cje: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Also write the rows there, in CJE's layout.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Estimate anew from the rows of a run, and write results.json and report.html.

    Without --out they go into the run's folder; of data in CJE's layout, into arena_report. Of a configuration that was
    changed since its run was estimated there is no report: run it from the step that the change is about.
    """
    from llamalab.arena.preflight import require_extra

    require_extra()
    from llamalab.arena.cje_format import write_cje
    from llamalab.arena.evaluation import evaluate
    from llamalab.arena.report import write_report
    from llamalab.arena.results import write_results
    from llamalab.arena.run_folder import read_run

    folder = source.expanduser()
    if folder.is_file():
        folder = _unchanged(folder)
    elif not folder.is_dir():
        raise InputError(f"{source} cannot be read: there is no such configuration or folder.")
    rows = read_run(folder)
    if cje is not None:
        write_cje(rows, cje.expanduser())
    target = out or (folder if (folder / "manifest.json").is_file() else Path("arena_report"))
    try:
        target.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"The folder {target} cannot be made: {error.strerror or error}. Name another.") from error
    results = evaluate(rows)
    write_results(results, target / "results.json")
    write_report(results, target / "report.html")
    if as_json:
        print_json(dataclasses.asdict(results))
        return
    print_results(results)
    print(f"\nreport: {target / 'report.html'}")


def _unchanged(path: Path) -> Path:
    """The folder of a configuration's run."""
    from llamalab.arena.config import load_config
    from llamalab.arena.pipeline import check_unchanged

    config = load_config(path)
    check_unchanged(config)
    return config.folder.expanduser()


def print_results(results: Results) -> None:
    """The headline table, and why there is no number where there is none."""
    truth = any(policy.truth is not None for policy in results.policies)
    level = f"{100 * results.level:g}% interval"
    headers = ["policy", "verdict", "value", level, *(["truth"] if truth else []), "ESS"]
    print_table(headers, [_row(policy, truth=truth) for policy in results.policies], right=("value", "truth", "ESS"))
    print(f"{results.rows:,} responses to {results.prompts:,} prompts, values on the {results.scale}'s scale")
    for policy in results.policies:
        for reason in policy.verdict.reasons[:1]:
            print(f"{policy.name}: {reason.sentence} {reason.remedy}")
        if policy.verdict.state != "SHOWN":
            print(f"{policy.name}, judge's scale, to look at and not to quote: {_looked_at(policy)}")
    if results.aa is not None:
        print(f"A/A {results.aa.state}: {results.aa.sentence}")
    for note in results.notes:
        print(f"note: {note}")


def _row(policy: PolicyResult, *, truth: bool) -> list[str]:
    headline, found = policy.headline, policy.diagnostics
    has = headline is not None and headline.value is not None
    interval = ""
    if has and headline is not None and headline.low is not None and headline.high is not None:
        interval = f"{headline.low:.4f} to {headline.high:.4f}"
    return [
        policy.name,
        policy.verdict.state,
        f"{headline.value:.4f}" if has and headline is not None else "",
        interval,
        *([f"{policy.truth:.4f}" if policy.truth is not None else ""] if truth else []),
        "" if found is None else f"{100 * found.ess:.3g}%",
    ]


def _looked_at(policy: PolicyResult) -> str:
    """The weighted means of judge scores, and the mean of fresh draws, which show why nothing is quoted."""
    names = {"mean": "mean", "snips": "SNIPS", "ips": "raw IPS", "draws": "fresh draws"}
    found = {each.estimator: each.value for each in policy.values if each.scale == "judge" and each.value is not None}
    return ", ".join(f"{word} {found[name]:.3g}" for name, word in names.items() if name in found) or "none"


@contextmanager
def _steps() -> Iterator[Callable[[str, int, int], None]]:
    """A bar for the step that is at work, on a terminal; in a pipe, a line for each step that begins."""
    begun: list[str] = []
    with progress_bar() as bar:

        def show(step: str, done: int, total: int) -> None:
            if not sys.stderr.isatty() and begun[-1:] != [step]:
                print(step, file=sys.stderr, flush=True)
            begun[:] = [step]
            bar(step, done, total)

        yield show


def _command(config: Path, options: RunOptions) -> str:
    """How the run was called, but for where it is kept."""
    words = ["llamalab", "arena", "run", str(config)]
    for field in dataclasses.fields(options):
        value = getattr(options, field.name)
        if value is not None:
            words += [f"--{field.name.replace('_', '-')}", str(value)]
    return shlex.join(words)


def _range(text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise ConfigError(
            f"--judge-range takes two numbers with a comma between them, as in 0,10; not {text!r}."
        ) from None
