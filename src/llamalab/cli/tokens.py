"""`llamalab tokens`: how a text is cut into tokens."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from llamalab.cli.generate import model_and_prompt
from llamalab.cli.options import JsonOption, ModelArgument, ModelOption
from llamalab.cli.output import console, print_json

if TYPE_CHECKING:
    from llamalab.engine import Engine
    from llamalab.engines.tokenizer import Tokenizer

_COLOURS = ("black on bright_cyan", "black on bright_yellow")
_BOUNDARY = "|"


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command()(tokens)


def tokens(
    first: ModelArgument = None,
    text: Annotated[str | None, typer.Argument(metavar="TEXT", help="The text; - reads standard input.")] = None,
    *,
    model: ModelOption = None,
    ids: Annotated[bool, typer.Option("--ids", help="Print the ids.")] = False,
    show: Annotated[bool, typer.Option("--show", help="Print the text with its tokens told apart.")] = False,
    special: Annotated[
        bool, typer.Option("--special", help="Read the text of control tokens, such as <|end|>, as these tokens.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Count the tokens of a text.

    Only the model's vocabulary is loaded.
    """
    spec, content = model_and_prompt(first, text, model)

    from llamalab.engines import load_tokenizer

    tokenizer = load_tokenizer(spec)
    try:
        found = tokenizer.tokenize(content, parse_special=special)
        pieces = _pieces(tokenizer, found)
    finally:
        tokenizer.close()
    if as_json:
        print_json({"model": spec, "n_tokens": len(found), "ids": found, "pieces": pieces})
        return
    if ids:
        print(*found)
    if show:
        _show(pieces)
    if not ids and not show:
        print(len(found))


def _pieces(tokenizer: Engine | Tokenizer, ids: Sequence[int]) -> list[str]:
    return [tokenizer.token_bytes(id, special=True).decode("utf-8", "replace") for id in ids]


def _show(pieces: Sequence[str]) -> None:
    """Alternating colours on a terminal; in a pipe a bar between tokens."""
    if not sys.stdout.isatty():
        print(_BOUNDARY.join(pieces))
        return
    from rich.text import Text

    line = Text()
    for number, piece in enumerate(pieces):
        line.append(piece.replace("\n", "⏎\n"), style=_COLOURS[number % len(_COLOURS)])
    console().print(line)
