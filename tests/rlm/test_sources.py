"""What a caller names is what is read, and nothing else."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from llamalab.errors import InputError
from llamalab.rlm.sources import open_sources
from llamalab.rlm.text import Document


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with texts, a folder in it, and what is not to be read."""
    home = tmp_path / "home"
    (home / "logs" / "old").mkdir(parents=True)
    for name in ("b.txt", "a.txt", "old/c.txt", ".hidden"):
        (home / "logs" / name).write_text(f"this is {name}\n")
    (tmp_path / "secret.txt").write_text("canary\n")
    monkeypatch.chdir(home)
    return home


def names(*sources: str | Path | Document) -> list[str]:
    return [document.name for document in open_sources(sources).context.documents]


def test_files_come_as_named_and_folders_by_name_without_what_is_hidden(folder: Path) -> None:
    assert names("logs/b.txt", "logs") == ["logs/b.txt", "logs/a.txt", "logs/old/c.txt"]
    assert names(Path("logs")) == ["logs/a.txt", "logs/b.txt", "logs/old/c.txt"]


def test_patterns(folder: Path) -> None:
    assert names("logs/*.txt") == names("./logs/[!o]*") == ["logs/a.txt", "logs/b.txt"]
    assert names("logs/*") == names("logs/**") == ["logs/a.txt", "logs/b.txt", "logs/old/c.txt"]
    assert names("logs/.*") == ["logs/.hidden"]
    assert names("logs/**/*.txt") == ["logs/a.txt", "logs/b.txt", "logs/old/c.txt"]
    (folder / "what[1].txt").write_text("a name that looks like a pattern\n")
    assert names("what[1].txt") == ["what[1].txt"]
    with pytest.raises(InputError, match=r"logs/\*\.csv: there is no such file"):
        open_sources("logs/*.csv")


def test_standard_input_and_texts_in_memory(folder: Path) -> None:
    opened = open_sources(["-", Document.of("in memory", "memory")], stdin=lambda: b"piped\n")
    assert [(d.name, d.text()) for d in opened.context.documents] == [("-", "piped\n"), ("memory", "in memory")]
    with pytest.raises(InputError, match="named twice"):
        open_sources(["-", "-"], stdin=lambda: b"piped\n")


def test_a_file_that_is_named_twice_is_one_document(folder: Path) -> None:
    assert names("logs/a.txt", "./logs/a.txt", str(folder / "logs" / "a.txt")) == ["logs/a.txt"]


@pytest.mark.parametrize("source", ["logs", "logs/*", "logs/**"])
def test_links_that_lead_out_of_what_was_named_are_not_followed(folder: Path, source: str) -> None:
    (folder / "logs" / "link.txt").symlink_to("../../secret.txt")
    (folder / "logs" / "all").symlink_to("../..")
    opened = open_sources(source)
    assert all("canary" not in document.text() for document in opened.context.documents)
    assert "Left out: logs/link.txt is a link to another place." in opened.said
    assert names("logs/link.txt") == ["logs/link.txt"]  # named itself, it is what the caller wants


def test_what_is_binary_or_empty_is_left_out_of_a_folder_and_said(folder: Path) -> None:
    (folder / "logs" / "picture.png").write_bytes(b"\x89PNG\0\0")
    (folder / "logs" / "empty.txt").write_text("")
    opened = open_sources("logs")
    assert [document.name for document in opened.context.documents] == names("logs/a.txt", "logs/b.txt", "logs/old")
    assert "Left out: logs/empty.txt is empty." in opened.said
    assert any(said.startswith("Left out: logs/picture.png is binary") for said in opened.said)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda path: path.write_bytes(b"\x7fELF\0\0"), "is binary"),
        (lambda path: path.write_bytes("text".encode("utf-16")), "is UTF-16"),
        (lambda path: path.write_bytes("text".encode("utf-32")), "is UTF-32"),
        (lambda path: path.write_bytes("schöne größe ".encode("latin-1")), "for example with: iconv -f latin1"),
        (lambda path: path.write_text(""), "There is no text to ask about: x is empty"),
        (lambda path: path.exists(), "cannot be read: No such file"),
        (os.mkfifo, "is no file"),
        (lambda path: path.mkdir(), r"the folder x, in which there is no file \(hidden ones"),
        (lambda path: (path.mkdir(), (path / ".hidden").write_text("a")), "the folder x, in which there is no file"),
        (lambda path: path.symlink_to("x"), "x"),
    ],
)
def test_what_cannot_be_read_says_why(folder: Path, make: object, said: str) -> None:
    make(folder / "x")  # type: ignore[operator]
    with pytest.raises(InputError, match=said):
        open_sources("x")


@pytest.mark.parametrize(("name", "said"), [("a\0b", "null"), ("~nobody-here/x", "no user here"), ("x" * 5000, "long")])
def test_a_name_that_can_be_no_file_is_refused(name: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        open_sources(name)


def test_what_is_empty_beside_a_text_is_said(folder: Path) -> None:
    (folder / "empty.txt").write_text("")
    opened = open_sources(["logs", "empty.txt", "-"], stdin=lambda: b"")
    assert opened.said == ("Left out: standard input (-), which is empty.", "empty.txt is empty.")
    with pytest.raises(InputError, match="Left out: standard input"):
        open_sources("-", stdin=lambda: b"")


def test_several_empty_files_are_counted(folder: Path) -> None:
    for name in ("x", "y"):
        (folder / name).write_text("")
    with pytest.raises(InputError, match="x and 1 more are empty"):
        open_sources(["x", "y"])


FORBIDDEN = """
import os, sys
from llamalab.errors import InputError
from llamalab.rlm.sources import open_sources
if os.geteuid() == 0:
    os.seteuid(65534)
print(open_sources(["open", "closed"]).said)
for name in ("closed/a.txt", "private.txt", "closed/*.txt", "closed"):
    try:
        open_sources(name)
    except InputError as error:
        print(error)
"""


def test_what_nobody_may_read_is_said(folder: Path) -> None:
    for name in ("open", "closed"):
        (folder / name).mkdir()
        (folder / name / "a.txt").write_text("a")
    (folder / "private.txt").write_text("a")
    (folder / "private.txt").chmod(0)
    (folder / "closed").chmod(0)
    folder.chmod(0o755)
    done = subprocess.run([sys.executable, "-c", FORBIDDEN], capture_output=True, text=True, check=False)
    (folder / "closed").chmod(0o755)
    assert done.stderr == ""
    assert done.stdout.splitlines() == [
        "('Left out: closed cannot be read: Permission denied.',)",
        "closed/a.txt cannot be read: Permission denied.",
        "private.txt cannot be read: Permission denied.",
        "closed/*.txt: there is no such file.",
        "There is no text to ask about in what was named. Left out: closed cannot be read: Permission denied.",
    ]


def test_nothing_is_named() -> None:
    with pytest.raises(InputError, match="No document was named"):
        open_sources([])


def test_a_few_wrong_bytes_are_said(folder: Path) -> None:
    (folder / "x.txt").write_bytes(b"caf\xe9, a longer text in which one byte is wrong\n")
    (said,) = open_sources("x.txt").said
    assert said.startswith("x.txt is not all UTF-8")


def test_a_name_is_one_line_whatever_the_file_is_called(folder: Path) -> None:
    for name in (b"a\nL9: b", b"\x1b[2J", b"\xff\xfe", "\u2028x".encode()):
        Path(os.fsdecode(name)).write_text("text\n")
    found = names(".")
    assert len(found) == 7
    assert all(name.isprintable() and len(name.splitlines()) == 1 for name in found)


def test_files_whose_names_are_one_when_written_are_numbered(folder: Path) -> None:
    for name in ("a b", "a  b", "a\tb"):
        (folder / "logs" / "old" / name).write_text(f"text of {name!r}\n")
    assert names("logs/old") == ["logs/old/a\ufffdb", "logs/old/a b", "logs/old/a b (2)", "logs/old/c.txt"]


def test_only_what_was_opened_here_is_closed(folder: Path) -> None:
    memory = Document.of("in memory", "memory")
    opened = open_sources(["logs/a.txt", memory])
    opened.close()
    assert memory.text() == "in memory"
    assert opened.context.documents[0].text(0, 5) == ""


def test_an_empty_name_is_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "private.txt").write_text("a")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="The name of a document is empty"):
        open_sources("")
