"""`llamalab verify`: do two engines give the same numbers?"""

from __future__ import annotations

import dataclasses
import math
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llamalab.cli.options import JsonOption
from llamalab.cli.output import console, decode, print_json, print_table, read_stdin
from llamalab.errors import InputError

if TYPE_CHECKING:
    from llamalab.lab.comparison import Comparison
    from llamalab.lab.differences import Difference
    from llamalab.lab.verify import Verdict

DISAGREE = 1

_FIGURES = ("largest |Δ|", "mean |Δ|", "outside")
_NUMBERS = (*_FIGURES, "KL mean", "KL largest", "same top-1", "perplexity", "rows", "largest KL")


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command()(verify)


def verify(
    a: Annotated[str, typer.Argument(metavar="A", help="An engine and its model, e.g. jax:pico or llama_cpp:x.gguf.")],
    b: Annotated[str, typer.Argument(metavar="B", help="Another; the reference, where one of the two is.")],
    *,
    prompts: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help='Texts, one a line, or JSON lines with "prompt"; - reads standard input.'),
    ] = None,
    rtol: Annotated[float, typer.Option(metavar="X", min=0, help="Relative tolerance, of B's logits.")] = 1e-3,
    atol: Annotated[float, typer.Option(metavar="X", min=0, help="Absolute tolerance.")] = 1e-2,
    tokens: Annotated[
        int, typer.Option(metavar="N", min=0, help="Greedy tokens to compare after each prompt; 0: none.")
    ] = 32,
    layers: Annotated[
        bool, typer.Option("--layers", help="Compare what leaves each layer, and name the first that departs.")
    ] = False,
    as_is: Annotated[
        bool, typer.Option("--as-is", help="Run the engines with their own defaults, not in float32 throughout.")
    ] = False,
    long: Annotated[bool, typer.Option("--long", help="Let the built-in prompts reach position 2,048.")] = False,
    strict: Annotated[
        bool, typer.Option("--strict", help="Call differences that rounding explains differences all the same.")
    ] = False,
    n_ctx: Annotated[int | None, typer.Option(metavar="N", min=1, help="Context of both engines, tokens.")] = None,
    plot: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Draw the differences by position (.svg, .png, .pdf).")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Do two engines give the same numbers?

    Both get the same token ids; compared are the logits of whole passes, decoding through the cache against the whole
    pass, and greedy continuations. The exit code is 0 if they agree within the tolerance, 1 if not, 2 for bad input.
    """
    texts = _texts(prompts) if prompts else None
    # Two runtimes take turns here: threads of the one that waits must not keep the cores from the other.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

    from llamalab.lab.verify import verify as compare

    with _progress() as progress:
        verdict = compare(
            a,
            b,
            texts,
            rtol=rtol,
            atol=atol,
            tokens=tokens,
            layers=layers,
            as_is=as_is,
            long=long,
            strict=strict,
            n_ctx=n_ctx,
            progress=progress,
        )
    if plot is not None:
        from llamalab.lab.verify_plot import plot as draw

        draw(verdict, plot.expanduser())
    if as_json:
        print_json(_document(verdict))
    else:
        _print(verdict)
    if not verdict.agree:
        raise typer.Exit(DISAGREE)


def _texts(path: Path) -> dict[str, str]:
    from llamalab.lab.prompts import parse_prompts

    if str(path) == "-":
        return parse_prompts(read_stdin(), "standard input")
    try:
        return parse_prompts(decode(path.expanduser().read_bytes(), str(path)), str(path))
    except OSError as error:
        raise InputError(f"The prompts {path} cannot be read: {error.strerror}.") from None


@contextmanager
def _progress() -> Iterator[Callable[[str], None]]:
    """What is being done, on a line that comes and goes; nothing where standard error is no terminal."""
    if not sys.stderr.isatty():
        yield lambda _: None
        return
    out = console(stderr=True)
    with out.status("starting") as status:
        yield lambda doing: status.update(doing)


def _document(verdict: Verdict) -> dict[str, Any]:
    plain = _plain(dataclasses.asdict(verdict))
    for record, comparison in zip(plain["comparisons"], verdict.comparisons, strict=True):
        record["agree"] = comparison.agrees
        record["first_layer"] = comparison.first_layer
    return {"agree": verdict.agree, **plain}


def _plain(value: Any) -> Any:
    """As JSON can say it: null for what is not finite."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _print(verdict: Verdict) -> None:
    last = verdict.comparisons[-1]
    _table(
        ["A", "B", *_FIGURES, "KL mean", "KL largest", "same top-1", "perplexity", ""],
        [
            [
                found.a,
                found.b,
                *_difference(found.logits),
                _number(found.kl_mean),
                _number(found.kl_largest),
                f"{found.top1:.2%}",
                f"{found.perplexity_a:.6g} / {found.perplexity_b:.6g}",
                "agree" if found.agrees else "differ",
            ]
            for found in verdict.comparisons
        ],
    )
    _table(
        ["cached decoding against a full pass", *_FIGURES],
        [[name, *_difference(found)] for name, found in zip((last.a, last.b), last.cached, strict=True)],
    )
    _table(
        ["positions", "rows", "largest |Δ|", "largest KL", "same top-1"],
        [
            [
                f"{found.first}-{found.last}",
                str(found.rows),
                _number(found.largest),
                _number(found.kl),
                f"{1 - found.disagreements / found.rows:.2%}",
            ]
            for found in last.positions
        ],
    )
    if last.layers is not None:
        rows = [[str(i), *_difference(layer)] for i, layer in enumerate(last.layers)]
        _table(["layer", *_FIGURES], rows)
    for line in _sentences(verdict, last):
        print(line)


def _table(headers: list[str], rows: list[list[str]]) -> None:
    print_table(headers, rows, right=_NUMBERS)
    if not sys.stdout.isatty():
        print()


def _difference(found: Difference) -> list[str]:
    return [_number(found.largest), _number(found.mean), f"{found.outside} of {found.values}"]


def _number(value: float) -> str:
    return f"{value:.2e}" if math.isfinite(value) else "not finite"


def _sentences(verdict: Verdict, last: Comparison) -> Iterator[str]:
    where = last.logits.where
    if where is not None and last.logits.largest > 0:
        prompt, _ = verdict.prompts[where.prompt]
        yield f"largest: prompt {prompt!r}, position {where.position}, token {where.token}"
    if last.greedy is not None:
        yield f"greedy: {last.greedy.equal} of {last.greedy.tokens} tokens before the first difference"
        for parted in last.greedy.departures:
            prompt, _ = verdict.prompts[parted.prompt]
            tie = "; the two are equally probable within the tolerance" if parted.tie else ""
            yield f"  prompt {prompt!r}, after {parted.step} tokens: {parted.a} and {parted.b}{tie}"
    if last.first_layer is not None:
        found = (last.layers or ())[last.first_layer].where
        place = f" (prompt {verdict.prompts[found.prompt][0]!r}, position {found.position})" if found else ""
        yield f"layers: the first that departs is {last.first_layer}{place}"
    elif last.layers is not None and not last.logits.close:
        yield "layers: none departs, so the difference comes from the last norm or the output projection"
    elif last.layers is not None:
        yield "layers: none departs"
    for note in verdict.notes:
        yield f"note: {note}"
    yield f"{'agree' if verdict.agree else 'differ'} (rtol {verdict.rtol:g}, atol {verdict.atol:g})"
