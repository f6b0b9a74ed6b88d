"""`llamalab score store`: what is in a store of results, and keeping it in order."""

from __future__ import annotations

import dataclasses
import json
import re
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from llamalab.cli.options import JsonOption
from llamalab.cli.output import print_json, print_table
from llamalab.errors import ConfigError

if TYPE_CHECKING:
    from llamalab.scoring.store_care import Info

NAME = "score store"

PathOption = Annotated[
    Path | None, typer.Option("--store", metavar="PATH", help="The store; the one in the cache folder by default.")
]

_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
_SECONDS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0, "w": 604_800.0}


def register(app: typer.Typer) -> None:
    """Add the commands to `app`."""
    store = typer.Typer(
        name=NAME, help="The store of results: what was computed once is read from there.", no_args_is_help=True
    )
    for command in (info, prune, export, repair):
        store.command()(command)
    app.add_typer(store)


def info(path: PathOption = None, as_json: JsonOption = False) -> None:
    """What is in the store."""
    from llamalab.scoring.store import Store
    from llamalab.scoring.store_care import info as look

    with Store(path) as store:
        found = look(store)
    if as_json:
        print_json(dataclasses.asdict(found) | {"path": str(found.path)})
    else:
        _print(found)


def prune(
    path: PathOption = None,
    older_than: Annotated[
        str | None, typer.Option(metavar="AGE", help="Remove what was computed longer ago, e.g. 90d, 12h.")
    ] = None,
    max_size: Annotated[
        str | None, typer.Option(metavar="SIZE", help="Keep at most so much, the newest, e.g. 500M, 2G.")
    ] = None,
    model: Annotated[
        str | None, typer.Option("--model", "-m", metavar="MODEL", help="Of this model alone: name, path or SHA-256.")
    ] = None,
) -> None:
    """Remove rows by age, size or model, and give their room back."""
    from llamalab.scoring.store import Store
    from llamalab.scoring.store_care import prune as remove

    age = None if older_than is None else _quantity(older_than, _SECONDS, "--older-than", "90d")
    size = None if max_size is None else int(_quantity(max_size.upper().removesuffix("B"), _UNITS, "--max-size", "2G"))
    with Store(path) as store:
        removed = remove(store, older_than=age, max_bytes=size, model=model)
    print(f"{removed:,} rows removed")


def export(path: PathOption = None) -> None:
    """Write every row as JSON lines on standard output."""
    from llamalab.scoring.store import Store
    from llamalab.scoring.store_care import export as rows

    with Store(path) as store:
        for row in rows(store):
            sys.stdout.write(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n")


def repair(path: PathOption = None) -> None:
    """Keep every row of a damaged store that is whole, and drop the others."""
    from llamalab.scoring.store import default_path
    from llamalab.scoring.store_repair import repair as mend

    found = mend(default_path() if path is None else path)
    print(f"{found.kept:,} rows kept, {found.dropped:,} dropped")
    if found.aside is not None:
        print(f"the damaged file is now {found.aside}")


def _print(found: Info) -> None:
    from llamalab.checkpoints.names import human_size

    rows = [
        [
            f"{each.provider}:{each.model}",
            each.mode,
            each.key[:12],
            f"{each.rows:,}",
            human_size(each.n_bytes),
            time.strftime("%Y-%m-%d %H:%M", time.localtime(each.newest)),
        ]
        for each in found.holdings
    ]
    if rows:
        print_table(["model", "mode", "fingerprint", "rows", "size", "newest"], rows, right=("rows", "size"))
    print(f"{found.rows:,} rows, {human_size(found.size)}, in {found.path}")


def _quantity(text: str, units: dict[str, float] | dict[str, int], option: str, example: str) -> float:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([A-Za-z]*)", text.strip())
    if match is None or match[2] not in units:
        known = ", ".join(unit for unit in units if unit)
        raise ConfigError(f"{option} takes a number and one of {known}, as in {example}; not '{text}'.")
    return float(match[1]) * units[match[2]]
