"""`--trace` and `--plot` of `llamalab generate`: what decided each token of the entropix sampler."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from llamalab.cli.jax_options import ENTROPIX, JaxOptions
from llamalab.errors import ConfigError

if TYPE_CHECKING:
    from llamalab.lab.trace import TraceRecorder

DEFAULT_PLOT = "trace.svg"

_PICTURE = re.compile(r"\S+\.(svg|png|pdf|jpe?g)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class TraceOptions:
    """Where the record of a response goes."""

    trace: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Of entropix: write what decided each token, one JSON object a line."),
    ] = None
    plot: Annotated[
        Path | None,
        typer.Option(metavar="[FILE.svg]", help=f"Of entropix: draw that; {DEFAULT_PLOT} unless you name a file."),
    ] = None

    @contextmanager
    def recording(self, jax: JaxOptions) -> Iterator[TraceRecorder | None]:
        """What takes the trace inside the block; None if nobody asked. The picture is drawn at its end.

        Raises:
            ConfigError: another sampler than entropix; a file that cannot be written, before anything is computed.
        """
        if self.trace is None and self.plot is None:
            yield None
            return
        if jax.sampler != ENTROPIX:
            raise ConfigError("--trace and --plot show what entropix decides: add --sampler entropix.")
        if self.plot is not None and self.plot.suffix.lower() != ".svg":
            raise ConfigError(f"The picture is an SVG: end the name of {self.plot} in .svg.")
        from llamalab.lab.trace import TraceRecorder

        with ExitStack() as files:
            if self.plot is not None:
                _check_writable(self.plot.expanduser())
            file = None
            if self.trace is not None:
                try:
                    file = files.enter_context(self.trace.expanduser().open("w", encoding="utf-8"))
                except OSError as error:
                    raise _unwritable(self.trace, error) from None
            recorder = TraceRecorder(file)
            try:
                yield recorder
            finally:
                if self.plot is not None and recorder.tokens:
                    _draw(recorder, jax.thresholds, self.plot.expanduser())


def complete_plot(arguments: Sequence[str]) -> list[str]:
    """`--plot` that no file name follows means `--plot trace.svg`."""
    completed = []
    for position, argument in enumerate(arguments):
        completed.append(argument)
        following = arguments[position + 1] if position + 1 < len(arguments) else ""
        if argument == "--plot" and not _PICTURE.fullmatch(following):
            completed.append(DEFAULT_PLOT)
    return completed


def _draw(recorder: TraceRecorder, thresholds: str | None, path: Path) -> None:
    from llamalab.lab.trace_plot import trace_svg
    from llamalab.llama.entropix_cases import ORIGINAL, THRESHOLDS

    chosen = THRESHOLDS[thresholds or ORIGINAL.name]
    picture = trace_svg(recorder.tokens, chosen, f"entropix: {len(recorder.tokens)} tokens and what decided them")
    try:
        path.write_text(picture, encoding="utf-8")
    except OSError as error:
        raise _unwritable(path, error) from None
    print(f"The picture is in {path}.", file=sys.stderr)


def _check_writable(path: Path) -> None:
    """Find out now, not after the response; a file that is there keeps its content."""
    new = not path.exists()
    try:
        path.open("ab").close()
        if new:
            path.unlink()
    except OSError as error:
        raise _unwritable(path, error) from None


def _unwritable(path: Path, error: OSError) -> ConfigError:
    return ConfigError(f"{path} cannot be written: {error.strerror or error}.")
