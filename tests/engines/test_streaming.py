"""Text while it streams: whole characters, and nothing of a stop string."""

from __future__ import annotations

from hypothesis import example, given
from hypothesis import strategies as st

from llamalab.engines.streaming import TextStream

LETTERS = "abé😀"
texts = st.text(alphabet=LETTERS, max_size=30)
stop_lists = st.lists(st.text(alphabet=LETTERS, min_size=1, max_size=4), max_size=3)


def pieces(data: bytes, cuts: list[int]) -> list[bytes]:
    """`data` cut at the given places (taken modulo its length)."""
    places = sorted({c % (len(data) + 1) for c in cuts})
    return [data[a:b] for a, b in zip([0, *places], [*places, len(data)], strict=True)]


def cut_character_by_character(text: str, stops: list[str]) -> str:
    """The definition: read one character after the other; the first stop string complete ends the text."""
    for end in range(1, len(text) + 1):
        complete = [s for s in stops if text[:end].endswith(s)]
        if complete:
            return text[: end - len(max(complete, key=len))]
    return text


@given(texts, stop_lists, st.lists(st.integers(0, 200), max_size=20))
@example("ab", ["ab", "b"], [1])
def test_the_text_ends_before_the_first_stop_string_however_it_is_cut(text: str, stops: list[str], cuts: list[int]):
    stream = TextStream(stops)
    released = [stream.push(piece) for piece in pieces(text.encode(), cuts)]
    whole = "".join([*released, stream.finish()])
    assert whole == cut_character_by_character(text, stops)
    assert stream.stopped == (whole != text or any(s in text for s in stops))


@given(st.binary(max_size=40), st.lists(st.integers(0, 200), max_size=20))
@example("😀".encode()[:3], [1, 2])
def test_any_bytes_become_the_text_of_the_whole_however_they_are_cut(data: bytes, cuts: list[int]):
    stream = TextStream()
    released = [stream.push(piece) for piece in pieces(data, cuts)]
    assert "".join([*released, stream.finish()]) == data.decode("utf-8", "replace")


@given(texts, stop_lists)
def test_exactly_what_may_become_a_stop_string_is_held_back(text: str, stops: list[str]):
    stream, released = TextStream(stops), ""
    for n, char in enumerate(text, 1):
        released += stream.push(char.encode())
        if stream.stopped:
            return
        held = next((k for k in range(n) if any(s.startswith(text[k:n]) for s in stops)), n)
        assert released == text[:held]
        assert stream.pending == (held < n)


@given(st.text(alphabet=LETTERS, min_size=1, max_size=10))
def test_no_piece_holds_half_a_character(text: str):
    stream = TextStream()
    for byte in text.encode():
        assert "\ufffd" not in stream.push(bytes([byte]))
    assert not stream.pending


def test_half_a_character_at_the_end_becomes_the_replacement_character():
    stream = TextStream()
    assert stream.push("é".encode()[:1]) == ""
    assert stream.pending
    assert stream.finish() == "\ufffd"


def test_after_a_stop_string_nothing_is_read():
    stream = TextStream(["END"])
    assert stream.push(b"one EN") == "one "
    assert stream.push(b"D two") == ""
    assert stream.stopped
    assert stream.push(b"three") == ""
    assert stream.finish() == ""
