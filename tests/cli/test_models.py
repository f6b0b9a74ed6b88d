"""`llamalab models`: what is on this machine."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.conftest import Cli


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llamalab.checkpoints.locate.PICO", tmp_path / "none")
    snapshot = tmp_path / "hf/hub/models--acme--tiny-GGUF/snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (snapshot / "tiny-Q8_0.gguf").write_bytes(b"GGUF" * 1000)


def test_table_holds_name_size_and_path_uncut_in_a_pipe(cli: Cli, tmp_path: Path) -> None:
    header, row = cli("models").out.splitlines()
    assert header.split() == ["name", "source", "quantisation", "size", "path"]
    path = tmp_path / "hf/hub/models--acme--tiny-GGUF/snapshots" / ("0" * 40) / "tiny-Q8_0.gguf"
    assert row.split() == ["acme/tiny-GGUF:Q8_0", "hub", "Q8_0", "4.0", "kB", str(path)]


def test_what_metas_command_has_downloaded_is_listed(cli: Cli, tmp_path: Path) -> None:
    folder = tmp_path / "llama/checkpoints/Llama3.2-1B"
    folder.mkdir(parents=True)
    (folder / "params.json").write_text("{}")
    (folder / "consolidated.00.pth").write_bytes(b"w" * 2000)
    _, model = json.loads(cli("models", "--json").out)
    assert (model["name"], model["source"], model["size_bytes"]) == ("Llama3.2-1B", "meta", 2000)


def test_json_holds_the_same(cli: Cli) -> None:
    (model,) = json.loads(cli("models", "--json").out)
    assert (model["name"], model["source"], model["size_bytes"]) == ("acme/tiny-GGUF:Q8_0", "hub", 4000)


def test_names_in_the_list_can_be_used(cli: Cli, model: str, tmp_path: Path) -> None:
    (file,) = (tmp_path / "hf").rglob("*.gguf")
    file.write_bytes(Path(model).read_bytes())
    assert cli("tokens", "acme/tiny-GGUF:Q8_0", "hello").out == "1\n"
