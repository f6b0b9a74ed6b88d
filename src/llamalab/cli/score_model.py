"""What `llamalab score` says of a model alone: the perplexity of a text, and what is equal to the bit."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from llamalab.cli.output import console, decode, print_error, print_json, print_table, read_stdin
from llamalab.errors import InputError
from llamalab.scored import ScoreMode

if TYPE_CHECKING:
    from llamalab.scoring.perplexity import Perplexity
    from llamalab.scoring.policy import Policy
    from llamalab.scoring.self_test import Report
    from llamalab.scoring.store import Store

FAILED = 1


def measure_text(
    policy: Policy,
    file: Path,
    *,
    context: int | None,
    stride: int | None,
    mode: ScoreMode,
    store: Store | None,
    progress: Callable[[int, int], None],
) -> Perplexity:
    """Perplexity of the text in a file; - is standard input.

    Raises:
        InputError: it cannot be read, or is not UTF-8; and as `perplexity`.
    """
    try:
        text = read_stdin() if str(file) == "-" else decode(file.expanduser().read_bytes(), str(file))
    except OSError as error:
        raise InputError(f"The text {file} cannot be read: {error.strerror or error}.") from None

    from llamalab.scoring.perplexity import perplexity

    return perplexity(policy, text, context=context, stride=stride, mode=mode, store=store, progress=progress)


def show_perplexity(found: Perplexity, *, as_json: bool) -> None:
    """Print it."""
    if as_json:
        print_json(dataclasses.asdict(found))
        return
    print(f"perplexity       {found.value:.6g} ± {found.standard_error:.2g}")
    print(f"nats per token   {found.nats_per_token:.6g} ± {found.standard_error_nats:.2g}")
    print(f"bits per byte    {found.bits_per_byte:.6g}")
    print(
        f"{found.n_tokens:,} tokens, {found.n_bytes:,} bytes; {found.n_windows:,} windows of {found.context:,} tokens, "
        f"stride {found.stride:,}"
    )


def show_self_test(policy: Policy, *, as_json: bool) -> None:
    """Run the determinism report of a model and print it; the exit code is 1 if a promise was not kept."""
    from llamalab.scoring.self_test import self_test

    with _doing() as progress:
        report = self_test(policy.spec, options=policy.options, progress=progress)
    if as_json:
        print_json(dataclasses.asdict(report) | {"kept": report.kept})
    else:
        _print_report(report)
    if not report.kept:
        print_error("Strict scores are not equal to the bit on this machine: see the rows that say 'differs'.")
        raise typer.Exit(FAILED)


def _print_report(report: Report) -> None:
    verdicts = {(True, True): "equal", (True, False): "differs", (False, True): "equal", (False, False): "may differ"}
    print_table(
        ["scored again", "bits", "largest |Δ| per token", "per response", ""],
        [
            [check.name, "", "", "", check.note]
            if check.note
            else [
                check.name,
                verdicts[check.promised, check.equal],
                f"{check.per_token:.2g}",
                f"{check.per_response:.2g}",
                "",
            ]
            for check in report.checks
        ],
        right=("largest |Δ| per token", "per response"),
    )
    print(f"{report.spec}, {report.responses} responses of {report.tokens} tokens, {report.processor}; Δ in nats")


@contextmanager
def _doing() -> Iterator[Callable[[str], None]]:
    """What is being done, on a line that comes and goes; nothing where standard error is no terminal."""
    if not sys.stderr.isatty():
        yield lambda _: None
        return
    with console(stderr=True).status("starting") as status:
        yield lambda doing: status.update(doing)
