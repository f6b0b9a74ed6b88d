"""What a run that was broken off was about, from its journal."""

from __future__ import annotations

from pathlib import Path

from llamalab.errors import InputError
from llamalab.rlm.journal import read_tape
from llamalab.rlm.sources import STDIN
from llamalab.rlm.text import Document


def begun_run(path: Path) -> tuple[str, list[Document]]:
    """Question and documents of a run; the documents from where it found them, under the names that it knew them by.

    Raises:
        InputError: no journal; a document is missing, or was read from standard input.
    """
    header = read_tape(path).header
    try:
        question, folder = str(header["question"]), Path(header["folder"])
        names = [str(each["name"]) for each in header["documents"]]
    except (KeyError, TypeError):
        raise InputError(f"{path}: its first line is not what this program writes.") from None
    if STDIN in names:
        raise InputError(f"{path} is of a run over standard input: pipe the text again, and name the question and -.")
    documents: list[Document] = []
    try:
        documents.extend(Document.open(folder / name, name) for name in names)
    except BaseException:
        for document in documents:
            document.close()
        raise
    return question, documents
