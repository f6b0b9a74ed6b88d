"""From a model spec to an engine."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import llamalab
from llamalab.engines import load, split_spec
from llamalab.errors import ConfigError, LlamalabError, ModelFileError, ModelNotFound, ProviderError


@pytest.mark.parametrize("prefix", ["", "llama_cpp:"])
def test_a_path_with_or_without_its_provider(tiny_gguf: Path, prefix: str):
    engine = load(f"{prefix}{tiny_gguf}", n_threads=1, n_ctx=128)
    try:
        assert (engine.info.provider, engine.info.n_ctx) == ("llama_cpp", 128)
    finally:
        engine.close()


def test_a_path_object_and_the_public_name(tiny_gguf: Path):
    llamalab.load(tiny_gguf, n_threads=1).close()


def test_the_home_folder_may_be_written_short(tiny_gguf: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("HOME", str(tmp_path))
    shutil.copy(tiny_gguf, tmp_path / "model.gguf")
    load("llama_cpp:~/model.gguf", n_threads=1).close()


def test_a_gguf_under_another_name_is_recognised(tiny_gguf: Path, tmp_path: Path):
    blob = tmp_path / "sha256-0123"
    shutil.copy(tiny_gguf, blob)
    load(str(blob), n_threads=1).close()


@pytest.mark.parametrize(("spec", "nearest"), [("lama_cpp:x.gguf", "llama_cpp"), ("llamacpp:~/a/b.gguf", "llama_cpp")])
def test_an_unknown_provider_is_answered_with_the_nearest(spec: str, nearest: str):
    with pytest.raises(ProviderError, match=f"no provider .*Did you mean '{nearest}'"):
        load(spec)


def test_an_unknown_option_is_answered_with_the_nearest(tiny_gguf: Path):
    with pytest.raises(ConfigError, match=r"no option 'n_thread'.*Did you mean 'n_threads'"):
        load(tiny_gguf, n_thread=1)


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("pico", (None, "pico")),
        ("hub:org/repo:Q4_K_M", (None, "hub:org/repo:Q4_K_M")),
        ("llama_cpp:pico", ("llama_cpp", "pico")),
        ("llama_cpp:hub:org/repo", ("llama_cpp", "hub:org/repo")),
        ("llama3.2:3b", (None, "llama3.2:3b")),
        ("qwen:7b", (None, "qwen:7b")),
        ("org/repo:Q8_0", (None, "org/repo:Q8_0")),
        ("/models/x.gguf", (None, "/models/x.gguf")),
        ("C:/models/x.gguf", (None, "C:/models/x.gguf")),
    ],
)
def test_specs(spec: str, expected: tuple[str | None, str]):
    assert split_spec(spec) == expected


def test_a_file_with_a_colon_in_its_name_is_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    Path("llama_cpp:x.gguf").touch()
    assert split_spec("llama_cpp:x.gguf") == (None, "llama_cpp:x.gguf")


def test_a_folder_of_another_kind_and_a_file_of_another_kind(tmp_path: Path):
    with pytest.raises(ModelFileError, match="holds no checkpoint"):
        load(str(tmp_path))
    text = tmp_path / "notes.txt"
    text.write_text("no model")
    with pytest.raises(ModelFileError, match="not a model file that can be run here"):
        load(str(text))


def test_no_such_file():
    with pytest.raises(ModelNotFound):
        load("/no/such.gguf")
    with pytest.raises(LlamalabError):
        load("llama_cpp:/no/such.gguf")


def test_naming_engines_loads_no_runtime():
    code = "import sys, llamalab.engines; print([m for m in ('llama_cpp', 'numpy', 'llguidance') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
