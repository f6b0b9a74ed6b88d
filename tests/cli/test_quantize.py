"""`llamalab quantize`: what it prints and how it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import gguf
import pytest

from tests.cli.conftest import Cli


def test_json_says_what_changed(cli: Cli, model: str, tmp_path: Path) -> None:
    target = tmp_path / "x.gguf"
    said = json.loads(cli("quantize", model, str(target), "--type", "q8_0", "--threads", "1", "--json").out)
    tensors = gguf.GGUFReader(target).tensors
    assert (said["source"], said["target"], said["type"], said["written"]) == (model, str(target), "Q8_0", True)
    assert said["size_bytes"] == target.stat().st_size
    assert said["bytes_after"] == sum(int(t.n_bytes) for t in tensors) < said["bytes_before"]
    assert said["bits_per_weight"] == pytest.approx(8 * said["bytes_after"] / said["n_params"])
    assert {share["type"] for share in said["types"]} == {t.tensor_type.name for t in tensors}


def test_dry_run_says_that_nothing_was_written(cli: Cli, model: str, tmp_path: Path) -> None:
    done = cli("quantize", model, str(tmp_path / "x.gguf"), "--type", "Q8_0", "--dry-run")
    header, *_ = done.out.splitlines()
    assert header.split() == ["type", "tensors", "parameters", "bytes"]
    assert f"would write {tmp_path / 'x.gguf'}: Q8_0, " in done.out
    assert "bits per weight" in done.out
    assert not (tmp_path / "x.gguf").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["none.gguf", "x.gguf", "--type", "Q8_0"], "no model called 'none.gguf'"),
        (["{model}", "x.gguf"], "--type"),
        (["{model}", "x.gguf", "--type", "Q80"], "Did you mean Q8_0?"),
        (["{model}", "{model}", "--type", "Q8_0", "--force"], "name another target"),
        (["{model}", "folder", "--type", "Q8_0"], "is a folder"),
        (["{model}", "folder/file", "--type", "Q8_0"], "exists already; --force"),
        (["{model}", "folder/file/x.gguf", "--type", "Q8_0"], "cannot be written"),
        (["{model}", "x.gguf", "--type", "Q8_0", "--imatrix", "none.gguf"], "no file none.gguf"),
        (["folder", "x.gguf", "--type", "Q8_0"], "holds no checkpoint"),
        (["folder/file", "x.gguf", "--type", "Q8_0"], "is empty"),
        (["pico", "x.gguf", "--type", "Q4_K_M"], "--requantize"),
    ],
)
def test_bad_input_is_one_paragraph_and_exit_code_2(
    cli: Cli, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "file").touch()
    done = cli("quantize", *(argument.format(model=model) for argument in arguments))
    assert done.code == 2
    assert message in done.err
    assert done.err.count("\n") == 1
    assert done.out == ""
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["file", "folder"]
