"""The documentation says only what works: its commands are run, and its reference is current."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

import llamalab
from llamalab import errors

ROOT = Path(__file__).parent.parent
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])
LANGUAGES = {"bash", "console", "python"}
FENCE = re.compile(r"(<!-- not run: .+? -->\n)?^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SLOW = {"how-fast.md", "verify.md", "will-it-fit.md"}
INSTALLS = "make demo\n"
"""The one command of the README that is not run here: it would install the project once more."""


@dataclass(frozen=True)
class Block:
    page: str
    line: int
    language: str
    text: str


def blocks(page: Path) -> list[Block]:
    content = page.read_text(encoding="utf-8")
    return [
        Block(page.name, content[: match.start()].count("\n") + 1, match[2], match[3])
        for match in FENCE.finditer(content)
        if match[1] is None and match[2] in LANGUAGES and match[3] != INSTALLS
    ]


def run(command: list[str], folder: Path) -> str:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    env = {**os.environ, "PATH": path, "COLUMNS": "100", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        command, cwd=folder, env=env, capture_output=True, text=True, check=False, timeout=300, stdin=subprocess.DEVNULL
    )
    assert done.returncode == 0, f"{command[-1]}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def shell(script: str, folder: Path) -> str:
    return run(["bash", "-euo", "pipefail", "-c", script], folder)


def check_console(block: Block, folder: Path) -> None:
    """Run the `$` lines; the lines below each must be its output, `...` standing for anything."""
    for session in re.split(r"^\$ ", block.text, flags=re.MULTILINE)[1:]:
        command, _, expected = session.partition("\n")
        pattern = re.escape(expected.strip()).replace(re.escape("..."), "(?s:.*)")
        assert re.fullmatch(pattern, shell(command, folder).strip()), f"{block.page}:{block.line}: {command}"


def runnable() -> list[object]:
    """The pages with commands or code; those that take half a minute each are left to `make test-all`."""
    return [
        pytest.param(page, id=page.name, marks=[pytest.mark.slow] if page.name in SLOW else [])
        for page in PAGES
        if blocks(page)
    ]


@pytest.mark.parametrize("page", runnable())
def test_commands_and_code_run(page: Path, tmp_path: Path) -> None:
    """In the order of the page, in one folder; Python blocks of a page share their names."""
    python = []
    for block in blocks(page):
        if block.language == "console":
            check_console(block, tmp_path)
        elif block.language == "bash":
            shell(block.text, tmp_path)
        else:
            python.append(block.text)
    if python:
        run([sys.executable, "-c", "\n".join(python)], tmp_path)


def test_the_reader_of_blocks_sees_them_all() -> None:
    """Every fence of these languages is either run or says why not."""
    fences = sum(len(re.findall(rf"^```({'|'.join(LANGUAGES)})\b", p.read_text(), re.MULTILINE)) for p in PAGES)
    skipped = sum(len(re.findall(r"^<!-- not run: ", p.read_text(), re.MULTILINE)) for p in PAGES)
    installs = sum(
        p.read_text().count(f"```bash\n{INSTALLS}```") - p.read_text().count("<!-- not run: installs") for p in PAGES
    )
    assert sum(len(blocks(page)) for page in PAGES) == fences - skipped - installs


def test_page_of_commands_is_current() -> None:
    """Otherwise: python docs/make_cli.py."""
    script = "import runpy; print(runpy.run_path('docs/make_cli.py')['page'](), end='')"
    made = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert (ROOT / "docs" / "cli.md").read_text(encoding="utf-8") == made


def test_page_of_errors_is_complete() -> None:
    table = dict(re.findall(r"^\| `(\w+)` \|.*\| (\d) \|$", (ROOT / "docs" / "errors.md").read_text(), re.MULTILINE))
    classes = {name: value for name, value in vars(errors).items() if isinstance(value, type)}
    expected = {name: str(value.exit_code) for name, value in classes.items() if value is not errors.LlamalabError}
    assert table == expected


def test_changelog_has_this_version() -> None:
    assert f"\n## {llamalab.__version__}\n" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_site_names_every_page() -> None:
    config = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    assert set(re.findall(r": ([\w-]+\.md)$", config, re.MULTILINE)) == {page.name for page in PAGES} - {"README.md"}


def test_local_links_lead_somewhere() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#:]+)(?:#[\w-]+)?\)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name}: {target}"
