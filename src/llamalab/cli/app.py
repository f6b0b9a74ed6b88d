"""The verbs of `llamalab`, and what happens to an error on its way out."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Annotated

import typer

from llamalab.cli import (
    arena,
    bench,
    chat,
    convert,
    demo,
    doctor,
    generate,
    info,
    memory,
    models,
    quantize,
    rlm,
    score,
    score_store,
    synth,
    tokens,
    verify,
)
from llamalab.cli.output import print_error
from llamalab.errors import LlamalabError

INTERRUPTED = 130
"""Exit code after Ctrl-C: 128 + SIGINT, as shells count."""

NATIVE_LOGGER = "llamalab.llama_cpp"

app = typer.Typer(
    name="llamalab",
    help="A laboratory for local language models.",
    epilog="Start with `llamalab demo`, then `llamalab chat`. MODEL is the built-in pico unless you name another.",
    add_completion=False,
    invoke_without_command=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for module in (
    demo,
    chat,
    generate,
    score,
    score_store,
    arena,
    rlm,
    tokens,
    models,
    info,
    memory,
    convert,
    quantize,
    synth,
    verify,
    bench,
    doctor,
):
    module.register(app)


def run(arguments: Sequence[str]) -> int:
    """Run one command line; errors become one paragraph on standard error.

    Returns:
        The exit code: 0; 2 for bad input; 1 for a run that failed; 130 after Ctrl-C.
    """
    debug = "--debug" in arguments or os.environ.get("LLAMALAB_DEBUG", "") not in {"", "0"}
    try:
        with _warnings_as_lines(native=debug):
            code = _invoke(score.complete_arguments(generate.complete_arguments(arguments)))
        sys.stdout.flush()
    except BrokenPipeError:  # whoever read our output has left; there is nobody to tell
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except typer.TyperException as error:
        print_error(_usage_message(error))
        return 2
    except LlamalabError as error:
        if debug:
            raise
        print_error(str(error))
        return error.exit_code
    except RuntimeError as error:
        if "home directory" not in str(error):  # of `Path.expanduser`, which has no class for it
            raise
        print_error("A path begins with ~ and the name of somebody who is no user here.")
        return 2
    except KeyboardInterrupt:
        return INTERRUPTED
    return code


def _invoke(arguments: list[str]) -> int:
    result = typer.main.get_command(app).main(args=arguments, prog_name="llamalab", standalone_mode=False)
    return result if isinstance(result, int) else 0


@contextmanager
def _warnings_as_lines(*, native: bool) -> Iterator[None]:
    """Inside the block, warnings, logged or issued, are a line each on standard error, without a place in the code.

    What llama.cpp itself writes is shown only with `native`: what matters of it is in our own messages.
    """
    handler = logging.StreamHandler()
    handler.setFormatter(_LineFormatter())
    handler.addFilter(lambda record: native or record.name != NATIVE_LOGGER)
    logger = logging.getLogger("llamalab")
    logger.addHandler(handler)
    try:
        with warnings.catch_warnings():
            warnings.showwarning = lambda message, *_, **__: print(f"warning: {message}", file=sys.stderr)
            yield
    finally:
        logger.removeHandler(handler)


class _LineFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return f"{record.levelname.lower()}: {record.getMessage()}"


def _usage_message(error: typer.TyperException) -> str:
    """Typer's message, with the nearest right spelling and where help is."""
    message = error.format_message().rstrip(".?")
    context = getattr(error, "ctx", None)
    place = context.command_path if context is not None else "llamalab"
    near = getattr(error, "possibilities", None)
    if near:
        message = f"{message.partition(' (Possible')[0]}. Did you mean {' or '.join(sorted(near))}"
    elif message.startswith("Got unexpected extra argument"):
        message += ": put a text of several words in quotes"
    message += "?" if "Did you mean" in message else "."
    return f"{message} Options are listed by: {place} --help"


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        print(f"llamalab {version('llamalab')}")
        raise typer.Exit


@app.callback()
def _root(
    context: typer.Context,
    _version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
    _debug: Annotated[
        bool, typer.Option("--debug", help="Show a traceback with an error (or set LLAMALAB_DEBUG=1).")
    ] = False,
) -> None:
    if context.invoked_subcommand is None:
        print(context.get_help())
