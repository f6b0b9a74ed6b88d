"""A fingerprint changes with what decides the bits of a score, and with nothing else."""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from llamalab.engines import load
from llamalab.errors import ConfigError, ModelFileError, ModelNotFound
from llamalab.scored import ScoreMode, ScoreRequest
from llamalab.scoring import fingerprint as module
from llamalab.scoring.fingerprint import Fingerprint, fingerprint


@dataclass(frozen=True)
class Setup:
    model: str
    provider: str = "llama_cpp"
    options: dict[str, Any] = field(default_factory=dict)


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def model(tiny_gguf: Path, tmp_path: Path) -> Path:
    return Path(shutil.copy(tiny_gguf, tmp_path / "model.gguf"))


def of(model: Path, mode: ScoreMode = "strict", **options: Any) -> Fingerprint:
    return fingerprint(Setup(str(model), options=options), mode)


def test_the_same_setup_has_the_same_fingerprint_and_it_is_json(model: Path) -> None:
    first, second = of(model), of(model)
    assert first == second
    assert json.loads(json.dumps(dict(first.facts), allow_nan=False)) == dict(first.facts)
    assert first.facts["model_sha256"] == hashlib.sha256(model.read_bytes()).hexdigest()
    assert first.facts["key"] == first.key


def test_threads_and_context_are_recorded_and_decide_nothing(model: Path) -> None:
    plain, other = of(model), of(model, n_threads=7, n_ctx=128, n_seq=3)
    assert plain.key == other.key
    assert (other.facts["n_threads"], other.facts["n_ctx"]) == (7, 128)


def test_threads_and_context_decide_nothing_of_a_score(model: Path) -> None:
    """Why they are no part of the key: the bits are equal."""
    request = ScoreRequest(range(5, 45), range(45, 90))
    found = []
    for options in ({"n_threads": 1, "n_ctx": 128}, {"n_threads": 2, "n_ctx": 512}):
        engine = load(f"llama_cpp:{model}", n_seq=1, **options)
        found.append(engine.score([request])[0].logprobs)
        engine.close()
    assert found[0] == found[1]


@pytest.mark.parametrize(
    "options", [{"type_k": "f32"}, {"type_v": "f32"}, {"flash_attn": True}, {"n_batch": 64}, {"load_mode": "read"}]
)
def test_options_that_decide_bits_decide_the_key(model: Path, options: dict[str, Any]) -> None:
    assert of(model, "fast", **options).key != of(model, "fast").key


def test_strict_mode_has_its_own_cache_type_and_attention_whatever_the_options_say(model: Path) -> None:
    assert of(model, type_k="q8_0", flash_attn=False).key == of(model).key
    assert of(model).facts["type_k"] == "f32"


def test_modes_differ(model: Path) -> None:
    assert of(model, "strict").key != of(model, "fast").key


def test_a_model_that_changed_under_its_path_is_noticed(model: Path) -> None:
    before = of(model)
    before.check_files()
    content = bytearray(model.read_bytes())
    content[-1] ^= 1
    model.write_bytes(content)
    assert of(model).key != before.key
    with pytest.raises(ModelFileError, match=r"model\.gguf changed"):
        before.check_files()


def test_a_model_under_another_name_is_the_same(model: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copy(model, tmp_path / "another.gguf"))
    assert of(copy).key == of(model).key


def test_adapters_decide_by_content_and_scale(model: Path, tiny_lora: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copy(tiny_lora, tmp_path / "copy.gguf"))
    keys = [
        of(model, adapters=adapters).key
        for adapters in ((), [(tiny_lora, 1.0)], [(tiny_lora, 0.5)], [tiny_lora, tiny_lora])
    ]
    assert len(set(keys)) == 4
    assert of(model, adapters=[copy]).key == keys[1]
    with pytest.raises(ModelNotFound):
        of(model, adapters=[tmp_path / "nowhere.gguf"])


def test_the_libraries_decide(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = {of(model).key}
    (tmp_path / "lib").mkdir()
    for content in (b"one build", b"another build"):
        (tmp_path / "lib" / "libllama.so").write_bytes(content)
        monkeypatch.setenv("LLAMA_CPP_LIB_PATH", str(tmp_path / "lib"))
        module.llama_cpp_libraries.cache_clear()
        keys.add(of(model).key)
    module.llama_cpp_libraries.cache_clear()
    assert len(keys) == 3


def test_the_processor_and_the_schedule_decide(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = {of(model).key}
    monkeypatch.setattr(module, "SCHEDULES", {**module.SCHEDULES, "llama_cpp": 1000})
    keys.add(of(model).key)
    monkeypatch.setattr(module, "cpu_features", lambda: "of another machine")
    keys.add(of(model).key)
    assert len(keys) == 3


def test_runtimes_differ_and_the_context_of_jax_decides(model: Path) -> None:
    """JAX computes over a cache as long as the context."""
    jax = [fingerprint(Setup(str(model), "jax", options), "strict") for options in ({}, {"n_ctx": 64})]
    assert len({jax[0].key, jax[1].key, of(model).key}) == 3
    assert jax[0].facts["jaxlib"]


def test_every_file_of_a_folder_decides(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    for name, content in (("a.safetensors", b"weights"), ("config.json", b"{}"), ("README.md", b"text")):
        (folder / name).write_bytes(content)
    keys = []
    for name, content in (("README.md", b"other"), ("config.json", b"[]"), ("a.safetensors", b"others")):
        keys.append(fingerprint(Setup(str(folder), "jax"), "strict").key)
        (folder / name).write_bytes(content)
    keys.append(fingerprint(Setup(str(folder), "jax"), "strict").key)
    assert keys[0] == keys[1]
    assert len(set(keys)) == 3


def test_what_runs_elsewhere_cannot_be_known_again() -> None:
    remote = fingerprint(Setup("accounts/x/models/y", "fireworks"), "strict")
    assert not remote.storable
    assert remote.key != fingerprint(Setup("accounts/x/models/z", "fireworks"), "strict").key


def test_wrong_options_and_models_are_named(model: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="n_gpu_layer"):
        of(model, n_gpu_layer=3)
    with pytest.raises(ModelNotFound):
        of(tmp_path / "nowhere.gguf")
