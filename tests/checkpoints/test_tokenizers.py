"""Tokenisers between GGUF, Hugging Face and Meta files: equal ids, whatever way they went."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from llamalab.checkpoints.checkpoint import Format
from llamalab.checkpoints.tokenizer_check import TEXTS
from llamalab.checkpoints.tokenizer_huggingface import (
    read_chat_template,
    vocabulary_from_huggingface,
    write_huggingface_tokenizer,
)
from llamalab.checkpoints.tokenizer_meta import vocabulary_from_meta, write_meta_tokenizer
from llamalab.checkpoints.vocabulary import Vocabulary, check_size
from llamalab.engines.tokenizer import Tokenizer
from llamalab.errors import ModelFileError
from tests.tokenizer_forms import fields, opened, read, write

GOLDEN = Path(__file__).parent.parent / "golden" / "tokenizer"
PICO = Path(__file__).parent.parent.parent / "src" / "llamalab" / "models" / "pico.gguf"
MODELS = Path(os.environ.get("LLAMALAB_LLAMA_CPP_MODELS", "/no/such/folder"))
FORMS: tuple[Format, ...] = ("gguf", "safetensors", "meta")

# Letters and signs that all of these libraries have known for years: their Unicode tables are of different ages.
characters = st.characters(max_codepoint=0x24F, exclude_categories=["Cs", "Cn"]) | st.sampled_from(
    "\u2003\u3000\u0301\u200b\u200d\ufeff½Ⅷ٣Привеш世界こ한😀👩✓→<|>"
)
texts = st.text(characters, max_size=40) | st.lists(
    st.sampled_from(["<|eot_id|>", "<|end|>", "</s>", "the", " and", "'ll", "12345", "\r\n", "   ", "\t", "é"])
    | st.text(characters, max_size=4),
    max_size=10,
).map("".join)


def golden(name: str) -> dict[str, Any]:
    return json.loads((GOLDEN / f"{name}.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tokenizers")


@pytest.fixture(scope="module")
def llama3(folder: Path) -> Iterator[dict[Format, Tokenizer]]:
    """A small tokenizer.model of Llama 3's form, and what it was converted to."""
    yield from all_forms(vocabulary_from_meta(GOLDEN / "tiktoken"), folder / "llama3")


@pytest.fixture(scope="module")
def llama2(folder: Path) -> Iterator[dict[Format, Tokenizer]]:
    """A small tokenizer.model of Llama 2's form, and what it was converted to."""
    yield from all_forms(vocabulary_from_meta(GOLDEN / "sentencepiece"), folder / "llama2")


@pytest.fixture(scope="module")
def pico(folder: Path) -> Iterator[dict[Format, Tokenizer]]:
    """pico's: cut as GPT-2 does, its control tokens in front, without BOS."""
    yield from all_forms(read("gguf", PICO), folder / "pico")


def all_forms(vocabulary: Vocabulary, folder: Path) -> Iterator[dict[Format, Tokenizer]]:
    tokenizers = {form: opened(form, write(vocabulary, form, folder)) for form in FORMS}
    yield tokenizers
    for tokenizer in tokenizers.values():
        tokenizer.close()


# Equal ids


@pytest.mark.parametrize("form", FORMS)
def test_ids_are_those_of_metas_class(llama3: dict[Format, Tokenizer], form: Format) -> None:
    for text, ids, with_special in golden("tiktoken")["ids"]:
        assert llama3[form].tokenize(text) == ids, text
        assert llama3[form].tokenize(text, parse_special=True) == with_special, text


def test_very_long_texts_are_cut_as_metas_class_cuts_them(llama3: dict[Format, Tokenizer]) -> None:
    for unit, times, digest in golden("tiktoken")["long"]:
        ids = llama3["meta"].tokenize(unit * times)
        assert sha256(json.dumps(ids).encode()).hexdigest() == digest, unit


@pytest.mark.parametrize("form", FORMS)
def test_ids_are_those_of_sentencepiece(llama2: dict[Format, Tokenizer], form: Format) -> None:
    for text, ids in golden("sentencepiece")["ids"]:
        if form == "gguf" and "</s>" in text:
            continue  # llama.cpp joins characters to a control token if its text can be built by merges
        assert llama2[form].tokenize(text) == ids, text


@given(text=texts)
@example(text="  a\u00a0\n \n")
def test_all_forms_of_a_llama_3_tokeniser_give_equal_ids(llama3: dict[Format, Tokenizer], text: str) -> None:
    assert_equal_ids(llama3, text)


@given(text=texts)
def test_all_forms_of_pico_give_equal_ids(pico: dict[Format, Tokenizer], text: str) -> None:
    assert_equal_ids(pico, text)


@given(text=texts.filter(lambda text: "</s>" not in text and "\0" not in text))
def test_all_forms_of_a_llama_2_tokeniser_give_equal_ids(llama2: dict[Format, Tokenizer], text: str) -> None:
    assert_equal_ids(llama2, text)


def assert_equal_ids(tokenizers: dict[Format, Tokenizer], text: str) -> None:
    for special in (False, True):
        ids = [tokenizer.tokenize(text, parse_special=special) for tokenizer in tokenizers.values()]
        assert ids[0] == ids[1] == ids[2]
        assert len({tokenizer.detokenize(ids[0], special=special) for tokenizer in tokenizers.values()}) == 1


@pytest.mark.parametrize("pre", ["llama-bpe", "gpt-2", "smollm", "qwen2", "smaug-bpe", "seed-coder", "default"])
def test_each_pretokeniser_cuts_the_same_in_a_gguf_and_in_a_tokenizer_json(folder: Path, pre: str) -> None:
    vocabulary = replace(vocabulary_from_meta(GOLDEN / "tiktoken"), pre=pre)
    forms: tuple[Format, ...] = ("gguf", "safetensors")
    paths = {form: write(vocabulary, form, folder / f"pre-{pre}") for form in forms}
    assert [read(form, path).pre for form, path in paths.items()] == [pre, pre]
    gguf, json = (opened(form, path) for form, path in paths.items())
    for text in TEXTS:
        assert gguf.tokenize(text) == json.tokenize(text), text
    gguf.close()


# What a form says


@pytest.mark.parametrize("name", ["tiktoken", "sentencepiece", "pico"])
def test_a_round_trip_through_every_form_keeps_the_vocabulary(tmp_path: Path, name: str) -> None:
    start = replace(read("gguf", PICO) if name == "pico" else vocabulary_from_meta(GOLDEN / name), files={})
    vocabulary = start
    for number, form in enumerate(("meta", "safetensors", "gguf", "safetensors", "meta", "gguf")):
        vocabulary = replace(read(form, write(vocabulary, form, tmp_path / str(number))), files={})
        assert joined_first(vocabulary) == joined_first(start)
        assert said(vocabulary) == said(start), form


def said(vocabulary: Vocabulary) -> Vocabulary:
    """All but the scores, whose order counts and not their values."""
    lists = {"tokens": list(vocabulary.tokens), "types": list(vocabulary.types), "merges": list(vocabulary.merges)}
    return replace(vocabulary, scores=(), **lists)


def joined_first(vocabulary: Vocabulary) -> list[int]:
    """Ids in the order in which SentencePiece would join them."""
    joined = [id for id, text in enumerate(vocabulary.tokens) if vocabulary.types[id] == "normal" and len(text) > 1]
    return sorted(joined, key=lambda token: -vocabulary.scores[token]) if vocabulary.scores else []


def test_a_written_tokenizer_model_is_the_original_byte_for_byte(tmp_path: Path) -> None:
    vocabulary = replace(vocabulary_from_meta(GOLDEN / "tiktoken"), files={})
    assert write_meta_tokenizer(vocabulary, tmp_path).startswith("tokenizer.model gives the same ids")
    name = "tokenizer.model"
    assert (tmp_path / name).read_bytes() == (GOLDEN / "tiktoken" / name).read_bytes()


def test_a_written_sentencepiece_model_gives_the_ids_of_the_original(tmp_path: Path) -> None:
    vocabulary = replace(vocabulary_from_meta(GOLDEN / "sentencepiece"), files={})
    assert write_meta_tokenizer(vocabulary, tmp_path).startswith("tokenizer.model gives the same ids")
    tokenizer = opened("meta", tmp_path)
    for text, ids in golden("sentencepiece")["ids"]:
        assert tokenizer.tokenize(text) == ids, text


def test_pico_gets_a_tokenizer_json_in_metas_folder_and_the_command_says_so(tmp_path: Path) -> None:
    said = write_meta_tokenizer(read("gguf", PICO), tmp_path, "{{ template }}")
    assert said.startswith("tokenizer.json lies beside the weights in place of a tokenizer.model: ")
    assert "'gpt-2'" in said
    assert not (tmp_path / "tokenizer.model").exists()
    assert read_chat_template(tmp_path) == "{{ template }}"


def test_a_gguf_says_what_llama_cpp_needs(tmp_path: Path) -> None:
    said = fields(write(vocabulary_from_meta(GOLDEN / "tiktoken"), "gguf", tmp_path))
    n = len(said["tokenizer.ggml.tokens"])
    assert said["tokenizer.ggml.pre"] == "llama-bpe"
    assert said["tokenizer.ggml.token_type"] == [1] * (n - 256) + [3] * 256
    at = {key: said[f"tokenizer.ggml.{key}_token_id"] - n + 256 for key in ("bos", "eos", "eom", "eot", "padding")}
    assert at == {"bos": 0, "eos": 1, "eom": 8, "eot": 9, "padding": 4}
    assert said["tokenizer.ggml.add_bos_token"] is True


def test_original_files_are_copied_as_they_are(tmp_path: Path) -> None:
    source = write(vocabulary_from_meta(GOLDEN / "tiktoken"), "safetensors", tmp_path)
    config = json.loads((source / "tokenizer_config.json").read_text()) | {"more": [1, 2]}
    (source / "tokenizer_config.json").write_text(json.dumps(config))
    write_huggingface_tokenizer(vocabulary_from_huggingface(source), tmp_path / "copy", "a template")
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        assert (tmp_path / "copy" / name).read_bytes() == (source / name).read_bytes()
    assert read_chat_template(tmp_path / "copy") == "a template"


@pytest.mark.parametrize("scheme", ["always", "never"])
def test_a_metaspace_tokeniser_is_read_as_sentencepiece(tmp_path: Path, scheme: str) -> None:
    """As newer converters of Llama 2 and Mistral write it: a pre-tokeniser in place of a normaliser."""
    path = write(replace(vocabulary_from_meta(GOLDEN / "sentencepiece"), files={}), "safetensors", tmp_path)
    metaspace = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": False}
    data = json.loads((path / "tokenizer.json").read_text()) | {"normalizer": None, "pre_tokenizer": metaspace}
    (path / "tokenizer.json").write_text(json.dumps(data))
    vocabulary = read("safetensors", path)
    assert (vocabulary.kind, vocabulary.space_prefix) == ("sentencepiece", scheme == "always")
    assert bool(vocabulary.notes) == (scheme == "always")  # the same but before text that begins with a space
    original, gguf = opened("safetensors", path), opened("gguf", write(vocabulary, "gguf", tmp_path))
    for text in (text for text in TEXTS if "</s>" not in text and not text.startswith((" ", "▁"))):
        assert gguf.tokenize(text) == original.tokenize(text), text
    gguf.close()


def test_stop_tokens_come_from_the_generation_config_too(tmp_path: Path) -> None:
    path = write(read("gguf", PICO), "safetensors", tmp_path)
    (path / "generation_config.json").write_text('{"eos_token_id": [4, 2]}')
    assert read("safetensors", path).stop_ids == {4, 2}


def test_rows_beyond_the_tokens_are_unused(tmp_path: Path) -> None:
    vocabulary = read("gguf", PICO)
    padded = check_size(vocabulary, 1030, PICO)
    original = opened("gguf", PICO, vocabulary)
    for form in FORMS:
        path = write(padded, form, tmp_path)
        assert read(form, path).types[1024:] == ["unused"] * 6
        tokenizer = opened(form, path)
        assert tokenizer.tokenize("the [PAD1025]") == original.tokenize("the [PAD1025]")
        assert tokenizer.token_bytes(1025) == b""
        tokenizer.close()
    original.close()


# Bad input


def test_a_tokeniser_of_another_model_is_refused_with_both_numbers() -> None:
    with pytest.raises(ModelFileError, match=r"1024 tokens and the model 1000 embedding rows"):
        check_size(read("gguf", PICO), 1000, PICO)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"IQ== 0\nIg== two\n", r'line 2: not "base64 rank"'),
        (b"IQ== 0\nI?== 1\n", "line 2"),
        (b"IQ== 0\nIg== 2\n", "are not 0 to 1; the file is cut off"),
        (b"IQ== 0\nIg== 0\n", "line 2: rank 0 stands there twice"),
        (b"IQ== 0\nIQ== 1\n", "the same token under two ranks"),
        (b"\x0a\xff\x01abc", "no SentencePiece model, or a damaged one"),
        (b"", "it holds no pieces"),
    ],
)
def test_a_damaged_tokenizer_model_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "tokenizer.model").write_bytes(content)
    with pytest.raises(ModelFileError, match=message):
        vocabulary_from_meta(tmp_path)


def test_a_sentencepiece_model_that_is_cut_off_is_refused(tmp_path: Path) -> None:
    whole = (GOLDEN / "sentencepiece" / "tokenizer.model").read_bytes()
    (tmp_path / "tokenizer.model").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ModelFileError, match="cut off"):
        vocabulary_from_meta(tmp_path)


def test_a_folder_without_a_tokeniser_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match=r"has no tokenizer\.model"):
        vocabulary_from_meta(tmp_path)
    with pytest.raises(ModelFileError, match=r"neither a tokenizer\.json"):
        vocabulary_from_huggingface(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": {"type": "Unigram", "vocab": []}}, "of the kind 'Unigram'; Llamas have BPE"),
        ({"model": {"type": "BPE"}}, "lacks the key 'model.vocab'"),
        ({"model": {"type": "BPE", "vocab": {"a": 0}}}, "lacks the key 'model.merges'"),
        ({"model": {"type": "BPE", "vocab": {"a": 0.5}}}, r"model\.vocab\.a is 0\.5, not the id of a token"),
        ({"model": {"type": "BPE", "vocab": {"a": 10**9}, "merges": []}}, "tokens has the id 1000000000"),
        ({"model": {"type": "BPE", "vocab": {"a": 0}, "merges": ["a"]}}, r"model\.merges\[0\] is 'a', not two tokens"),
        ({"added_tokens": [{"id": 0, "content": [], "special": True}]}, r"added_tokens\[0\]\.content is \[\], not"),
        ({"pre_tokenizer": None, "decoder": None}, "neither a byte-level BPE"),
    ],
)
def test_a_tokenizer_json_of_another_kind_is_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    path = write(read("gguf", PICO), "safetensors", tmp_path) / "tokenizer.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ModelFileError, match=message):
        vocabulary_from_huggingface(path.parent)


def test_a_pretokeniser_without_a_name_in_llama_cpp_is_read_but_not_written_as_gguf(tmp_path: Path) -> None:
    path = write(read("gguf", PICO), "safetensors", tmp_path) / "tokenizer.json"
    split = {"type": "Split", "pattern": {"Regex": "own!+"}, "behavior": "Isolated", "invert": False}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    parts = {"pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, byte_level]}}
    path.write_text(json.dumps(json.loads(path.read_text()) | parts))
    vocabulary = vocabulary_from_huggingface(path.parent)
    with pytest.raises(ModelFileError, match=r"no name for how it cuts text.*own!"):
        write(vocabulary, "gguf", tmp_path)
    assert (
        opened("safetensors", path.parent).detokenize(opened("safetensors", path.parent).tokenize("own!!")) == "own!!"
    )


def test_a_gguf_without_a_tokeniser_of_a_llama_is_refused() -> None:
    with pytest.raises(ModelFileError, match="kind 'bert'"):
        read_fields({"tokenizer.ggml.model": "bert"})
    with pytest.raises(ModelFileError, match="holds no tokeniser"):
        read_fields({})
    with pytest.raises(ModelFileError, match="2 tokens and 1 token types"):
        read_fields(
            {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.tokens": ["a", "b"], "tokenizer.ggml.token_type": [1]}
        )


def read_fields(said: dict[str, object]) -> Vocabulary:
    from llamalab.checkpoints.tokenizer_gguf import vocabulary_from_gguf

    return vocabulary_from_gguf(said)


# The real ones, where they are at hand


@pytest.mark.skipif(not MODELS.is_dir(), reason="LLAMALAB_LLAMA_CPP_MODELS is not a folder")
def test_llama_3_as_gguf_becomes_metas_own_file(tmp_path: Path) -> None:
    """The file that Meta publishes is written from llama.cpp's vocabulary, and gives the ids of Meta's class."""
    write_meta_tokenizer(read("gguf", MODELS / "ggml-vocab-llama-bpe.gguf"), tmp_path)
    path = tmp_path / "tokenizer.model"
    expected = golden("llama3")
    assert sha256(path.read_bytes()).hexdigest() == expected["sha256"]
    tokenizer = opened("meta", tmp_path)
    for text, ids, with_special in expected["ids"]:
        assert tokenizer.tokenize(text) == ids
        assert tokenizer.tokenize(text, parse_special=True) == with_special


@pytest.mark.skipif(not MODELS.is_dir(), reason="LLAMALAB_LLAMA_CPP_MODELS is not a folder")
@pytest.mark.parametrize("name", ["llama-bpe", "llama-spm", "gpt-2", "qwen2", "deepseek-coder", "phi-3", "starcoder"])
def test_ids_are_those_of_llama_cpps_own_test_vectors(tmp_path: Path, name: str) -> None:
    source = MODELS / f"ggml-vocab-{name}.gguf"
    asked = source.with_name(f"{source.name}.inp").read_text(encoding="utf-8").split("\n__ggml_vocab_test__\n")
    answers = source.with_name(f"{source.name}.out").read_text(encoding="utf-8").split("\n")
    for tokenizers in all_forms(read("gguf", source), tmp_path):
        for form, tokenizer in tokenizers.items():
            for text, ids in zip(asked, answers, strict=False):
                assert tokenizer.tokenize(text) == [int(id) for id in ids.split()], (form, text)


@pytest.mark.reference
def test_metas_own_file_gives_the_ids_of_its_class_and_of_transformers(tmp_path: Path) -> None:
    """Live: Meta's class, ours from the same file, transformers from the folder that we write."""
    meta = pytest.importorskip("llama_models.llama3.tokenizer")
    transformers = pytest.importorskip("transformers")
    folder = Path(meta.__file__).parent
    reference, vocabulary = meta.Tokenizer(folder / "tokenizer.model"), vocabulary_from_meta(folder)
    ours = opened("meta", folder, vocabulary)
    write_huggingface_tokenizer(vocabulary, tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    for text in (row[0] for row in golden("llama3")["ids"]):
        ids = reference.encode(text, bos=False, eos=False, allowed_special="all")
        assert ours.tokenize(text, parse_special=True) == ids
        assert theirs.encode(text, add_special_tokens=False) == ids
        assert theirs.encode(text) == [reference.bos_id, *ids]
        assert ours.tokenize(text) == reference.encode(text, bos=False, eos=False)
    assert vocabulary.stop_ids == set(reference.stop_tokens)
    assert (vocabulary.bos_id, vocabulary.eos_id, vocabulary.pad_id) == (
        reference.bos_id,
        reference.eos_id,
        reference.pad_id,
    )
    assert theirs.eos_token_id == reference.eos_id


@pytest.mark.reference
@pytest.mark.parametrize("name", ["tiktoken", "sentencepiece", "pico"])
def test_transformers_reads_what_is_written(tmp_path: Path, name: str) -> None:
    """Live: ids with and without BOS, text of ids, named tokens and the template."""
    transformers = pytest.importorskip("transformers")
    vocabulary = read("gguf", PICO) if name == "pico" else vocabulary_from_meta(GOLDEN / name)
    write_huggingface_tokenizer(replace(vocabulary, files={}), tmp_path, "{{ messages[0].content }}")
    theirs, ours = transformers.AutoTokenizer.from_pretrained(tmp_path), opened("safetensors", tmp_path)
    bos = [vocabulary.bos_id] if vocabulary.add_bos else []
    for text in (text for text in TEXTS if "<" not in text):
        ids = ours.tokenize(text)
        assert theirs.encode(text, add_special_tokens=False) == ids
        assert theirs.encode(text) == bos + ids
        assert theirs.decode(ids) == ours.detokenize(ids)
    assert (theirs.bos_token_id, theirs.eos_token_id, theirs.pad_token_id) == (
        vocabulary.bos_id,
        vocabulary.eos_id,
        vocabulary.pad_id,
    )
    assert theirs.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False) == "hi"
