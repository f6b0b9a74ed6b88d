"""`llamalab rlm bench`: how well a model answers over long texts, and what that costs."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import typer

from llamalab.cli.options import JsonOption
from llamalab.cli.output import print_json, print_table
from llamalab.cli.progress import progress_bar
from llamalab.cli.rlm_options import RootAndSub
from llamalab.errors import ConfigError, InputError

if TYPE_CHECKING:
    from llamalab.rlm.bench.outcome import Outcome
    from llamalab.rlm.bench.runner import Plan
    from llamalab.rlm.config import RlmConfig


def bench(
    models: Annotated[
        list[str] | None,
        typer.Argument(metavar="MODEL...", help="Models to measure, each as root and sub; pico by default."),
    ] = None,
    *,
    configured: RootAndSub,
    quick: Annotated[bool, typer.Option("--quick", help="A minute or so: pico's own kinds of question.")] = False,
    matrix: Annotated[
        bool, typer.Option("--matrix", help="Instead: can the model steer? JSON, commands, finishing; free and held.")
    ] = False,
    tasks: Annotated[
        str,
        typer.Option(metavar="NAME,...", help="Kinds of question, or pico, needles, words, labels, world, logs, ..."),
    ] = "all",
    sizes: Annotated[str, typer.Option(metavar="N,...", help="Characters of the texts.")] = "8k,64k,500k",
    n: Annotated[int, typer.Option("-n", metavar="N", min=1, help="Questions of each kind and size.")] = 10,
    seed: Annotated[int, typer.Option(metavar="N", min=0, help="Of the first question.")] = 0,
    modes: Annotated[
        str, typer.Option(metavar="NAME,...", help="rlm: the loop; direct: one call; grep: one call over lines found.")
    ] = "rlm,direct,grep",
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="Every answer as it comes, JSON lines.")
    ] = None,
    plot: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Draw right answers and tokens by length (.svg, .png, .pdf).")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Measure answers over long texts: the loop against one direct call and grep plus one call.

    Questions are generated from seeds and have exact answers. Intervals are Wilson's, at 95%; "of reading it" is tokens
    of all calls over those of the whole text. --matrix says whether a model can steer, held to the schema of commands
    and writing freely.
    """
    from llamalab.rlm.bench import runner

    if quick or matrix:
        plan: Plan | None = None
        if (tasks, sizes, n, seed, modes) != ("all", "8k,64k,500k", 10, 0, "rlm,direct,grep"):
            raise ConfigError("--quick and --matrix have questions of their own: leave out what chooses them.")
    else:
        plan = runner.plan(tasks=_names(tasks), sizes=runner.read_sizes(sizes), n=n, seed=seed, modes=_names(modes))
    if matrix and (quick or output is not None or plot is not None):
        raise ConfigError("--matrix goes with models and --json alone.")
    if plot is not None:
        from llamalab.lab.picture import new_figure

        new_figure(1, 1)  # a missing library is told before the work, not after it
    configs = _configs(models, configured)
    if matrix:
        _matrix(configs, as_json=as_json)
        return
    outcomes = list(_outcomes(plan or runner.QUICK, configs, output))
    if plot is not None:
        from llamalab.rlm.bench.picture import plot as draw

        draw(outcomes, plot.expanduser())
    _print(outcomes, as_json=as_json)


def _configs(models: Sequence[str] | None, configured: RootAndSub) -> list[RlmConfig]:
    """What is measured, one after the other."""
    if not models:
        return [configured.config_of()]
    if configured.root is not None or configured.sub is not None:
        raise ConfigError("Give models to measure, or --root and --sub, not both.")
    return [dataclasses.replace(configured, root=model, sub=model).config_of() for model in models]


def _outcomes(plan: Plan, configs: Sequence[RlmConfig], output: Path | None) -> Iterator[Outcome]:
    from llamalab.rlm.bench.runner import run
    from llamalab.rlm.providers import open_pool

    total, done = len(plan) * len(configs), 0
    with _lines(output) as file, progress_bar() as progress:
        for config in configs:
            with open_pool(config) as pool:
                for outcome in run(plan, pool, config):
                    done += 1
                    progress(f"{outcome.model}, {outcome.mode}, {outcome.task}", done, total)
                    if file is not None:
                        file.write(json.dumps(dataclasses.asdict(outcome), ensure_ascii=False) + "\n")
                        file.flush()
                    yield outcome


def _matrix(configs: Sequence[RlmConfig], *, as_json: bool) -> None:
    from llamalab.rlm.bench.matrix import HEADERS, MATRIX, capability, rows
    from llamalab.rlm.providers import open_pool

    found = []
    with progress_bar() as progress:
        each = 2 * len(MATRIX)
        for at, config in enumerate(configs):
            with open_pool(config) as pool:
                name, done, total = pool.of("root")[0].name, at * each, each * len(configs)
                progress(name, done, total)
                found.append(capability(pool, config, told=_counting(progress, name, done, total)))
    if as_json:
        print_json([dataclasses.asdict(each) | _viable(each) for each in found])
        return
    print_table(HEADERS, rows(found), right=HEADERS[2:7])


def _counting(
    progress: Callable[[str, int, int], None], name: str, before: int, total: int
) -> Callable[[str, int], None]:
    return lambda how, n: progress(f"{name}, {how}", before + n, total)


def _viable(capability: Any) -> dict[str, Any]:
    return {
        how: dataclasses.asdict(steering) | {"viable": steering.viable}
        for how, steering in (("free", capability.free), ("constrained", capability.constrained))
    }


def _print(outcomes: Sequence[Outcome], *, as_json: bool) -> None:
    from llamalab.rlm.bench.cells import HEADERS, RIGHT_ALIGNED, cells, on_screen, row

    found = cells(outcomes)
    if as_json:
        answers = [dataclasses.asdict(outcome) for outcome in outcomes]
        print_json({"cells": [dataclasses.asdict(cell) for cell in found], "answers": answers})
        return
    if sys.stdout.isatty():
        caption, headers, rows = on_screen(found)
        if caption:
            print(caption)
        print_table(headers, rows, right=[header for header in headers if header not in ("model", "mode", "kind")])
    else:
        print_table(HEADERS, [row(cell) for cell in found], right=RIGHT_ALIGNED)
    failed = [outcome for outcome in outcomes if outcome.error]
    if failed:
        print(f"{len(failed):,} questions ended in an error, the first: {failed[0].error}")


@contextmanager
def _lines(path: Path | None) -> Iterator[TextIO | None]:
    if path is None:
        yield None
        return
    try:
        with path.expanduser().open("w", encoding="utf-8") as file:
            yield file
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror or error}.") from error


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]
