"""What `model_info` says, against gguf-py, llama.cpp and the writers of the files."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from llamalab.checkpoints.gguf import write_gguf_checkpoint
from llamalab.checkpoints.huggingface import write_huggingface
from llamalab.checkpoints.meta import write_meta
from llamalab.errors import ModelFileError, ModelNotFound
from llamalab.lab.info import ExpertsInfo, Info, MlaInfo, SpecialToken, model_info
from tests import tiny
from tests.checkpoints.test_gguf_reader import PICO, edited, split
from tests.checkpoints.tiny_checkpoint import PLAIN, SCALED, checkpoint
from tests.lab.test_quantisation import write_header


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def test_the_built_in_model() -> None:
    info, theirs = model_info("pico"), gguf.GGUFReader(PICO)
    assert info == model_info(PICO) == model_info(f"llama_cpp:{PICO}")
    assert info.n_params == sum(int(np.prod(tensor.shape)) for tensor in theirs.tensors)
    assert info.tensor_bytes == sum(int(tensor.n_bytes) for tensor in theirs.tensors)
    assert info.bits_per_weight == 8 * info.tensor_bytes / info.n_params
    assert info.size_bytes == PICO.stat().st_size
    assert info.files[0].sha256 == hashlib.sha256(PICO.read_bytes()).hexdigest()
    assert (info.quantisation, info.file_type, info.warnings) == ("Q8_0", "Q8_0", ())
    for kind, count in info.types.items():
        own = [tensor for tensor in theirs.tensors if tensor.tensor_type.name == kind]
        assert count.n_tensors == len(own)
        assert count.n_bytes == sum(int(tensor.n_bytes) for tensor in own)
    assert (info.n_layers, info.dim, info.n_heads, info.n_kv_heads, info.ffn_dim) == (4, 256, 8, 4, 768)
    tokens = theirs.fields["tokenizer.ggml.tokens"].contents()
    assert info.tokenizer is not None
    assert info.tokenizer.n_tokens == len(tokens) == info.n_vocab
    assert info.tokenizer.special["eos"] == SpecialToken(tokens.index("<|end|>"), "<|end|>")
    assert all(tokens[id] == text for id, text in info.tokenizer.control.items())
    assert info.chat_template == theirs.fields["tokenizer.chat_template"].contents()
    assert [tensor.name for tensor in info.tensors] == [tensor.name for tensor in theirs.tensors]


@pytest.mark.parametrize(("config", "tied"), [(PLAIN, False), (SCALED, True)], ids=["plain", "scaled-tied"])
def test_one_model_is_described_alike_in_three_formats(tmp_path: Path, config: Any, tied: bool) -> None:
    made = checkpoint(config, tied=tied)
    write_gguf_checkpoint(made, tmp_path / "m.gguf", "F32")
    write_huggingface(made, tmp_path / "hf", "F32")
    write_meta(made, tmp_path / "meta", "F32")
    infos = [model_info(tmp_path / name) for name in ("m.gguf", "hf", "meta")]
    assert [info.format for info in infos] == ["gguf", "safetensors", "meta"]
    for info in infos:
        assert info.n_params == made.n_params
        assert info.tied is tied
        assert info.quantisation == "F32"
        assert (info.n_layers, info.dim, info.n_heads) == (config.n_layers, config.dim, config.n_heads)
        assert (info.n_kv_heads, info.key_length, info.ffn_dim) == (config.n_kv_heads, config.head_dim, config.ffn_dim)
        assert (info.n_vocab, info.context_length) == (config.vocab_size, config.max_seq_len)
        assert info.rope is not None
        assert info.rope.base == config.rope_theta
        assert info.rope.scaling == (None if config.rope_scaling is None else "llama3")
        assert info.rope.factor == (None if config.rope_scaling is None else config.rope_scaling.factor)
        assert info.chat_template == made.chat_template
        assert info.tokenizer is not None
        assert info.tokenizer.special["eos"].id == made.vocabulary.eos_id
        assert info.tokenizer.special["eos"].text == made.vocabulary.tokens[made.vocabulary.eos_id or 0]
        assert info.warnings == ()
        assert all(file.sha256 == hashlib.sha256(file.path.read_bytes()).hexdigest() for file in info.files)


def test_a_copy_of_the_embedding_counts_once(tmp_path: Path) -> None:
    tied = checkpoint(PLAIN, tied=True)
    embedding = tied.tensors["tok_embeddings.weight"]
    both = {**tied.tensors, "output.weight": dataclasses.replace(embedding, name="output.weight")}
    made = dataclasses.replace(tied, tensors=both)
    write_gguf_checkpoint(made, tmp_path / "m.gguf", "F32")
    write_huggingface(made, tmp_path / "hf", "F32")
    write_meta(made, tmp_path / "meta", "F32")
    for name in ("m.gguf", "hf", "meta"):
        info = model_info(tmp_path / name)
        assert (info.n_params, info.tied) == (tied.n_params, True)
        # What is stored twice takes twice the room.
        assert info.tensor_bytes >= 4 * (tied.n_params + math.prod(embedding.shape))


def test_parts_of_a_split_model_count_together(tmp_path: Path) -> None:
    whole = model_info(Path(shutil.copy(PICO, tmp_path / "m.gguf")))
    parts = split(PICO, tmp_path, 3)
    for part in parts:
        info = model_info(part)
        assert (info.n_params, info.tensor_bytes, info.types) == (whole.n_params, whole.tensor_bytes, whole.types)
        assert [file.path for file in info.files] == parts
        assert info.size_bytes == sum(part.stat().st_size for part in parts)
        assert len({file.sha256 for file in info.files} - {None}) == 3
    parts[1].unlink()
    with pytest.raises(ModelFileError, match="missing"):
        model_info(parts[0])


def test_names_that_contradict_the_tensors_are_remarked(tmp_path: Path) -> None:
    path = Path(shutil.copy(PICO, tmp_path / "x.Q4_K_M.gguf"))
    info = model_info(path)
    assert info.quantisation == "Q8_0"
    assert info.warnings == ("The file name says Q4_K_M, but the tensors are those of Q8_0.",)
    changed = edited(PICO, tmp_path / "y.gguf", general__file_type=18)
    assert model_info(changed).warnings == ("general.file_type says Q6_K, but the tensors are those of Q8_0.",)


def test_an_unknown_architecture_is_described_as_far_as_the_header_goes(tmp_path: Path) -> None:
    info = model_info(tiny.write_bpe(tmp_path / "odd.gguf", architecture="nosuch"))
    assert (info.architecture, info.n_layers, info.dim, info.n_kv_heads) == ("nosuch", 2, 64, 2)
    bert = model_info(tiny.write_bert(tmp_path / "bert.gguf"))
    assert (bert.architecture, bert.context_length) == ("bert", 64)
    assert bert.tokenizer is not None
    assert bert.tokenizer.kind == "WordPiece"
    vocabulary = model_info(tiny.write_bpe(tmp_path / "v.gguf", weights=False))
    assert (vocabulary.n_params, vocabulary.quantisation, vocabulary.bits_per_weight) == (0, None, None)
    assert "no weights" in vocabulary.warnings[0]
    adapter = model_info(tiny.write_lora(tmp_path / "lora.gguf"))
    assert adapter.warnings == ("The file is of the type 'adapter', not a model.",)


def test_layers_that_differ_experts_windows_and_latent_attention(tmp_path: Path) -> None:
    path = edited(
        tiny.write_bpe(tmp_path / "a.gguf"),
        tmp_path / "b.gguf",
        llama__attention__head_count_kv=[2, 1],
        llama__expert_count=8,
        llama__expert_used_count=2,
        llama__attention__sliding_window=128,
        llama__attention__kv_lora_rank=512,
        llama__attention__q_lora_rank=1536,
        llama__attention__key_length=192,
        llama__attention__value_length=128,
        llama__rope__scaling__type="yarn",
        llama__rope__scaling__factor=4.0,
        general__license="apache-2.0",
        general__quantized_by="somebody",
    )
    info = model_info(path)
    assert (info.n_kv_heads, info.n_heads) == ((2, 1), 4)
    assert info.experts == ExpertsInfo(8, 2)
    assert info.mla == MlaInfo(512, 1536, 16)
    assert (info.key_length, info.value_length, info.sliding_window) == (192, 128, 128)
    assert info.rope is not None
    assert (info.rope.scaling, info.rope.factor) == ("yarn", 4.0)
    assert (info.licence, info.quantised_by) == ("apache-2.0", "somebody")


def test_values_of_the_wrong_type_count_as_absent(tmp_path: Path) -> None:
    path = edited(
        tiny.write_bpe(tmp_path / "a.gguf"),
        tmp_path / "b.gguf",
        llama__block_count="two",
        llama__context_length=-1.5,
        llama__rope__freq_base=math.inf,
        tokenizer__ggml__eos_token_id="<|eos|>",
        tokenizer__ggml__bos_token_id=999_999,
        tokenizer__chat_template=7,
        general__name=3,
    )
    info = model_info(path)
    assert (info.n_layers, info.context_length, info.chat_template, info.name) == (None, None, None, "b")
    assert info.tokenizer is not None
    assert "eos" not in info.tokenizer.special
    assert info.tokenizer.special["bos"] == SpecialToken(999_999, None)


CONFIG: dict[str, Any] = {
    "architectures": ["SomeMoeForConditionalGeneration"],
    "model_type": "some_moe",
    "tie_word_embeddings": True,
    "text_config": {
        "hidden_size": 32,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "moe_intermediate_size": 24,
        "n_routed_experts": 16,
        "num_experts_per_tok": 2,
        "kv_lora_rank": 8,
        "vocab_size": 100,
        "max_position_embeddings": 4096,
        "sliding_window": 512,
        "rope_scaling": {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 512},
        "rope_theta": 1e6,
    },
    "quantization_config": {"quant_method": "gptq", "bits": 4},
}


def write_safetensors(path: Path, tensors: dict[str, tuple[str, list[int], int]]) -> Path:
    """A file of zeros: name to (type, shape, bytes)."""
    header, at = {}, 0
    for name, (dtype, shape, size) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(at))
    return path


@pytest.fixture
def strange_folder(tmp_path: Path) -> Path:
    """A quantised mixture of experts with vision, of no architecture that runs here."""
    folder = tmp_path / "strange"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIG))
    shards = {
        "model-00001-of-00002.safetensors": {
            "model.language_model.embed_tokens.weight": ("BF16", [100, 32], 6400),
            "model.layers.0.mlp.experts.0.up_proj.qweight": ("I32", [4, 24], 384),
        },
        "model-00002-of-00002.safetensors": {
            "model.layers.1.scales": ("F8_E8M0", [10], 10),
            "model.layers.1.packed": ("F4_OF_THE_FUTURE", [10], 5),
            "model.layers.1.none": ("F32", [0, 4], 0),
        },
    }
    for name, tensors in shards.items():
        write_safetensors(folder / name, tensors)
    places = {tensor: name for name, tensors in shards.items() for tensor in tensors}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    (folder / "tokenizer_config.json").write_text(
        json.dumps(
            {
                "tokenizer_class": "SomeTokenizer",
                "eos_token": {"content": "<end>"},
                "pad_token": "<pad>",
                "added_tokens_decoder": {"7": {"content": "<end>", "special": True}, "8": {"content": "<pad>"}},
                "chat_template": [{"name": "tools", "template": "t"}, {"name": "default", "template": "d"}],
            }
        )
    )
    return folder


def test_a_folder_of_any_architecture(strange_folder: Path) -> None:
    info = model_info(strange_folder)
    assert info.architecture == "SomeMoeForConditionalGeneration"
    assert (info.n_layers, info.dim, info.n_heads, info.n_kv_heads, info.key_length) == (3, 32, 4, 2, 16)
    assert (info.n_vocab, info.context_length, info.sliding_window, info.tied) == (100, 4096, 512, True)
    assert info.experts == ExpertsInfo(16, 2, None, 24)
    assert info.mla == MlaInfo(8)
    assert info.rope is not None
    assert (info.rope.base, info.rope.scaling, info.rope.factor, info.rope.original_context) == (1e6, "yarn", 8.0, 512)
    assert info.quantisation == "gptq, 4 bits"
    assert info.n_params == 100 * 32 + 4 * 24 + 10 + 10
    assert {kind: count.n_bytes for kind, count in info.types.items()} == {
        "BF16": 6400, "I32": 384, "F8_E8M0": 10, "F4_OF_THE_FUTURE": 5, "F32": 0,
    }  # fmt: skip
    assert info.tokenizer is not None
    assert info.tokenizer.special == {"eos": SpecialToken(7, "<end>"), "pad": SpecialToken(8, "<pad>")}
    assert info.tokenizer.control == {7: "<end>"}
    assert info.chat_template == "d"
    assert "packed values" in info.warnings[0]


def test_what_is_missing_or_damaged_in_a_folder(strange_folder: Path, tmp_path: Path) -> None:
    (strange_folder / "tokenizer_config.json").write_text("{")
    assert any("tokenizer_config.json" in warning for warning in model_info(strange_folder).warnings)
    shard = strange_folder / "model-00002-of-00002.safetensors"
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-1])
    with pytest.raises(ModelFileError, match="cut off"):
        model_info(strange_folder)
    shard.unlink()
    with pytest.raises(ModelFileError, match="of 2 shards 1 are missing"):
        model_info(strange_folder)
    (strange_folder / "model.safetensors.index.json").write_text('{"weight_map": {"a": "../x.safetensors"}}')
    with pytest.raises(ModelFileError, match="weight_map"):
        model_info(strange_folder)
    (strange_folder / "config.json").unlink()
    with pytest.raises(ModelFileError, match="holds no model"):
        model_info(strange_folder)
    with pytest.raises(ModelNotFound):
        model_info(tmp_path / "none.gguf")


def test_meta_shards_are_put_together(tmp_path: Path) -> None:
    """Cut as for two GPUs: by rows, by columns, norms in both."""
    from llamalab.checkpoints.checkpoint import Tensor
    from llamalab.checkpoints.pth_writer import write_pth

    made = checkpoint(PLAIN)
    write_meta(made, tmp_path / "m", "F32")
    whole = model_info(tmp_path / "m")
    for number in range(2):
        pieces = []
        for name, tensor in made.tensors.items():
            values = tensor.read()
            if values.ndim > 1:
                across = name.endswith(("wo.weight", "w2.weight"))
                values = np.ascontiguousarray(np.split(values, 2, axis=1 if across else 0)[number])
            pieces.append(Tensor(name, values.shape, "F32", lambda values=values: values))  # type: ignore[misc]
        write_pth(tmp_path / "m" / f"consolidated.{number:02d}.pth", pieces)
    info = model_info(tmp_path / "m")
    assert (info.n_params, info.tensor_bytes) == (whole.n_params, whole.tensor_bytes)
    assert {t.name: t.shape for t in info.tensors} == {name: tensor.shape for name, tensor in made.tensors.items()}
    (tmp_path / "m" / "consolidated.00.pth").unlink()
    with pytest.raises(ModelFileError, match=r"no consolidated\.00\.pth"):
        model_info(tmp_path / "m")


def test_meta_models_that_are_no_plain_llama_are_described_with_a_warning(tmp_path: Path) -> None:
    write_meta(checkpoint(PLAIN), tmp_path / "m", "F32")
    params = json.loads((tmp_path / "m" / "params.json").read_text())
    (tmp_path / "m" / "params.json").write_text(json.dumps({**params, "moe_args": {"num_experts": 16}}))
    info = model_info(tmp_path / "m")
    assert (info.n_layers, info.dim, info.context_length) == (PLAIN.n_layers, PLAIN.dim, None)
    assert "mixture of experts" in info.warnings[0]


def test_large_files_are_hashed_only_when_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llamalab.lab.info.HASHED_UNASKED_BYTES", 1000)
    path = Path(shutil.copy(PICO, tmp_path / "m.gguf"))
    os.utime(path, (1e9, 1e9))
    assert model_info(path).files[0].sha256 is None
    seen: list[int] = []
    expected = hashlib.sha256(path.read_bytes()).hexdigest()
    assert model_info(path, sha256=True, progress=lambda _, done: seen.append(done)).files[0].sha256 == expected
    assert seen[-1] == path.stat().st_size
    assert model_info(path).files[0].sha256 == expected  # known by now


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The header of a 70B model: 80 layers, 128,256 tokens, 280,000 merges; 280 GB of weights that are a hole."""
    folder = tmp_path_factory.mktemp("large")
    plain = write_header(folder / "plain.gguf", layers=80, width=8192, heads=64, kv_heads=8)
    writer = gguf.GGUFWriter(folder / "large.gguf", "llama")
    writer.add_block_count(80)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list([f"token {i}" for i in range(128_256)])
    writer.add_token_types([1] * 128_000 + [3] * 256)
    writer.add_token_merges([f"left{i} right{i}" for i in range(280_147)])
    size = 0
    for tensor in model_info(plain).tensors:
        writer.add_tensor_info(tensor.name, tensor.shape, np.dtype(np.float32), tensor.n_bytes)
        size += tensor.n_bytes
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    with (folder / "large.gguf").open("r+b") as file:
        file.truncate((folder / "large.gguf").stat().st_size + size + 64)
    return folder / "large.gguf"


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the peak is read from /proc")
def test_a_header_of_70_billion_parameters_takes_under_200_mib(large: Path) -> None:
    code = (
        "import sys\nfrom llamalab.lab.info import model_info\ninfo = model_info(sys.argv[1])\n"
        "print(info.n_params, info.tokenizer.n_merges, info.tokenizer.control[128_255])\n"
        "print(next(line for line in open('/proc/self/status') if line.startswith('VmHWM')))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(large)], capture_output=True, text=True, check=True)
    said, peak, *_ = done.stdout.splitlines()
    assert said.split(maxsplit=2)[1:] == ["280147", "token 128255"]
    assert int(said.split()[0]) > 35_000_000_000
    assert int(peak.split()[1]) * 1024 < 200 * 2**20


def test_no_runtime_is_loaded_for_it() -> None:
    code = (
        "import sys\nfrom llamalab.lab.info import model_info\nmodel_info('pico')\n"
        "print({'llama_cpp', 'jax', 'gguf', 'torch', 'tokenizers', 'huggingface_hub'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_an_info_is_plain_data() -> None:
    info = model_info("pico")
    assert dataclasses.replace(info, name="other").name == "other"
    assert isinstance(hash(info.files), int)
    assert isinstance(info, Info)
    json.dumps(info.metadata, allow_nan=False)
