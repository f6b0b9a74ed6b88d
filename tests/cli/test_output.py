"""What is printed: text on terminals and in pipes."""

from __future__ import annotations

import sys

import pytest

from llamalab.cli.output import decode, write
from llamalab.errors import InputError

TEXT = "a\x1b[31mb\rc\x9bd\te\nñ日🙂"


def test_a_model_cannot_send_control_sequences_to_a_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    write(TEXT)
    assert capsys.readouterr().out == "a�[31mb�c�d\te\nñ日🙂"


def test_a_pipe_gets_the_text_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    write(TEXT)
    assert capsys.readouterr().out == TEXT


def test_byte_order_mark_is_no_text() -> None:
    assert decode(b"\xef\xbb\xbfhello", "x") == "hello"


@pytest.mark.parametrize(("content", "offset"), [(b"\xff", 0), (b"ab\xc3", 2), ("ñ".encode() + b"\x80", 2)])
def test_first_wrong_byte_is_named(content: bytes, offset: int) -> None:
    with pytest.raises(InputError, match=f"the file is not UTF-8 text: byte 0x.. at offset {offset} "):
        decode(content, "the file")
