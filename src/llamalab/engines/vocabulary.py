"""A model file's vocabulary through llama.cpp: text to ids, ids to bytes and text.

Nothing here adds BOS. Models with a SentencePiece vocabulary put a space in front of each run of text (so
"Hello" becomes "▁Hello"); `detokenize` takes it away again, so that it is the inverse of `tokenize`.
"""

from __future__ import annotations

import contextlib
import ctypes
import re
import threading
from collections.abc import Callable, Sequence

import numpy as np

from llamalab.engines.machine import available_memory
from llamalab.engines.native import api
from llamalab.errors import EngineError, InputError

_MAX_BYTES = 2**31 - 1

# Byte-level BPEs first split the text by a regular expression. For some models llama.cpp runs it with std::regex,
# which recurses once per character of a match and would overflow an ordinary stack.
_LONG_RUN = 1000
_RUNS = re.compile(rf"\S{{{_LONG_RUN},}}|\s{{{_LONG_RUN},}}")
_STACK_PER_CHARACTER = 400  # measured: 330 bytes
_SPARE_STACK = 16 * 2**20
_stack_lock = threading.Lock()


class Vocabulary:
    """Tokens of one loaded file. Safe from several threads: the native side is read only.

    Args:
        vocab: llama.cpp's handle.
        says_bos: the file names a BOS token. For one that does not, llama.cpp makes one up, which may be any word.
        says_eos: the file names an EOS token; likewise.

    Attributes:
        size: number of tokens.
        bos_id: beginning of sequence, None without one.
        eos_id: end of sequence, None without one.
        add_bos: the model was trained with BOS in front.
        special_tokens: text of each control token to its id.
        stop_ids: every token that ends a generation.
        texts: text of tokens seen so far that are whole characters.
    """

    def __init__(self, vocab: int, *, says_bos: bool, says_eos: bool) -> None:
        self.pointer = vocab
        self.size: int = api.llama_vocab_n_tokens(vocab)
        self.exists: bool = api.llama_vocab_type(vocab) != api.LLAMA_VOCAB_TYPE_NONE
        self.bos_id: int | None = None
        self.eos_id: int | None = None
        self.add_bos = False
        self.special_tokens: dict[str, int] = {}
        self.stop_ids: frozenset[int] = frozenset()
        self._plain: list[bytes | None] = [None] * self.size
        self.texts: dict[int, str] = {}
        self._special: dict[int, bytes] = {}
        self._control: frozenset[int] = frozenset()
        self._alphabet: frozenset[str] | None = None
        self._space_prefix = False
        self._splits_by_regex: bool = api.llama_vocab_type(vocab) == api.LLAMA_VOCAB_TYPE_BPE
        if self.exists:
            self._read(says_bos=says_bos, says_eos=says_eos)

    def tokenize(self, text: str, *, parse_special: bool = False) -> list[int]:
        """Token ids of `text`; with `parse_special` the text of a control token becomes that token.

        Raises:
            InputError: text that is not valid Unicode, or that the vocabulary cannot express.
            EngineError: the file has no tokeniser.
        """
        self._need_tokenizer()
        if not text:
            return []
        data = encoded(text)
        if self._alphabet is not None:
            self._check_alphabet(text)
        run = self._longest_run(text)
        if run:
            return _with_deep_stack(run, lambda: self._tokenize(data, parse_special))
        return self._tokenize(data, parse_special)

    def _tokenize(self, data: bytes, parse_special: bool) -> list[int]:
        room = len(data) + 16
        while True:
            ids = np.empty(room, dtype=np.int32)
            pointer = ids.ctypes.data_as(api.llama_token_p)
            count = api.llama_tokenize(self.pointer, data, len(data), pointer, room, False, parse_special)
            if count >= 0:
                found: list[int] = ids[:count].tolist()
                return found
            if -count <= room:
                raise EngineError(f"llama.cpp could not tokenise a text of {len(data)} bytes.")
            room = -count

    def detokenize(self, ids: Sequence[int], *, special: bool = False) -> str:
        """Text of `ids`; control tokens are left out unless `special`. Broken UTF-8 becomes U+FFFD."""
        self._need_tokenizer()
        pieces: list[bytes] = []
        run_starts = self._space_prefix
        for id in ids:
            piece = self.bytes_of(id, special=special)
            if id in self._control:
                run_starts = self._space_prefix
            elif run_starts:
                piece = piece[1:] if piece[:1] == b" " else piece
                run_starts = False
            pieces.append(piece)
        return b"".join(pieces).decode("utf-8", "replace")

    def bytes_of(self, id: int, *, special: bool = False) -> bytes:
        """The bytes of one token; none for a control token unless `special`.

        Raises:
            InputError: an id outside the vocabulary.
        """
        if not 0 <= id < self.size:
            raise InputError(f"Token id {id} is outside the vocabulary of {self.size} tokens.")
        if special and id in self._control:
            return self._special.setdefault(id, self._piece(id, special=True))
        piece = self._plain[id]
        if piece is None:
            piece = self._plain[id] = self._piece(id, special=False)
            with contextlib.suppress(UnicodeDecodeError):
                self.texts[id] = piece.decode()
        return piece

    def _read(self, *, says_bos: bool, says_eos: bool) -> None:
        vocab = self.pointer
        attributes = [api.llama_vocab_get_attr(vocab, id) for id in range(self.size)]
        control = [id for id, attr in enumerate(attributes) if attr & api.LLAMA_TOKEN_ATTR_CONTROL]
        marked = [id for id, attr in enumerate(attributes) if attr & api.LLAMA_TOKEN_ATTR_USER_DEFINED]
        # Bytes of control and unknown tokens appear only on request.
        hidden = api.LLAMA_TOKEN_ATTR_CONTROL | api.LLAMA_TOKEN_ATTR_UNKNOWN
        self._control = frozenset(id for id, attr in enumerate(attributes) if attr & hidden)
        ends = {id for id in control if api.llama_vocab_is_eog(vocab, id)}
        bos, eos = api.llama_vocab_bos(vocab), api.llama_vocab_eos(vocab)
        self.bos_id = bos if bos >= 0 and (says_bos or bos in self._control) else None
        self.eos_id = eos if eos >= 0 and (says_eos or eos in self._control) else None
        self.add_bos = self.bos_id is not None and bool(api.llama_vocab_get_add_bos(vocab))
        self.stop_ids = frozenset(ends | ({self.eos_id} if self.eos_id is not None else set()))
        for id in control + marked:
            text = self._piece(id, special=True).decode("utf-8", "replace")
            if id in self._control or (text.startswith("<") and text.endswith(">")):
                self.special_tokens[text] = id
        if api.llama_vocab_type(vocab) == api.LLAMA_VOCAB_TYPE_SPM:
            if not any(attr & api.LLAMA_TOKEN_ATTR_BYTE for attr in attributes):
                # llama.cpp would abort on a character that is neither a token nor expressible in bytes.
                pieces = (api.llama_vocab_get_text(vocab, id) or b"" for id in range(self.size))
                self._alphabet = frozenset(p for p in (x.decode("utf-8", "replace") for x in pieces) if len(p) == 1)
            probe = self.tokenize("a") if self._alphabet is None or {"a", "▁"} <= self._alphabet else []
            self._space_prefix = b"".join(self.bytes_of(id) for id in probe).startswith(b" ")

    def _longest_run(self, text: str) -> int:
        """Length of the longest run without a break, if llama.cpp may recurse over it; else 0."""
        if len(text) < _LONG_RUN or not self._splits_by_regex:
            return 0
        return max((match.end() - match.start() for match in _RUNS.finditer(text)), default=0)

    def _piece(self, id: int, *, special: bool) -> bytes:
        if not self.exists:
            return b""
        room = 64
        while True:
            buffer = ctypes.create_string_buffer(room)
            count = int(api.llama_token_to_piece(self.pointer, id, buffer, room, 0, special))
            if count >= 0:
                return buffer.raw[:count]
            room = -count

    def _need_tokenizer(self) -> None:
        if not self.exists:
            raise EngineError("This model file has no tokeniser: give token ids instead of text.")

    def _check_alphabet(self, text: str) -> None:
        assert self._alphabet is not None
        for at, char in enumerate(text.replace(" ", "▁")):
            if char not in self._alphabet:
                raise InputError(f"Character {char!r} at position {at} cannot be expressed in this model's vocabulary.")


def encoded(text: str) -> bytes:
    """`text` in UTF-8.

    Raises:
        InputError: a lone surrogate (what is left of undecodable input), with its position; over 2 GiB.
    """
    try:
        data = text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InputError(
            f"The text is not valid Unicode: character {error.start} is the lone surrogate "
            f"U+{ord(text[error.start]):04X} (bytes that were not UTF-8 read as text?)."
        ) from error
    if len(data) > _MAX_BYTES:
        raise InputError(f"The text has {len(data)} bytes; {_MAX_BYTES} can be tokenised at once.")
    return data


def _with_deep_stack(run: int, work: Callable[[], list[int]]) -> list[int]:
    """Do `work` on a thread whose stack is deep enough for a run of so many characters."""
    size = (_SPARE_STACK + run * _STACK_PER_CHARACTER + 0xFFFF) & ~0xFFFF
    refused = InputError(f"The text has a run of {run} characters without a break, too long to be tokenised here.")
    available = available_memory()
    if available is not None and size > available // 2:
        raise refused
    done: list[list[int] | BaseException] = []

    def run_and_keep() -> None:
        try:
            done.append(work())
        except BaseException as error:  # noqa: BLE001  (raised again below)
            done.append(error)

    with _stack_lock:
        before = threading.stack_size()
        try:
            threading.stack_size(size)
            thread = threading.Thread(target=run_and_keep)
            thread.start()
        except (ValueError, RuntimeError):
            raise refused from None
        finally:
            threading.stack_size(before)
    thread.join()
    (result,) = done
    if isinstance(result, BaseException):
        raise result
    return result
