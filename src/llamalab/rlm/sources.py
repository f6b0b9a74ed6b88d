"""The documents that a caller names: files, folders, patterns, standard input, or texts in memory.

Nothing else is ever read. A folder or pattern stands for the files that lie in it: a link that leads out is not
followed.
"""

from __future__ import annotations

import glob
import os
import stat
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import TypeAlias

from llamalab.errors import InputError
from llamalab.rlm.text import Context, Document

Source: TypeAlias = str | Path | Document
"""A file, a folder, a pattern (`logs/*.txt`, `logs/**`), `-` for standard input, or a `Document` as it is."""

STDIN = "-"
"""Standard input, where a file is asked for; and the name of what comes from there."""

MOST = 10_000
"""Files of one run: their names alone would fill a context, and each is held open."""

_CONTROLS = dict.fromkeys((*range(32), *range(127, 160), 0x2028, 0x2029), "\N{REPLACEMENT CHARACTER}")
_SAID = 5  # sentences about what was left out


@dataclass(frozen=True, slots=True)
class Opened:
    """What a run works on.

    Attributes:
        context: the documents, in the order they were named; those of a folder or pattern by name.
        said: what was left out of folders and patterns, and what had to be done to read a document, in sentences.
        own: the documents that were opened for it; not those that the caller had.
    """

    context: Context
    said: tuple[str, ...]
    own: tuple[Document, ...] = ()

    def close(self) -> None:
        """Let go of what was opened for it."""
        for document in self.own:
            document.close()


def open_sources(
    sources: Sequence[Source] | Source, *, stdin: Callable[[], bytes] = lambda: sys.stdin.buffer.read()
) -> Opened:
    """Open what a caller names. A file that is named twice is one document.

    Args:
        sources: one or several.
        stdin: gives the bytes of standard input.

    Raises:
        InputError: nothing is named, or nothing has text; a file is missing, cannot be read, or is binary (in a folder
            or pattern it is left out instead); there are too many.
    """
    documents: list[Document] = []
    own: list[Document] = []
    left_out: list[str] = []
    seen: set[Path] = set()
    try:
        for source in [sources] if isinstance(sources, str | Path | Document) else sources:
            before = len(own)
            if isinstance(source, Document):
                documents.append(source)
                continue
            if str(source) != STDIN:
                own.extend(_opened(str(source), seen, left_out))
            elif any(document.name == STDIN for document in documents):
                raise InputError("Standard input (-) was named twice; it can be read once.")
            elif content := stdin():
                own.append(Document.of(content, STDIN))
            else:
                left_out.append("standard input (-), which is empty.")
            documents += own[before:]
            if len(documents) > MOST:
                raise InputError(f"{source}: more than {MOST:,} documents. Name fewer, or join them into larger files.")
        if not documents:
            raise InputError(_nothing(left_out))
        _tell_apart(documents, own)
        context = Context(documents)
    except BaseException:
        for document in own:
            document.close()
        raise
    notes = [note for document in documents for note in document.notes]
    notes += [f"{document.name} is empty." for document in documents if not document.n_bytes]
    return Opened(context, (*_sentences(left_out), *notes), tuple(own))


def _opened(source: str, seen: set[Path], left_out: list[str]) -> Iterator[Document]:
    """The documents of a file, folder or pattern, but for those that are open already."""
    if not source:  # a variable of the shell that is not set: to a path it would be the current folder
        raise InputError("The name of a document is empty. Give a file, a folder (. for this one), a pattern, or -.")
    path = _path(source)
    if _is(path, stat.S_ISDIR):
        files, chosen = _below(path, left_out), False
    elif glob.has_magic(source) and not _is(path, bool):
        files, chosen = _matching(path, left_out), False
    else:
        files, chosen = [path], True
    for file in files:
        try:
            real = file.resolve()
            if real in seen:
                continue
            document = Document.open(file, _name(file))
        except InputError as error:
            if chosen:
                raise
            left_out.append(str(error))
            continue
        except (OSError, RuntimeError, ValueError) as error:  # links in a circle, a zero byte in the name
            raise InputError(f"{_name(file)!r} cannot be read: {error}.") from None
        seen.add(real)
        if document.n_bytes == 0 and not chosen:
            left_out.append(f"{_name(file)} is empty.")
            document.close()
            continue
        yield document


def _below(folder: Path, left_out: list[str]) -> list[Path]:
    """Files of a folder and its folders, by name; none that is hidden or outside of it."""
    home, found, before = folder.resolve(), [], len(left_out)

    def unread(error: OSError) -> None:
        left_out.append(f"{_name(Path(error.filename))} cannot be read: {error.strerror}.")

    for here, folders, files in os.walk(folder, onerror=unread):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for file in (Path(here, name) for name in sorted(files) if not name.startswith(".")):
            if _leads_out(file, home, left_out) or not _is(file, stat.S_ISREG):
                continue
            found.append(file)
            if len(found) > MOST:
                raise InputError(f"{_name(folder)} holds more than {MOST:,} files. Name some of them.")
    if not found and len(left_out) == before:
        left_out.append(f"the folder {_name(folder)}, in which there is no file (hidden ones are not read).")
    return found


def _matching(pattern: Path, left_out: list[str]) -> list[Path]:
    """Files that match a pattern, by name, and those in folders that do; hidden ones only where it asks for them."""
    fixed = tuple(takewhile(lambda part: not glob.has_magic(part), pattern.parts))
    wanted = pattern.parts[len(fixed) :]
    home = Path(*fixed)
    hidden = any(part.startswith(".") for part in wanted)
    files: list[Path] = []
    try:
        matching = sorted(home.glob("/".join(wanted)))
    except ValueError as error:
        raise InputError(f"{_name(pattern)}: {error}.") from None
    for path in matching:
        if not hidden and any(part.startswith(".") for part in path.parts[len(fixed) :]):
            continue
        if _is(path, stat.S_ISDIR) and not _leads_out(path, home.resolve(), left_out):
            files += _below(path, left_out)
        elif _is(path, stat.S_ISREG) and not _leads_out(path, home.resolve(), left_out):
            files.append(path)
    if not files:
        raise InputError(f"{_name(pattern)}: there is no such file.")
    return list(dict.fromkeys(files))


def _tell_apart(documents: Sequence[Document], own: Sequence[Document]) -> None:
    """Number the files whose names differ in white space or in what cannot be shown, and are one when written."""
    opened = set(map(id, own))
    taken = {document.name for document in documents if id(document) not in opened}
    for document in own:
        name, number = document.name, 1
        while document.name in taken:
            number += 1
            document.name = f"{name} ({number})"
        taken.add(document.name)


def _path(source: str) -> Path:
    try:
        return Path(source).expanduser()
    except RuntimeError:
        raise InputError(f"{source} begins with the home folder of somebody who is no user here.") from None


def _is(path: Path, kind: Callable[[int], bool]) -> bool:
    """Whether there is something of a kind. No, where nobody may look: whoever opens it then says why."""
    try:
        return kind(path.stat().st_mode)
    except (OSError, ValueError):
        return False


def _leads_out(file: Path, home: Path, left_out: list[str]) -> bool:
    if file.resolve().is_relative_to(home):
        return False
    left_out.append(f"{_name(file)} is a link to another place.")
    return True


def _name(path: Path) -> str:
    """A document's name: its path as it was given. Names stand in messages to models, so they are one proper line."""
    return os.fsencode(path).decode("utf-8", "replace").translate(_CONTROLS)


def _sentences(left_out: list[str]) -> list[str]:
    said = [f"Left out: {each}" for each in left_out[:_SAID]]
    more = len(left_out) - _SAID
    return [*said, f"Left out: {more:,} more files."] if more > 0 else said


def _nothing(left_out: list[str]) -> str:
    if left_out:
        return f"There is no text to ask about in what was named. {' '.join(_sentences(left_out))}"
    return "No document was named. Give a file, a folder, a pattern, or - for standard input."
