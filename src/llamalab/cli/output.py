"""What commands print and read: tables, JSON, errors, standard input."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from llamalab.errors import InputError

if TYPE_CHECKING:
    from rich.console import Console

_CONTROLS = {code: "\N{REPLACEMENT CHARACTER}" for code in (*range(32), *range(127, 160)) if chr(code) not in "\n\t"}
"""What a model must not send to a terminal: escape sequences could move the cursor, or worse."""

_DIRECTIONS = dict.fromkeys((*range(0x2028, 0x202F), *range(0x2066, 0x206A)), "\N{REPLACEMENT CHARACTER}")
"""Line separators, and what turns the direction of writing: with them, a text can look like another."""

_PIPE_WIDTH = 10_000
"""Columns of a table that goes into a pipe: nothing is cut off for a screen that is not there."""


def console(*, stderr: bool = False) -> Console:
    """Where rich prints: colours on a terminal, plain text in a pipe."""
    from rich.console import Console

    stream = sys.stderr if stderr else sys.stdout
    return Console(file=stream, width=None if stream.isatty() else _PIPE_WIDTH, highlight=False, soft_wrap=False)


def print_json(document: object) -> None:
    """One JSON document on standard output."""
    print(json.dumps(document, ensure_ascii=False, indent=2, allow_nan=False))


def print_table(headers: Sequence[str], rows: Sequence[Sequence[str]], *, right: Sequence[str] = ()) -> None:
    """A table: ruled on a terminal, aligned columns in a pipe. Columns named in `right` are right-aligned."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD if sys.stdout.isatty() else None, pad_edge=False, header_style="bold")
    for header in headers:
        table.add_column(header, justify="right" if header in right else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    console().print(table)


def print_error(message: str) -> None:
    """One paragraph on standard error; on a terminal, without what others could have put into it to move the cursor."""
    from rich.text import Text

    if sys.stderr.isatty():
        console(stderr=True).print(Text.assemble(("error: ", "bold red"), printable(message)))
    else:
        print(f"error: {message}", file=sys.stderr)


def write(text: str) -> None:
    """A model's text on standard output, at once: a reader sees every token as it comes.

    On a terminal, control characters are replaced; a pipe gets the text as it is.
    """
    sys.stdout.write(text.translate(_CONTROLS) if sys.stdout.isatty() else text)
    sys.stdout.flush()


def printable(text: str) -> str:
    """A text of somebody else's, as a terminal may show it: it cannot move the cursor, nor look like another."""
    return text.translate(_CONTROLS | _DIRECTIONS)


def read_stdin() -> str:
    """All of standard input as text, without the newline at its end.

    Raises:
        InputError: it is not UTF-8; with the offset of the first wrong byte.
    """
    return decode(sys.stdin.buffer.read(), "standard input").removesuffix("\n").removesuffix("\r")


def decode(content: bytes, what: str) -> str:
    """UTF-8 bytes as text, a byte order mark removed.

    Raises:
        InputError: they are not UTF-8; names `what` and the offset of the first wrong byte.
    """
    try:
        return content.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise InputError(
            f"{what} is not UTF-8 text: byte 0x{content[error.start]:02x} at offset {error.start} ({error.reason}). "
            "Convert it first, for example with: iconv -f latin1 -t utf-8."
        ) from None


def check_argument(text: str, what: str) -> str:
    """A command-line argument as it is, if it is proper text.

    Raises:
        InputError: its bytes were not UTF-8.
    """
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise InputError(f"{what} is not UTF-8 text: {os.fsencode(text)!r}.") from None
    return text


@contextmanager
def interruptible() -> Iterator[threading.Event]:
    """Ctrl-C inside the block sets the event that is given; a second one interrupts as usual."""
    cancel = threading.Event()
    before = signal.getsignal(signal.SIGINT)

    def on_interrupt(*_: object) -> None:
        if cancel.is_set():
            raise KeyboardInterrupt
        cancel.set()

    if threading.current_thread() is not threading.main_thread():
        yield cancel
        return
    signal.signal(signal.SIGINT, on_interrupt)
    try:
        yield cancel
    finally:
        signal.signal(signal.SIGINT, before)


def shown(value: Any) -> str:
    """A value in a table's cell; nothing for None."""
    return "" if value is None else str(value)
