"""Files that cannot be run: one clear message each, and the process lives on."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import gguf
import pytest

from llamalab.engines import llama_cpp, machine, weights
from llamalab.engines.gguf_header import CACHE_TYPES, read_header
from llamalab.engines.llama_cpp import LlamaCppEngine
from llamalab.errors import LlamalabError, ModelFileError, ModelNotFound, OutOfMemory
from tests import tiny


def refused(path: Path, **options: object) -> str:
    with pytest.raises(ModelFileError) as caught:
        LlamaCppEngine(path, **options)
    message = str(caught.value)
    assert "\n" not in message
    assert path.name in message
    return message


def test_no_such_file(tmp_path: Path):
    with pytest.raises(ModelNotFound, match="There is no file"):
        LlamaCppEngine(tmp_path / "none.gguf")


def test_a_folder(tmp_path: Path):
    assert "is a folder" in refused(tmp_path)


def test_an_empty_file(tmp_path: Path):
    path = tmp_path / "empty.gguf"
    path.touch()
    assert "is empty" in refused(path)


def test_a_file_of_another_kind(tmp_path: Path):
    path = tmp_path / "page.gguf"
    path.write_text("<html>Not found</html>")
    assert "not a GGUF file (it starts with b'<htm'" in refused(path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_file_that_may_not_be_read(tmp_path: Path, tiny_gguf: Path):
    path = tmp_path / "secret.gguf"
    path.write_bytes(tiny_gguf.read_bytes())
    path.chmod(0)
    assert "cannot be read" in refused(path)


def test_a_file_cut_off_in_its_tensors_says_both_sizes(tmp_path: Path, tiny_gguf: Path):
    data = tiny_gguf.read_bytes()
    path = tmp_path / "cut.gguf"
    path.write_bytes(data[:-1000])
    message = refused(path)
    assert f"the file has {len(data) - 1000}" in message
    assert str(len(data)) in message


@pytest.mark.parametrize("kept", [4, 11, 60, 5000])
def test_a_file_cut_off_in_its_header(tmp_path: Path, tiny_gguf: Path, kept: int):
    path = tmp_path / "cut.gguf"
    path.write_bytes(tiny_gguf.read_bytes()[:kept])
    message = refused(path)
    assert "damaged GGUF file" in message
    assert "gave no reason" not in message


def test_an_unknown_architecture_is_named(tmp_path: Path):
    path = tiny.write_bpe(tmp_path / "new.gguf", architecture="llamazoo")
    assert "architecture 'llamazoo', which this llama.cpp does not know" in refused(path)


def test_a_vocabulary_without_weights_can_only_tokenise(tmp_path: Path):
    path = tiny.write_bpe(tmp_path / "vocab.gguf", weights=False)
    assert "vocabulary and no weights" in refused(path)
    with LlamaCppEngine(path, vocab_only=True) as engine:
        assert engine.detokenize(engine.tokenize("hello world")) == "hello world"
        assert engine.info.n_vocab > 300
        with pytest.raises(LlamalabError, match="vocab_only=True"):
            engine.generate([])
        with pytest.raises(LlamalabError, match="vocab_only=True"):
            engine.score([])


def test_an_embedding_model_is_refused(tmp_path: Path):
    """llama.cpp would end the process at the first draw: there are no logits."""
    assert "no model that continues a text (an embedding model?)" in refused(tiny.write_bert(tmp_path / "bert.gguf"))


@pytest.mark.parametrize(
    ("question", "answer", "message"),
    [
        ("llama_model_has_encoder", True, "encoder-decoder model"),
        ("llama_model_has_decoder", False, "an encoder"),
        ("llama_model_is_diffusion", True, "diffusion model"),
    ],
)
def test_models_of_other_kinds_are_refused(
    tiny_gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, question: str, answer: bool, message: str
):
    path = tmp_path / "other.gguf"
    path.write_bytes(tiny_gguf.read_bytes())
    monkeypatch.setattr(weights.api, question, lambda _model: answer)
    assert message in refused(path)


def test_a_missing_tensor_is_named_by_its_reason(tmp_path: Path):
    path = tmp_path / "half.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    source = gguf.GGUFReader(tiny.write_bpe(tmp_path / "whole.gguf"))
    for field in source.fields.values():
        if field.name.startswith("GGUF.") or field.name == "general.architecture":
            continue
        kind = field.types[0]
        sub = field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(field.name, field.contents(), kind, sub_type=sub)
    for tensor in source.tensors[:5]:
        writer.add_tensor(tensor.name, tensor.data)
    tiny._finish(writer)
    assert "tensor 'output_norm.weight' not found" in refused(path)


def test_the_same_token_twice_is_refused(tmp_path: Path, tiny_gguf: Path):
    """llama.cpp would end the process."""
    path = tmp_path / "twice.gguf"
    path.write_bytes(tiny_gguf.read_bytes().replace(b"<|end|>", b"<|eos|>", 1))
    assert "of its vocabulary are the same (b'<|eos|>')" in refused(path)


def test_an_adapter_is_not_a_model(tiny_lora: Path):
    assert "holds an adapter, not a model" in refused(tiny_lora)


def test_a_missing_part_of_a_split_model_is_named(tmp_path: Path, tiny_gguf: Path):
    path = tmp_path / "big-00002-of-00003.gguf"
    path.write_bytes(tiny_gguf.read_bytes())
    message = refused(path)
    assert "big-00001-of-00003.gguf, big-00003-of-00003.gguf" in message


def test_too_little_memory_is_said_with_both_numbers(tiny_gguf: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(machine, "available_memory", lambda: 3 * 2**20)
    with pytest.raises(OutOfMemory, match=r"needs 1\.00 GiB .*2 x 2097152 tokens.* 0\.00 GiB are free"):
        LlamaCppEngine(tiny_gguf, n_ctx=2**21, n_seq=2)
    LlamaCppEngine(tiny_gguf, n_ctx=512, n_seq=1, n_threads=1).close()


def test_weights_count_only_where_they_are_copied(tiny_gguf: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(machine, "available_memory", lambda: 400_000)
    with pytest.raises(OutOfMemory, match="the weights"):
        LlamaCppEngine(tiny_gguf, n_seq=1, load_mode="read")
    LlamaCppEngine(tiny_gguf, n_seq=1, load_mode="mmap", n_threads=1).close()


@pytest.mark.filterwarnings("ignore:The model was trained for")
@pytest.mark.parametrize(("kind_k", "kind_v"), [("f16", "f16"), ("f32", "bf16")])
def test_the_estimate_of_the_cache_is_what_llama_cpp_allocates(
    tiny_gguf: Path, caplog: pytest.LogCaptureFixture, kind_k: str, kind_v: str
):
    caplog.set_level("DEBUG", logger="llamalab.llama_cpp")
    kinds = {"type_k": kind_k, "type_v": kind_v}
    LlamaCppEngine(tiny_gguf, n_ctx=65536, n_seq=2, n_threads=1, **kinds).close()
    line = next(m for m in caplog.messages if "KV buffer size" in m)
    said = float(line.split("size =")[1].split("MiB")[0])
    ours = read_header(tiny_gguf).cache_bytes(2 * 65536, kind_k, kind_v) / 2**20
    assert ours == pytest.approx(said, abs=0.01)


def test_sizes_of_cache_types_are_ggmls():
    for name, (number, values, size) in CACHE_TYPES.items():
        kind = gguf.GGMLQuantizationType[name.upper()]
        assert (kind.value, gguf.GGML_QUANT_SIZES[kind]) == (number, (values, size))


def test_gpu_layers_without_a_gpu_build_warn_and_go_on(tiny_gguf: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(llama_cpp.api, "llama_supports_gpu_offload", lambda: False)
    with pytest.warns(UserWarning, match="n_gpu_layers=7 has no effect.*without GPU support"):
        engine = LlamaCppEngine(tiny_gguf, n_gpu_layers=7, n_threads=1)
    with engine:
        assert engine.info.architecture == "llama"


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("block_count", 0, "it has 0 layers"),
        ("block_count", 513, "it has 513 layers"),
        ("block_count", 2**31 - 1, "it has 2147483647 layers"),
        ("nextn_predict_layers", 3, "of its 2 layers 3"),
        ("expert_count", 1025, "0 of 1025 experts"),
        ("expert_used_count", 1, "1 of 0 experts"),
        ("rope.scaling.type", "nonsense", "of the kind 'nonsense'"),
    ],
)
def test_settings_at_which_llama_cpp_would_end_the_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str, value: int | str, message: str
):
    """And no memory for as many layers as a damaged count says."""
    finish = tiny._finish

    def with_setting(writer: gguf.GGUFWriter) -> None:
        kind = gguf.GGUFValueType.STRING if isinstance(value, str) else gguf.GGUFValueType.UINT32
        writer.add_key_value(f"llama.{key}", value, kind)
        finish(writer)

    monkeypatch.setattr(tiny, "_finish", with_setting)
    with pytest.raises(ModelFileError, match=message):
        LlamaCppEngine(tiny.write_bpe(tmp_path / "x.gguf"), n_threads=1)


def test_random_damage_never_ends_the_process(tiny_gguf: Path, tmp_path: Path):
    """Bytes of the header are changed at random; each file is refused or loads. A crash would fail the child."""
    code = f"""
import random, sys
from pathlib import Path
from llamalab.engines.llama_cpp import LlamaCppEngine
from llamalab.errors import LlamalabError
good = Path({str(tiny_gguf)!r}).read_bytes()
path = Path({str(tmp_path / "damaged.gguf")!r})
for seed in range(60):
    rng = random.Random(seed)
    data = bytearray(good)
    for _ in range(rng.choice([1, 2, 5])):
        data[rng.randrange(4, 9000)] = rng.randrange(256)
    path.write_bytes(data)
    try:
        LlamaCppEngine(path, n_threads=1, n_ctx=64).close()
    except LlamalabError:
        pass
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-500:]
