"""`llamalab bench`: how fast is a model here?"""

from __future__ import annotations

import csv
import dataclasses
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llamalab.cli.options import MODEL_HELP, EngineOptions, JsonOption, expand_options
from llamalab.cli.output import console, print_json, print_table
from llamalab.errors import ConfigError

if TYPE_CHECKING:
    from llamalab.lab.bench_setup import Result

_NUMBERS = ("tokens/s", "first token", "size", "parameters", "load", "peak memory", "estimate", "threads", "requests")
_HISTORY = 40


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command()(expand_options(bench))


def bench(
    models: Annotated[list[str] | None, typer.Argument(metavar="MODEL...", help=MODEL_HELP, show_default=False)] = None,
    *,
    pp: Annotated[str, typer.Option(metavar="N,...", help="Tokens to read at once; 0: leave it out.")] = "512",
    tg: Annotated[str, typer.Option(metavar="N,...", help="Tokens to write; 0: leave it out.")] = "128",
    depth: Annotated[str, typer.Option(metavar="N,...", help="Tokens that stand before them in the context.")] = "0",
    threads: Annotated[
        str, typer.Option(metavar="N,...", help="Threads of llama.cpp; one for each physical core by default.")
    ] = "",
    batch_seqs: Annotated[str, typer.Option(metavar="N,...", help="Requests at once.")] = "1",
    repetitions: Annotated[
        int, typer.Option("--repetitions", "-r", metavar="N", min=1, help="Of each test, after one not counted.")
    ] = 5,
    shape: Annotated[
        str | None, typer.Option(metavar="SHAPE", help="Random weights of this shape, e.g. llama-3.1-8b; no MODEL.")
    ] = None,
    type: Annotated[str, typer.Option(metavar="TYPE", help="Type of --shape's file.")] = "Q4_K_M",
    layers: Annotated[
        int | None,
        typer.Option(metavar="N", min=1, help="Of --shape, measure at most so many layers and extrapolate."),
    ] = None,
    keep: Annotated[bool, typer.Option("--keep", help="Leave --shape's file in the cache folder.")] = False,
    dtype: Annotated[
        str | None, typer.Option(metavar="TYPE", help="Of JAX and transformers: float32, bfloat16 or float16.")
    ] = None,
    int8: Annotated[bool, typer.Option("--int8", help="Weights in eight bits (jax).")] = False,
    engine: EngineOptions,
    history: Annotated[bool, typer.Option("--history", help="Show what was measured before; measure nothing.")] = False,
    plot: Annotated[Path | None, typer.Option(metavar="FILE", help="Draw the rates (.svg, .png, .pdf).")] = None,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print one line of CSV for each test.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Measure how fast models read and write.

    Tokens per second are means over the repetitions, with their standard deviation; ids are random and sampling is
    greedy. "pp512 @ 4096" reads 512 tokens after 4,096 others; with several requests at once, rates are of all of
    them together. Every result is added to a local history.
    """
    from llamalab.lab.bench import plan, run

    if history:
        from llamalab.lab.bench_history import read

        _print(read(_HISTORY), as_json=as_json, as_csv=as_csv, times=True)
        return
    if shape is not None and models:
        raise ConfigError("Give MODEL or --shape, not both.")

    def setups(specs: Sequence[str]) -> Any:
        given = engine.given()
        given.pop("n_seq", None)
        n_threads = given.pop("n_threads", None)
        if "adapters" in given:
            given["adapters"] = [str(path.expanduser().absolute()) for path in given["adapters"]]
        widths = {} if dtype is None else {"dtype": dtype}
        return plan(
            specs,
            prompt=_numbers(pp, "pp"),
            generate=_numbers(tg, "tg"),
            depth=_numbers(depth, "depth"),
            threads=_numbers(threads, "threads") or ([] if n_threads is None else [n_threads]),
            batch=_numbers(batch_seqs, "batch-seqs"),
            repetitions=repetitions,
            options={
                "llama_cpp": given,
                "jax": widths | ({"int8": True} if int8 else {}),
                "transformers": widths,
            },
        )

    with _progress() as progress:
        if shape is None:
            found = run(setups(models or ["pico"]), progress)
        else:
            from llamalab.lab.bench_shape import run_shape
            from llamalab.lab.shapes import shape_named

            found = run_shape(shape_named(shape), type.upper(), setups, most=layers, keep=keep, progress=progress)
        results = list(_kept(found))
    if plot is not None:
        from llamalab.lab.bench_plot import plot as draw

        draw(results, plot.expanduser())
    _print(results, as_json=as_json, as_csv=as_csv)


def _kept(results: Iterator[Result]) -> Iterator[Result]:
    """The same, each added to the history when it comes: what was measured is not lost if a later one fails."""
    from llamalab.lab.bench_history import append

    for result in results:
        append([result])
        yield result


def _numbers(text: str, name: str) -> list[int]:
    try:
        return [int(part) for part in text.replace(" ", "").split(",") if part]
    except ValueError:
        raise ConfigError(f"--{name} takes whole numbers with commas between them, not '{text}'.") from None


@contextmanager
def _progress() -> Iterator[Callable[[str], None]]:
    """What is being done, on a line that comes and goes; nothing where standard error is no terminal."""
    if not sys.stderr.isatty():
        yield lambda _: None
        return
    with console(stderr=True).status("starting") as status:
        yield lambda doing: status.update(doing)


def _print(results: Sequence[Result], *, as_json: bool, as_csv: bool, times: bool = False) -> None:
    if as_json:
        print_json([_record(result) for result in results])
    elif as_csv:
        _print_csv(results)
    elif not results:
        print("Nothing has been measured yet.")
    else:
        _print_tables(results, times=times)


def _record(result: Result) -> dict[str, Any]:
    return {"tokens_per_second": result.mean, "deviation": result.deviation, **dataclasses.asdict(result)}


def _print_csv(results: Sequence[Result]) -> None:
    if not results:
        return
    records = [_record(result) for result in results]
    out = csv.DictWriter(sys.stdout, list(records[0]), lineterminator="\n")
    out.writeheader()
    for record in records:
        lists = {key: " ".join(map(repr, record[key])) for key in ("rates", "first_token")}
        options = " ".join(f"{key}={value}" for key, value in record["options"].items())
        out.writerow({**record, **lists, "options": options})


def _print_tables(results: Sequence[Result], *, times: bool) -> None:
    """Only the columns that vary; what all have in common stands below."""
    columns: dict[str, Callable[[Result], str]] = {
        "time": lambda r: r.time.replace("T", " ").removesuffix("+00:00"),
        "model": lambda r: r.model,
        "engine": lambda r: r.provider,
        "threads": lambda r: "" if r.n_threads is None else str(r.n_threads),
        "requests": lambda r: str(r.n_seq),
        "options": lambda r: " ".join(f"{key}={value}" for key, value in r.options.items()),
        "machine": lambda r: r.processor,
        "runtime": lambda r: r.runtime,
    }
    if not times:
        columns.pop("time")
    varied = [name for name, value in columns.items() if len({value(r) for r in results}) > 1]
    table = {name: columns[name] for name in varied} | {
        "test": lambda r: r.test,
        "tokens/s": lambda r: f"{r.mean:.2f} ± {r.deviation:.2f}",
        "first token": lambda r: _seconds(sum(r.first_token) / len(r.first_token)) if r.first_token else "",
    }
    _table(table, results)
    if not times:
        loads = {(r.spec, r.provider, r.n_threads, r.n_seq): r for r in results}  # one of each process
        _table({name: columns[name] for name in varied} | _LOADS, [*loads.values()])
    for note in dict.fromkeys(f"{r.model}: extrapolated from {r.extrapolated}" for r in results if r.extrapolated):
        print(note)
    print(_footer(results, [name for name in columns if name not in varied]))


def _table(columns: dict[str, Callable[[Result], str]], results: Sequence[Result]) -> None:
    rows = [[value(result) for value in columns.values()] for result in results]
    kept = [i for i in range(len(columns)) if any(row[i] for row in rows)]
    names = list(columns)
    print_table([names[i] for i in kept], [[row[i] for i in kept] for row in rows], right=_NUMBERS)
    if not sys.stdout.isatty():
        print()


def _footer(results: Sequence[Result], same: Sequence[str]) -> str:
    from importlib.metadata import version

    first = results[0]
    parts = {
        "model": first.model,
        "engine": first.provider,
        "threads": "" if first.n_threads is None else f"{first.n_threads} threads",
        "requests": f"{first.n_seq} requests at once" if first.n_seq > 1 else "",
        "options": " ".join(f"{key}={value}" for key, value in first.options.items()),
        "machine": f"{first.processor}, {first.cores} cores",
        "runtime": first.runtime,
    }
    said = [parts[name] for name in parts if name in same and parts[name]]
    return "; ".join([*said, f"llamalab {version('llamalab')}", f"{len(first.rates)} repetitions"])


def _size(value: int | None) -> str:
    from llamalab.checkpoints.names import human_size

    return "" if value is None else human_size(value)


def _seconds(value: float) -> str:
    return f"{1000 * value:.1f} ms" if value < 1 else f"{value:.2f} s"


_LOADS: dict[str, Callable[[Any], str]] = {
    "size": lambda r: _size(r.size_bytes),
    "parameters": lambda r: f"{r.n_params:,}",
    "load": lambda r: "" if r.extrapolated else _seconds(r.load_seconds),
    "peak memory": lambda r: _size(r.peak_bytes),
    "estimate": lambda r: _size(r.estimate_bytes),
}
