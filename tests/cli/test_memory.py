"""`llamalab memory`: what it prints and how it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.conftest import Cli


def test_a_table_of_parts_and_sentences(cli: Cli, model: str) -> None:
    done = cli("memory", model, "--n-ctx", "256")
    assert (done.code, done.err) == (0, "")
    header, *rows = done.out.splitlines()
    assert header.split() == ["MiB", "formula", "llama.cpp", "RAM"]
    names = ["process", "weights", "copies", "KV cache", "compute", "output", "work area", "total"]
    assert [row[:9].strip() for row in rows[:8]] == names
    assert rows[8].startswith("tiny.gguf (llama) needs ")
    assert "at a context of 256 tokens, KV cache f16, without flash attention." in rows[8]
    assert rows[9].startswith("Of that, ")
    assert rows[-1].startswith("For 1 sequence; the engine's own default here is 8")


def test_json_holds_bytes(cli: Cli, model: str) -> None:
    options = ["--kv-type", "f32", "--flash-attn", "on", "--n-seq", "2"]
    said = json.loads(cli("memory", model, "--n-ctx", "256", *options, "--json").out)
    assert said["setting"]["flash_attn"] is True
    assert (said["setting"]["n_ctx"], said["setting"]["n_seq"], said["setting"]["type_v"]) == (256, 2, "f32")
    parts = {part["name"]: part for part in said["parts"]}
    # K and V of two layers, two KV heads of 16 values of 4 bytes, 256 tokens of two sequences.
    assert parts["KV cache"]["formula"] == 2 * 2 * 2 * 16 * 4 * 256 * 2
    assert said["total"] >= sum(part["ram"] for part in said["parts"])
    assert said["measured"] is None
    assert "budget" not in said


def test_a_measurement_stands_beside_the_estimate(cli: Cli, model: str) -> None:
    said = json.loads(cli("memory", model, "--n-ctx", "256", "--measure", "--json").out)
    assert said["measured"]["peak"] == pytest.approx(said["total"], abs=8 * 2**20)
    assert said["error"] == said["total"] / said["measured"]["peak"] - 1


def test_a_gpu_gets_a_column(cli: Cli, model: str) -> None:
    done = cli("memory", model, "--n-ctx", "256", "-g", "-1")
    assert done.out.splitlines()[0].split() == ["MiB", "formula", "llama.cpp", "RAM", "VRAM"]
    assert "for 3 of 3 layers." in done.out
    assert "no GPU support: the split is computed" in done.out


def test_a_budget_is_answered(cli: Cli, model: str) -> None:
    done = cli("memory", model, "--n-ctx", "256", "--budget", "1GB")
    assert "In 1GB (954 MiB) of RAM, a context of up to 512 tokens fits." in done.out
    assert "3 of 3 layers fit at a context of 256 tokens (--gpu-layers 3)." in done.out
    less = cli("memory", model, "--n-ctx", "256", "--budget", "1MB")
    assert "it does not fit, not even with the shortest context." in less.out
    assert [row.split()[-2:] for row in less.out.splitlines()[-9:]] == [["no", "none"]] * 9
    assert [row.split()[-2:] for row in done.out.splitlines()[-9:]] == [["yes", "512"]] * 9


def test_a_picture_is_drawn(cli: Cli, model: str, tmp_path: Path) -> None:
    done = cli("memory", model, "--n-ctx", "256", "--budget", "80MB", "--plot", str(tmp_path / "m.svg"))
    assert done.code == 0
    assert "context, tokens" in (tmp_path / "m.svg").read_text()


def test_a_shape_needs_no_file(cli: Cli) -> None:
    """Closed form: 70.6 billion parameters of 4 to 6.6 bits; 80 layers of 8 KV heads of 128 values, K and V, F16."""
    said = json.loads(cli("memory", "--shape", "llama-3.1-70b", "--type", "q4_k_m", "--n-ctx", "8192", "--json").out)
    parts = {part["name"]: part for part in said["parts"]}
    assert 70.5e9 * 4 / 8 < parts["weights"]["ram"] < 70.6e9 * 6.6 / 8
    assert parts["KV cache"]["formula"] == 80 * 8 * 128 * 2 * 2 * 8192


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["none.gguf"], "no model called 'none.gguf'"),
        (["{folder}"], "is a folder; a model file"),
        (["{empty}"], "is empty"),
        (["{text}"], "is not a GGUF file"),
        (["{model}", "--n-ctx", "0"], "n_ctx must be 1 or more, not 0."),
        (["{model}", "--n-ctx", "2049"], "more than 4 times the 512 tokens of context that tiny.gguf was trained for"),
        (["{model}", "--n-seq", "0"], "n_seq must be 1 or more"),
        (["{model}", "--kv-type", "f17"], "kv_type must be one of f32, f16"),
        (["{model}", "--flash-attn", "maybe"], "on, off or auto, not 'maybe'"),
        (["{model}", "--kv-type", "q8_0", "--flash-attn", "off"], "needs flash attention"),
        (["{model}", "--kv-type", "q8_0"], "block size 32 does not divide n_embd_head_k=16"),
        (["{model}", "--budget", "much"], "'much' is no size of a memory"),
        (["{model}", "--shape", "llama-2-7b"], "it goes without another model"),
        (["--shape", "llama-9"], "There is no shape 'llama-9'"),
        (["--shape", "llama-2-7b", "--type", "Q9"], "Q9"),
        (["{model}", "--measure", "-g", "1"], "--measure measures RAM"),
        (["{model}", "--plot", "{folder}/none/m.svg"], "cannot be written"),
    ],
)
def test_what_cannot_be_is_one_paragraph(
    cli: Cli, model: str, tmp_path: Path, arguments: list[str], message: str
) -> None:
    (tmp_path / "empty.gguf").touch()
    (tmp_path / "text.gguf").write_text("no model at all")
    places = {"folder": tmp_path, "empty": tmp_path / "empty.gguf", "text": tmp_path / "text.gguf", "model": model}
    done = cli("memory", *(argument.format(**places) for argument in arguments))
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith("error: ")
    assert message in done.err
    assert done.err.count("\n") == 1


def test_a_context_beyond_the_trained_one_is_estimated_and_remarked(cli: Cli, model: str) -> None:
    done = cli("memory", model, "--n-ctx", "1024", "--json")
    assert done.code == 0, done.err
    assert "The model was trained for 512 tokens of context, less than n_ctx=1024." in json.loads(done.out)["notes"]
