"""`llamalab convert`: what it prints and how it refuses."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from llamalab.checkpoints.checkpoint import open_checkpoint
from tests.cli.conftest import Cli


def test_a_short_table_says_what_was_written(cli: Cli, model: str, tmp_path: Path) -> None:
    done = cli("convert", model, str(tmp_path / "m"), "--to", "meta")
    assert done.code == 0
    header, row, *notes = done.out.splitlines()
    assert header.split() == ["wrote", "format", "dtype", "tensors", "size", "rope"]
    assert row.split()[:4] == [str(tmp_path / "m"), "meta", "F32", "21"]
    assert row.endswith("metadata: no scaling")
    assert any("tokenizer.json lies beside the weights" in note for note in notes)
    assert open_checkpoint(tmp_path / "m").format == "meta"


def test_json_holds_the_same(cli: Cli, model: str, tmp_path: Path) -> None:
    target = tmp_path / "q.gguf"
    said = json.loads(cli("convert", model, str(target), "--to", "gguf", "--dtype", "q8_0", "--json").out)
    assert said["source"] == str(Path(model).absolute())
    assert (said["target"], said["format"], said["dtype"], said["n_tensors"]) == (str(target), "gguf", "Q8_0", 21)
    assert said["size_bytes"] == target.stat().st_size
    assert said["n_params"] == open_checkpoint(target).n_params


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["none.gguf", "out", "--to", "gguf"], "no model called 'none.gguf'"),
        (["{model}", "{model}", "--to", "gguf", "--force"], "is the model to be converted"),
        (["{model}", "{folder}", "--to", "meta"], "exists already; --force replaces it"),
        (["{model}", "out", "--to", "onnx"], "there are gguf, safetensors, meta"),
        (["{model}", "out"], "--to"),
        (["{model}", "out", "--to", "meta", "--dtype", "Q4_0"], "meta cannot be written as 'Q4_0'"),
        (["{model}", "out", "--to", "meta", "--rope-factor", "0"], "RoPE factor is 0"),
    ],
)
def test_bad_input_is_one_paragraph_and_exit_code_2(
    cli: Cli, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "file").touch()
    done = cli("convert", *(a.format(model=model, folder=tmp_path / "folder") for a in arguments))
    assert done.code == 2
    assert message in done.err
    assert done.err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_without_the_extra_it_says_what_to_install(model: str, tmp_path: Path) -> None:
    code = "import sys; sys.modules['jax'] = None; from llamalab.cli.app import run; sys.exit(run(sys.argv[1:]))"
    command = [sys.executable, "-c", code, "convert", model, str(tmp_path / "m"), "--to", "meta"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "pip install 'llamalab[jax]'" in done.stderr
