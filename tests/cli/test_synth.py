"""`llamalab synth`: what it prints and how it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import gguf
import pytest

from llamalab.lab.shapes import SHAPES
from tests.cli.conftest import Cli

SMALL = ("--layers", "1", "--dim", "256", "--heads", "4", "--kv-heads", "2", "--ffn", "256", "--vocab", "300")


def test_json_says_what_the_file_is(cli: Cli, tmp_path: Path) -> None:
    target = tmp_path / "x.gguf"
    sizes = (*SMALL, "--head-dim", "32", "--ctx", "512", "--untied")
    said = json.loads(cli("synth", "llama-3.2-1b", str(target), *sizes, "--type", "q3_k_s", "--json").out)
    tensors = gguf.GGUFReader(target).tensors
    assert said["size_bytes"] == target.stat().st_size
    assert said["n_params"] == sum(int(t.n_elements) for t in tensors if t.name != "rope_freqs.weight")
    assert (said["type"], said["seed"]) == ("Q3_K_S", 0)
    assert said["shape"] == {
        "name": "llama-3.2-1b, changed",
        "n_layers": 1,
        "dim": 256,
        "n_heads": 4,
        "n_kv_heads": 2,
        "head_dim": 32,
        "ffn_dim": 256,
        "vocab_size": 300,
        "max_seq_len": 512,
        "rope_theta": 500_000.0,
        "tied": False,
        "rope_factor": 32.0,
    }
    for share in said["types"]:
        of_type = [t for t in tensors if t.tensor_type.name == share["type"]]
        assert (share["n_tensors"], share["size_bytes"]) == (len(of_type), sum(int(t.n_bytes) for t in of_type))


def test_table_lists_types_and_then_what_was_written(cli: Cli, tmp_path: Path) -> None:
    done = cli("synth", "custom", str(tmp_path / "x.gguf"), *SMALL, "--type", "Q8_0", "--seed", "3")
    header, *rows, _, last = done.out.splitlines()
    assert header.split() == ["type", "tensors", "parameters", "bytes"]
    assert [row.split()[0] for row in rows] == ["Q8_0", "F32"]
    assert last.startswith(f"wrote {tmp_path / 'x.gguf'}: custom, ")


def test_list_shows_every_shape_with_its_sizes(cli: Cli) -> None:
    """Among them the published sizes of Llama 3.1 8B: 16.07 GB in F16, 8.54 in Q8_0, 4.92 in Q4_K_M (with header)."""
    said = {shape["name"]: shape for shape in json.loads(cli("synth", "--list", "--json").out)}
    assert said.keys() == SHAPES.keys()
    published = {"F16": 16.07, "Q8_0": 8.54, "Q4_K_M": 4.92}
    for type, gigabytes in published.items():
        assert said["llama-3.1-8b"]["bytes"][type] / 1e9 == pytest.approx(gigabytes, abs=0.012)
    header, *rows = cli("synth", "--list").out.splitlines()
    assert header.split()[:2] == ["shape", "parameters"]
    assert [row.split()[0] for row in rows] == list(SHAPES)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "Name a shape and the file"),
        (["llama-3.2-1b"], "Name a shape and the file"),
        (["llama-4", "x.gguf"], "no shape 'llama-4'"),
        (["llama-3.2-1b", "x.gguf", "--type", "Q4KM"], "Did you mean Q4_K_M?"),
        (["llama-3.2-1b", "x.gguf", "--layers", "0"], "--layers"),
        (["llama-3.2-1b", "x.gguf", "--layers", "1000"], "at most 512"),
        (["custom", "x.gguf", "--layers", "2"], "not given: dim, heads, ffn, vocab"),
        (["custom", "folder", *SMALL], "is a folder"),
        (["custom", "folder/file", *SMALL], "exists already; --force"),
        (["custom", "folder/file/x.gguf", *SMALL], "cannot be written"),
    ],
)
def test_bad_input_is_one_paragraph_and_exit_code_2(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "file").touch()
    done = cli("synth", *arguments)
    assert done.code == 2
    assert message in done.err
    assert done.err.count("\n") == 1
    assert done.out == ""
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["file", "folder"]
