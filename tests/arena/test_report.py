"""The report: what it must say, what it must not, and that nothing in the data can write HTML."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import pytest

from llamalab.arena.report import html, words, write_report
from llamalab.arena.report.html import gain, page
from llamalab.arena.results import Results
from llamalab.errors import InputError
from llamalab.ope import gates
from llamalab.ope.diagnostics import Diagnostics
from tests.arena import report_cases

HOSTILE = (
    "</title></style></td><script>alert(1)</script><img src=x onerror=alert(2)>\" onload='x' {{7*7}} {% x %} &amp;"
)
VOID = {"meta", "br", "img", "link", "input", "hr", "base"}


class Reader(HTMLParser):
    """The tags of a page, and the text of its sections."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, tuple[str, ...]]] = []
        self.links: list[str] = []
        self.open: list[str] = []
        self.section = ""
        self.texts: dict[str, str] = {}
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, tuple(name for name, _ in attrs)))
        self.links += [value or "" for name, value in attrs if name in ("href", "src", "action", "data", "xlink:href")]
        if tag == "section":
            self.section = dict(attrs)["id"] or ""
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, tuple(name for name, _ in attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag
        if tag == "section":
            self.section = ""

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.texts[self.section] = self.texts.get(self.section, "") + data


def everywhere(kind: Any, value: Any, text: str, keep: frozenset[str] = frozenset()) -> Any:
    """A record with every free text in it replaced."""
    if dataclasses.is_dataclass(kind):
        hints = get_type_hints(kind)
        return kind(
            **{
                each.name: getattr(value, each.name)
                if each.name in keep
                else everywhere(hints[each.name], getattr(value, each.name), text)
                for each in dataclasses.fields(kind)
            }
        )
    origin, arguments = get_origin(kind), get_args(kind)
    if value is None or origin is Literal:
        return value
    if type(None) in arguments:
        return everywhere(next(a for a in arguments if a is not type(None)), value, text)
    if origin is tuple:
        kinds = [arguments[0]] * len(value) if arguments[-1] is ... else arguments
        return tuple(everywhere(k, v, text) for k, v in zip(kinds, value, strict=True))
    if origin is Mapping:
        return {f"{text}{i}": everywhere(arguments[1], v, text) for i, v in enumerate(value.values())}
    return text if kind is str else value


def test_nothing_in_the_data_becomes_markup() -> None:
    """Whatever the texts are, the page has the same tags with the same attributes."""
    found = report_cases.results()
    tame, wild = (everywhere(Results, found, text) for text in ("x", HOSTILE))

    assert Reader(page(wild)).tags == Reader(page(tame)).tags
    assert page(wild).count("alert(1)") > 20
    assert "49" not in page(wild)


def test_what_cannot_be_seen_or_turns_the_line_is_made_visible() -> None:
    found = everywhere(Results, report_cases.results(), "a\x00b\x1b\u202ec\ud800")
    assert not set(page(found)) & {"\x00", "\x1b", "\u202e"}


def test_needs_no_network_and_no_script() -> None:
    text = page(report_cases.results())
    read = Reader(text)

    assert all(link.startswith("#") for link in read.links)
    assert not {tag for tag, _ in read.tags} & {"script", "link", "img", "iframe", "object", "embed", "base", "form"}
    assert "url(" not in text
    assert "@import" not in text
    assert "default-src 'none'" in text


def test_every_tag_is_closed_and_every_link_leads_somewhere() -> None:
    text = page(report_cases.results())
    read = Reader(text)
    assert read.open == []
    assert read.links
    assert all(f'id="{link[1:]}"' in text for link in read.links)


@pytest.mark.parametrize("name", ["hot", "bad"])
def test_who_is_not_shown_has_no_number_in_the_headline(name: str) -> None:
    """Neither the value nor its interval, in the table or the plot; why and what would help instead."""
    found = report_cases.results()
    numbers = [f"{n:.3f}" for v in found.policy(name).values if v.value for n in (v.value, v.low, v.high) if n]
    texts = Reader(page(found)).texts

    assert not [n for n in numbers if any(n in texts[section] for section in ("", "answer", "forest", "differences"))]
    assert f"The rows of {name} are worth 2%." in texts["answer"]
    assert f"Let {name} write some responses." in texts["answer"]
    assert f"{found.policy(name).values[0].value:.3f}" in texts["policies"]


def test_who_is_shown_stands_with_interval_gain_and_truth() -> None:
    answer = Reader(page(report_cases.results())).texts["answer"]
    for number in ("0.654", "0.614 to 0.694", "+0.050", "+0.010 to +0.090", "0.660", "50%"):
        assert number in answer


def test_the_forest_plot_has_one_headline_for_each_policy_that_is_shown() -> None:
    text = page(report_cases.results())
    assert text.count('class="headline" cx=') == 2  # base and warm
    assert text.count('<svg class="truth"') == 4


def test_a_comparison_is_turned_so_that_the_base_comes_second() -> None:
    found = report_cases.results()
    turned = gain(found, found.policy("warm"))
    assert turned == html.Gain(0.05, 0.01, 0.09, 0.02)
    assert gain(found, found.policy("bad")) is None


@pytest.mark.parametrize(
    "name", [f.name for f in dataclasses.fields(Diagnostics) if f.name not in ("policy", "n", "prompts")]
)
def test_every_diagnostic_is_in_the_report(name: str) -> None:
    """The page changes with each of them."""
    found = report_cases.results()
    assert page(_with_diagnostic(found, name, 0.123456)) != page(_with_diagnostic(found, name, 0.654321))


def test_unknown_diagnostics_are_left_out() -> None:
    found = report_cases.results()
    for name in ("bennett_z", "judge_overlap", "typicality", "hill"):
        found = _with_diagnostic(found, name, None)
    text = Reader(page(found)).texts["diagnostics"]
    assert "Bennett" not in text
    assert "Tail index" not in text
    assert "Mean weight" in text


def test_a_gate_that_was_not_passed_is_marked() -> None:
    assert page(report_cases.results()).count('<div class="failed">') == 2  # the ESS of hot and bad


def test_thresholds_are_those_of_the_gates(monkeypatch: pytest.MonkeyPatch) -> None:
    text = Reader(page(report_cases.results())).texts
    assert "Shown from 30%; caution from 10%; refused below." in text["diagnostics"]
    assert "Shown from 100; caution from 30; refused below." in text["diagnostics"]
    monkeypatch.setattr(gates, "ESS_SHOWN", 0.77)
    assert "77%" in Reader(page(report_cases.results())).texts["gates"]


def test_tokens_are_shaded_by_what_they_add() -> None:
    text = page(report_cases.results())
    assert '<span class="more3" title="+2.25 nats">two</span>' in text
    assert '<span class="less2" title="\N{MINUS SIGN}0.75 nats"> words</span>' in text
    assert '<span class="never" title="never given by the target">↵\n</span>' in text
    assert "</span>!</p>" in text  # 0.01 nats: no shade


def test_a_clone_that_is_equal_everywhere_needs_no_picture() -> None:
    found = _with_diagnostic(report_cases.results(), "share_equal", 1.0)
    text = Reader(page(found)).texts["policies"]
    assert "every weight is exactly 1" in text
    assert "The heaviest rows" not in text


def test_values_of_the_judge_alone_say_so() -> None:
    found = dataclasses.replace(report_cases.results(), scale="judge", labelled=0, calibration=None)
    assert "mean judge score" in Reader(page(found)).texts[""]


def test_a_result_with_nothing_but_names_is_a_page() -> None:
    found = report_cases.results()
    bare = [
        dataclasses.replace(
            p, headline=None, values=(), diagnostics=None, weights=None, heaviest=(), failures={}, facts={}, truth=None
        )
        for p in found.policies
    ]
    empty = dataclasses.replace(
        found, policies=tuple(bare), comparisons=(), calibration=None, aa=None, facts={}, commands=(), notes=()
    )
    read = Reader(page(empty))
    assert read.open == []
    assert "These responses cannot say how warm, hot and bad would do." in read.texts[""]


def test_a_clone_is_not_asked_about_where_there_is_another_target() -> None:
    found = report_cases.results()
    clone = dataclasses.replace(found.policy("warm"), role="clone")
    others = tuple(clone if p.name == "warm" else p for p in found.policies)
    told = Reader(page(dataclasses.replace(found, policies=others))).texts[""]
    assert "These responses cannot say how hot and bad would do." in told


def test_the_first_lines_tell_who_differs_from_the_base_and_who_does_not() -> None:
    found = report_cases.results()
    (clear,) = found.comparisons
    unclear = dataclasses.replace(clear, first="hot", second="p0", p_adjusted=0.2, sentence="Hm.")
    other = dataclasses.replace(clear, first="hot", second="bad", p_adjusted=0.2, sentence="So.")
    told = Reader(page(dataclasses.replace(found, comparisons=(clear, unclear, other)))).texts[""]
    assert "It is. hot cannot be told apart from p0." in told
    assert "So." not in told


@pytest.mark.parametrize(
    ("value", "text"),
    [(-0.0004, "0.000"), (-0.0006, "\N{MINUS SIGN}0.001"), (0.0, "0.000"), (18.0614, "18.061"), (None, "\N{EM DASH}")],
)
def test_outcomes_are_written_with_the_digits_of_their_scale(value: float | None, text: str) -> None:
    assert words.outcome(value, 3) == text


def test_the_same_results_give_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a.html", "b.html"):
        write_report(report_cases.results(), tmp_path / name)
    assert (tmp_path / "a.html").read_bytes() == (tmp_path / "b.html").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.html", "b.html"]


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"report\.html cannot be written"):
        write_report(report_cases.results(), tmp_path / "nowhere" / "report.html")


def _with_diagnostic(found: Results, name: str, value: float | None) -> Results:
    change: Callable[..., Any] = dataclasses.replace
    policies = [
        change(p, diagnostics=change(p.diagnostics, **{name: value}) if p.diagnostics else None) for p in found.policies
    ]
    return change(found, policies=tuple(policies))  # type: ignore[no-any-return]
