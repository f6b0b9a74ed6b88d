"""From a name to a file: paths, the built-in model, ollama's store, and names that do not exist."""

from __future__ import annotations

import json
from pathlib import Path

import gguf
import pytest

from llamalab.checkpoints import locate as locate_module
from llamalab.checkpoints.locate import local_models, locate
from llamalab.errors import ModelFileError, ModelNotFound

DIGEST = "sha256:" + "a" * 64


@pytest.fixture(autouse=True)
def empty_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    monkeypatch.delenv("HUGGINGFACE_HUB_CACHE", raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("OLLAMA_MODELS", str(tmp_path / "ollama"))
    monkeypatch.delenv("LLAMA_MODELS_CONFIG_DIR", raising=False)
    monkeypatch.delenv("LLAMA_STACK_CONFIG_DIR", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)


def add_to_ollama(store: Path, *place: str, digest: str = DIGEST) -> Path:
    manifest = store.joinpath("manifests", *place)
    manifest.parent.mkdir(parents=True, exist_ok=True)
    blobs = store / "blobs"
    blobs.mkdir(exist_ok=True)
    (blobs / digest.replace(":", "-")).write_bytes(b"GGUF model")
    (blobs / "sha256-config").write_text(json.dumps({"model_format": "gguf", "file_type": "Q4_K_M"}))
    layers = [
        {"mediaType": "application/vnd.ollama.image.template", "digest": "sha256:t", "size": 3},
        {"mediaType": "application/vnd.ollama.image.model", "digest": digest, "size": 10},
    ]
    manifest.write_text(json.dumps({"schemaVersion": 2, "config": {"digest": "sha256:config"}, "layers": layers}))
    return blobs / digest.replace(":", "-")


def test_existing_path_is_taken_as_it_is(tmp_path: Path) -> None:
    file = tmp_path / "m.gguf"
    file.touch()
    assert locate(str(file)) == file
    assert locate("m.gguf") == Path("m.gguf")
    assert locate("~/m.gguf") == file
    assert locate(str(tmp_path)) == tmp_path


def test_pico_is_the_packaged_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locate_module, "PICO", tmp_path / "packaged.gguf")
    with pytest.raises(ModelFileError, match="built-in model is missing"):
        locate("pico")
    (tmp_path / "packaged.gguf").touch()
    (tmp_path / "pico").touch()
    assert locate("pico") == tmp_path / "packaged.gguf"
    assert local_models()[0].name == "pico"


@pytest.mark.parametrize(
    ("place", "names"),
    [
        (("registry.ollama.ai", "library", "llama3.2", "3b"), ["llama3.2:3b", "LLAMA3.2:3B"]),
        (("registry.ollama.ai", "library", "llama3.2", "latest"), ["llama3.2", "llama3.2:latest"]),
        (("registry.ollama.ai", "someone", "tuned", "q8"), ["someone/tuned:q8"]),
        (("hf.co", "acme", "tiny-GGUF", "Q8_0"), ["hf.co/acme/tiny-GGUF:Q8_0"]),
    ],
)
def test_models_of_ollama_are_found_by_the_names_it_gives_them(
    tmp_path: Path, place: tuple[str, ...], names: list[str]
) -> None:
    blob = add_to_ollama(tmp_path / "ollama", *place)
    for name in names:
        assert locate(name) == blob


def test_models_of_ollama_are_listed(tmp_path: Path) -> None:
    add_to_ollama(tmp_path / "ollama", "registry.ollama.ai", "library", "llama3.2", "3b")
    (model,) = [model for model in local_models() if model.source == "ollama"]
    assert (model.name, model.size_bytes, model.quantisation) == ("llama3.2:3b", 10, "Q4_K_M")


def add_to_meta(home: Path, name: str, within: str = "") -> Path:
    folder = home / "checkpoints" / name
    (folder / within).mkdir(parents=True)
    for file, content in (("params.json", "{}"), ("consolidated.00.pth", "zip"), ("consolidated.01.pth", "zip")):
        (folder / within / file).write_text(content)
    return folder


@pytest.mark.parametrize("variable", [None, "LLAMA_MODELS_CONFIG_DIR", "LLAMA_STACK_CONFIG_DIR"])
@pytest.mark.parametrize("within", ["", "original"])
def test_models_of_metas_commands_are_found_by_their_descriptors(
    variable: str | None, within: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In ~/.llama or where the command's own variable points to; ":" is "-" in the folder's name."""
    home = tmp_path / (variable or ".llama")
    if variable:
        monkeypatch.setenv(variable, str(home))
    folder = add_to_meta(home, "Llama3.2-1B-Instruct", within)
    other = add_to_meta(home, "Llama3.1-405B-bf16-mp16")
    assert locate("Llama3.2-1B-Instruct") == locate("llama3.2-1b-instruct") == folder
    assert locate("Llama3.1-405B:bf16-mp16") == other
    listed = [(model.name, model.size_bytes) for model in local_models() if model.source == "meta"]
    assert listed == [("Llama3.1-405B-bf16-mp16", 6), ("Llama3.2-1B-Instruct", 6)]


def test_both_of_metas_stores_are_looked_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLAMA_MODELS_CONFIG_DIR", str(tmp_path / "there"))
    here, there = add_to_meta(tmp_path / ".llama", "Llama-2-7b"), add_to_meta(tmp_path / "there", "Llama3.2-3B")
    assert (locate("Llama-2-7b"), locate("Llama3.2-3B")) == (here, there)


def test_folders_without_weights_or_settings_are_no_models(tmp_path: Path) -> None:
    for file in ("params.json", "consolidated.00.pth"):
        (add_to_meta(tmp_path / ".llama", f"without-{file}") / file).unlink()
    (tmp_path / ".llama/checkpoints/without-params.json/config.json").touch()
    (tmp_path / ".llama/checkpoints/without-consolidated.00.pth/consolidated.01.pth").unlink()
    assert [model for model in local_models() if model.source == "meta"] == []


def test_damaged_manifests_and_missing_blobs_are_passed_over(tmp_path: Path) -> None:
    store = tmp_path / "ollama"
    blob = add_to_ollama(store, "registry.ollama.ai", "library", "whole", "1b")
    (store / "manifests/registry.ollama.ai/library/broken").mkdir()
    (store / "manifests/registry.ollama.ai/library/broken/1b").write_text("{not json")
    (store / "manifests/registry.ollama.ai/library/broken/2b").write_text('{"layers": [3]}')
    add_to_ollama(store, "registry.ollama.ai", "library", "gone", "1b", digest="sha256:" + "b" * 64).unlink()
    assert [model.name for model in local_models() if model.source == "ollama"] == ["whole:1b"]
    assert locate("whole:1b") == blob


def test_missing_file_names_its_neighbours(tmp_path: Path) -> None:
    (tmp_path / "llama-3b.gguf").touch()
    with pytest.raises(ModelNotFound, match=r"no model file .*lama-3b\.gguf.*there is: llama-3b\.gguf"):
        locate("./lama-3b.gguf")


def test_missing_folder_is_said() -> None:
    with pytest.raises(ModelNotFound, match=r"the folder /no/such does not exist"):
        locate("/no/such/model.gguf")


def test_unknown_name_says_where_it_was_looked_for_and_the_nearest(tmp_path: Path) -> None:
    add_to_ollama(tmp_path / "ollama", "registry.ollama.ai", "library", "llama3.2", "3b")
    with pytest.raises(ModelNotFound) as caught:
        locate("lama3.2:3b")
    assert str(tmp_path / "hf" / "hub") in str(caught.value)
    assert str(tmp_path / "ollama") in str(caught.value)
    assert str(tmp_path / ".llama" / "checkpoints") in str(caught.value)
    assert "Nearest: llama3.2:3b" in str(caught.value)


def test_name_of_a_repository_says_how_to_download_it() -> None:
    with pytest.raises(ModelNotFound, match=r"hub:acme/tiny-GGUF:Q8_0"):
        locate("acme/tiny-GGUF:Q8_0")


def test_empty_name() -> None:
    with pytest.raises(ModelNotFound):
        locate("")


def test_the_built_in_model_is_listed_as_what_its_file_says() -> None:
    reader = gguf.GGUFReader(locate("pico"))
    kind = gguf.LlamaFileType(int(reader.get_field("general.file_type").contents()))
    assert kind.name == f"MOSTLY_{local_models()[0].quantisation}"
