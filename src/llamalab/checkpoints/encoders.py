"""Text to ids by the libraries that the files were made for: tokenizers, tiktoken, SentencePiece.

An encoder takes a text and whether the texts of control tokens become those tokens; it never adds BOS. All of them can
be called from several threads.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeAlias

from llamalab.checkpoints.pretokenizers import LLAMA3
from llamalab.checkpoints.tiktoken_file import SPECIAL, read_ranks
from llamalab.errors import ConfigError, ModelFileError

Encode: TypeAlias = Callable[[str, bool], list[int]]

_MAX_CHARS, _MAX_RUN = 400_000, 25_000
"""Meta's class gives tiktoken at most so many characters at once, and at most so many without (or all) white space."""
_LONG_RUN = re.compile(rf"\S{{{_MAX_RUN + 1},}}|\s{{{_MAX_RUN + 1},}}")


def json_encoder(source: Path | str) -> Encode:
    """By Hugging Face's tokenizers.

    Args:
        source: path of a tokenizer.json, or its text.

    Raises:
        ModelFileError: the library refuses it; with its reason.
    """
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_file(str(source)) if isinstance(source, Path) else Tokenizer.from_str(source)
    except Exception as error:  # noqa: BLE001  (the library raises bare Exception)
        where = source if isinstance(source, Path) else "tokenizer.json"
        raise ModelFileError(f"{where} cannot be used: {error}.") from None
    tokenizer.no_truncation()
    tokenizer.no_padding()
    lock = threading.Lock()  # what a special token becomes is a setting of the object

    def encode(text: str, parse_special: bool) -> list[int]:
        with lock:
            tokenizer.encode_special_tokens = not parse_special
            ids: list[int] = tokenizer.encode(text, add_special_tokens=False).ids
            return ids

    return encode


def tiktoken_encoder(path: Path) -> Encode:
    """By tiktoken, from Llama 3's tokenizer.model, cut like Meta's class does where a text is very long.

    Raises:
        ConfigError: tiktoken is not installed.
        ModelFileError: a damaged file.
    """
    try:
        import tiktoken
    except ImportError:
        raise _missing("tiktoken", path) from None
    ranks = read_ranks(path)
    encoding = tiktoken.Encoding(
        name=str(path),
        pat_str=LLAMA3,
        mergeable_ranks={token: rank for rank, token in enumerate(ranks)},
        special_tokens={name: len(ranks) + i for i, name in enumerate(SPECIAL)},
    )

    def encode(text: str, parse_special: bool) -> list[int]:
        allowed: Any = "all" if parse_special else set()
        parts = (encoding.encode(part, allowed_special=allowed, disallowed_special=()) for part in _parts(text))
        return [id for ids in parts for id in ids]

    return encode


def sentencepiece_encoder(path: Path, control: Mapping[str, int]) -> Encode:
    """By SentencePiece, from Llama 2's tokenizer.model.

    Args:
        path: of the file.
        control: text of each control token to its id. SentencePiece itself never makes one from text: where they are
            asked for, the text between them is encoded piece by piece.

    Raises:
        ConfigError: SentencePiece is not installed.
        ModelFileError: the library refuses the file.
    """
    try:
        from sentencepiece import SentencePieceProcessor
    except ImportError:
        raise _missing("sentencepiece", path) from None
    try:
        processor = SentencePieceProcessor(model_file=str(path))
    except (OSError, RuntimeError) as error:
        raise ModelFileError(f"{path} cannot be used: {error}.") from None
    longest_first = sorted(control, key=len, reverse=True)
    marks = re.compile("(" + "|".join(map(re.escape, longest_first)) + ")") if control else None

    def encode(text: str, parse_special: bool) -> list[int]:
        if not parse_special or marks is None:
            return list(processor.encode(text))
        ids: list[int] = []
        for number, part in enumerate(marks.split(text)):
            ids += [control[part]] if number % 2 else processor.encode(part)
        return ids

    return encode


def _parts(text: str) -> Iterator[str]:
    for start in range(0, len(text), _MAX_CHARS):
        part, begin = text[start : start + _MAX_CHARS], 0
        for run in _LONG_RUN.finditer(part):
            for end in range(run.start() + _MAX_RUN, run.end(), _MAX_RUN):
                yield part[begin:end]
                begin = end
        yield part[begin:]


def _missing(library: str, path: Path) -> ConfigError:
    return ConfigError(f"{path} needs {library}, which is not installed: pip install 'llamalab[jax]'.")
