"""The record of a trace, and its picture."""

from __future__ import annotations

import io
import json
import math
import xml.etree.ElementTree as ET
from dataclasses import replace

import numpy as np
import pytest

from llamalab.lab.trace import TracedToken, TraceRecorder
from llamalab.lab.trace_plot import COLOURS, MEANINGS, trace_svg
from llamalab.llama.entropix import TokenTrace
from llamalab.llama.entropix_cases import CASES, FRACTIONAL, ORIGINAL, Case, Measures, case_of

SVG = "{http://www.w3.org/2000/svg}"


def decided(entropy: float = 1.0, varentropy: float = 1.0, case: Case = "adaptive", token: int = 7) -> TokenTrace:
    return TokenTrace(
        token=token,
        entropy=entropy,
        varentropy=varentropy,
        attention_entropy=0.5,
        attention_varentropy=0.25,
        agreement=0.125,
        interaction=2.0,
        case=case,
        temperature=0.75,
        logprob=math.log(0.5),
    )


def token(text: str, **fields: float | str) -> TracedToken:
    return TracedToken(text, decided(**fields))  # type: ignore[arg-type]


def drawn(tokens: list[TracedToken], thresholds: object = ORIGINAL, title: str = "trace") -> ET.Element:
    return ET.fromstring(trace_svg(tokens, thresholds, title))  # type: ignore[arg-type]


def text_of(picture: ET.Element) -> list[str]:
    """The lines of the response, and nothing of the titles in them."""
    lines = []
    for text in picture.iter(f"{SVG}text"):
        spans = text.findall(f"{SVG}tspan")
        if spans:
            lines.append("".join(span.text or "" for span in spans))
    return lines


def test_a_line_says_what_decided_a_token() -> None:
    file = io.StringIO()
    recorder = TraceRecorder(file)
    recorder.bytes_of = {7: b" fox"}.__getitem__
    recorder(0, decided(case="LEHV"))
    assert json.loads(file.getvalue()) == {
        "index": 0,
        "id": 7,
        "text": " fox",
        "probability": pytest.approx(0.5),
        "case": "LEHV",
        "temperature": 0.75,
        "entropy": 1.0,
        "varentropy": 1.0,
        "attention_entropy": 0.5,
        "attention_varentropy": 0.25,
        "agreement": 0.125,
        "interaction": 2.0,
    }


def test_the_texts_of_the_lines_are_the_text() -> None:
    """A character over several tokens belongs to the one that completes it; each line is written when it comes."""
    content = "a ü – 🦊!".encode() + b"\xff"  # and half a character, from a model that can write anything
    file = io.StringIO()
    recorder = TraceRecorder(file)
    recorder.bytes_of = lambda number: content[number : number + 1]
    for number in range(len(content)):
        recorder(0, decided(token=number))
        assert len(file.getvalue().splitlines()) == number + 1
    assert "".join(json.loads(line)["text"] for line in file.getvalue().splitlines()) == content.decode(
        errors="replace"
    )
    assert "".join(token.text for token in recorder.tokens) == content.decode(errors="replace")


def test_points_lie_in_the_region_of_their_case() -> None:
    """The regions that are drawn, against the cases as they are computed."""
    rng = np.random.default_rng(0)
    plane = rng.uniform(0, (7, 9), (300, 2)) * rng.choice([0.02, 1], (300, 1))
    entropy, varentropy = plane.T.astype(np.float32)
    zeros = np.zeros(300, np.float32)
    cases = [CASES[int(n)] for n in case_of(Measures(entropy, varentropy, zeros, zeros, zeros, zeros), ORIGINAL)]
    assert set(cases) >= {"LELV", "LEHV", "HEHV", "adaptive"}
    tokens = [
        token("x", entropy=float(h), varentropy=float(v), case=case)
        for h, v, case in zip(entropy, varentropy, cases, strict=True)
    ]
    picture = drawn(tokens)
    regions = {r.get("class"): r for r in picture.iter(f"{SVG}rect") if r.get("class")}
    points = [c for c in picture.iter(f"{SVG}circle") if c.get("r") == "4.5"]
    assert len(points) == 300
    for point, case in zip(points, cases, strict=True):
        x, y = float(point.get("cx", "")), float(point.get("cy", ""))

        def holds(region: ET.Element, x: float = x, y: float = y, margin: float = 0.15) -> bool:
            left, top, width, height = (float(region.get(name, "")) for name in ("x", "y", "width", "height"))
            inside_x = left - margin <= x <= left + width + margin
            return inside_x and top - margin <= y <= top + height + margin

        assert point.get("fill") == COLOURS[case]
        assert not any(holds(region, margin=-0.15) for name, region in regions.items() if name != case)
        if case != "adaptive":
            assert holds(regions[case])


def test_where_attention_decides_as_well_the_picture_says_so() -> None:
    tokens = [token("x")]
    assert "the attention fits" in ET.tostring(drawn(tokens, FRACTIONAL), encoding="unicode")
    assert "the attention fits" not in ET.tostring(drawn(tokens), encoding="unicode")


def test_the_text_is_whole_and_coloured_by_case() -> None:
    words = [" word" * 5, " and", " a", "no", "ther"] * 20
    tokens = [token(word, case=CASES[n % 5]) for n, word in enumerate(words)]
    picture = drawn(tokens)
    lines = text_of(picture)
    assert "".join(lines) == "".join(words)
    assert all(len(line) <= 92 for line in lines)
    assert all(line.endswith(" ") for line in lines[:-1])  # no word is cut in two
    spans = [span for span in picture.iter(f"{SVG}tspan") if (span.text or "").startswith("ther")]
    assert {span.get("fill") for span in spans} == {COLOURS["adaptive"]}
    assert "another" in lines[0] + lines[1]


def test_lines_end_where_the_text_has_them_end_and_what_has_no_spaces_is_cut() -> None:
    lines = text_of(drawn([token("one\n\ntwo"), token("x" * 200), token("狐" * 60)]))
    assert lines[:2] == ["one↵", "↵"]
    assert "".join(lines) == "one↵↵two" + "x" * 200 + "狐" * 60
    assert max(map(len, lines)) == 92
    assert len(lines[-1]) <= 46


@pytest.mark.parametrize("text", ["\x1b[31m\x00\x08", "</svg><script>", "&\"'<>]]>", "\ud800\uffff", "\t\r", ""])
def test_any_text_makes_a_picture_that_can_be_read(text: str) -> None:
    content = trace_svg([token(text), token(text)], ORIGINAL, text)
    picture = ET.fromstring(content.encode())
    assert not list(picture.iter(f"{SVG}script"))
    assert "\x1b" not in content


def test_the_picture_fetches_nothing() -> None:
    content = trace_svg([token("x")], ORIGINAL, "t")
    assert content.count("http") == 1  # the name space
    assert "@import" not in content
    assert "url(" not in content


def test_the_legend_counts_each_case() -> None:
    tokens = [token("x", case="LELV")] * 3 + [token("y", case="HEHV")]
    texts = {text.text for text in drawn(tokens).iter(f"{SVG}text")}
    assert {"LELV: 3 (75%)", "HEHV: 1 (25%)", "HELV: 0 (0%)"} <= texts
    assert set(MEANINGS) == set(CASES) == set(COLOURS)


def test_values_of_any_size_stay_inside_the_plane() -> None:
    """Up to the entropy of a vocabulary of 128,256 tokens, 17 bits."""
    big = replace(decided(), entropy=16.97, varentropy=120.0)
    picture = drawn([TracedToken("x", big), token("y", entropy=0.0, varentropy=0.0)])
    plane = next(r for r in picture.iter(f"{SVG}rect") if r.get("fill") == "#f4f4f4")
    left, top = float(plane.get("x", "")), float(plane.get("y", ""))
    for point in picture.iter(f"{SVG}circle"):
        if point.get("r") == "4.5":
            assert left <= float(point.get("cx", "")) <= left + float(plane.get("width", ""))
            assert top <= float(point.get("cy", "")) <= top + float(plane.get("height", ""))
