"""`llamalab info`: what is printed, and what is refused."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import pytest

from llamalab.cli.info import human_count
from tests import tiny
from tests.checkpoints.test_gguf_reader import PICO, edited, split
from tests.cli.conftest import Cli
from tests.cli.test_bad_input import refused


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def test_pico_as_a_table(cli: Cli) -> None:
    result = cli("info")
    assert result.code == 0
    assert result.err == ""
    lines = dict(line.split("  ", 1) for line in result.out.splitlines() if "  " in line)
    facts = {label: value.strip() for label, value in lines.items()}
    assert facts["quantisation"] == "Q8_0"
    assert facts["parameters"] == "3,410,176 (3.41 M)"
    assert facts["KV heads"] == "4"
    assert facts["special tokens"] == "EOS 4 <|end|>, PAD 0 <|pad|>"
    assert facts["SHA-256"] == hashlib.sha256(PICO.read_bytes()).hexdigest()
    assert result.out.splitlines()[-2].split()[:2] == ["Q8_0", "29"]


def test_pico_as_json(cli: Cli) -> None:
    document = json.loads(cli("info", "pico", "--json").out)
    assert document["n_params"] == 3_410_176
    assert document["bits_per_weight"] == pytest.approx(8 * document["tensor_bytes"] / document["n_params"])
    assert document["size_bytes"] == PICO.stat().st_size
    assert document["tokenizer"]["special"]["eos"] == {"id": 4, "text": "<|end|>"}
    assert "<|" in document["chat_template"]
    assert document["metadata"]["general.architecture"] == "llama"
    assert "tensors" not in document
    with_tensors = json.loads(cli("info", "-m", "pico", "--json", "--tensors").out)
    assert len(with_tensors["tensors"]) == with_tensors["n_tensors"] == document["n_tensors"]
    assert with_tensors["tensors"][0]["name"] == "token_embd.weight"


def test_tensors_are_listed_on_request(cli: Cli, model: str) -> None:
    assert "blk.1.ffn_down.weight" not in cli("info", model).out
    assert "blk.1.ffn_down.weight" in cli("info", model, "--tensors").out


def test_what_contradicts_itself_is_a_warning(cli: Cli, tmp_path: Path) -> None:
    shutil.copy(PICO, tmp_path / "x-Q4_K_M.gguf")
    result = cli("info", "./x-Q4_K_M.gguf")
    assert result.code == 0
    assert result.err == "warning: The file name says Q4_K_M, but the tensors are those of Q8_0.\n"


def test_a_split_model_has_a_sum_for_each_part(cli: Cli, tmp_path: Path) -> None:
    parts = split(PICO, tmp_path, 2)
    out = cli("info", str(parts[1])).out
    for part in parts:
        assert f"{hashlib.sha256(part.read_bytes()).hexdigest()} {part.name}" in out


def test_large_files_are_hashed_on_request(cli: Cli, model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llamalab.lab.info.HASHED_UNASKED_BYTES", 1000)
    assert "not computed (--sha256)" in cli("info", model).out
    assert hashlib.sha256(Path(model).read_bytes()).hexdigest() in cli("info", model, "--sha256").out


def test_bad_input(cli: Cli, model: str, tmp_path: Path) -> None:
    refused(cli("info", "/no/such.gguf"), "/no/such.gguf")
    refused(cli("info", "nosuchmodel"), "nosuchmodel")
    refused(cli("info", str(tmp_path)), "holds no model")
    refused(cli("info", "-m", model, "other"), "Two models")
    (tmp_path / "empty.gguf").touch()
    refused(cli("info", "./empty.gguf"), "is empty")
    (tmp_path / "text.gguf").write_text("this is a text, not a model" * 10)
    refused(cli("info", "./text.gguf"), "not a GGUF file")
    (tmp_path / "model.safetensors").touch()
    refused(cli("info", "./model.safetensors"), "name the folder")
    content = Path(model).read_bytes()
    for share in (0.001, 0.1, 0.5, 0.99):
        (tmp_path / "cut.gguf").write_bytes(content[: int(len(content) * share)])
        refused(cli("info", "./cut.gguf"), "cut.gguf")
    part = split(PICO, tmp_path, 3)[1]
    part.unlink()
    refused(cli("info", "./m-00001-of-00003.gguf"), "m-00002-of-00003.gguf")


def test_unknown_architectures_are_described(cli: Cli, tmp_path: Path) -> None:
    result = cli("info", str(tiny.write_bpe(tmp_path / "odd.gguf", architecture="nosuch")))
    assert (result.code, result.err) == (0, "")
    assert "nosuch" in result.out


def test_a_file_cannot_send_control_characters_to_the_terminal(cli: Cli, tmp_path: Path) -> None:
    edited(PICO, tmp_path / "x.gguf", general__name="\x1b[2Jevil\nsecond line", general__license="\x07")
    result = cli("info", "./x.gguf")
    assert result.code == 0
    assert "\x1b" not in result.out
    assert "\x07" not in result.out
    assert "evil\N{REPLACEMENT CHARACTER}second line" in result.out
    assert json.loads(cli("info", "./x.gguf", "--json").out)["name"] == "\x1b[2Jevil\nsecond line"


def test_numbers_of_parameters() -> None:
    assert [human_count(n) for n in (0, 999, 3_410_176, 1_235_814_400, 70_553_706_496)] == [
        "0", "999", "3.41 M", "1.24 B", "70.6 B",
    ]  # fmt: skip
