"""Text to ids and back, on a byte-level BPE and on a SentencePiece vocabulary."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from llamalab.engines import vocabulary
from llamalab.engines.llama_cpp import LlamaCppEngine
from llamalab.errors import EngineError, InputError
from tests import tiny
from tests.checkpoints.test_gguf_reader import edited

texts = st.text(max_size=60) | st.text(alphabet="the and hello world é 😀<|end|>\n\0", max_size=60)


@pytest.fixture(scope="module")
def spm(tiny_spm_gguf: Path) -> Iterator[LlamaCppEngine]:
    with LlamaCppEngine(tiny_spm_gguf, vocab_only=True) as engine:
        yield engine


@given(text=texts)
@example(text=" leading, trailing ")
@example(text="a\0b")
@example(text="<|end|>")
def test_ids_of_a_text_give_it_back_bpe(tiny_engine: LlamaCppEngine, text: str):
    assert tiny_engine.detokenize(tiny_engine.tokenize(text)) == text


@given(text=texts.filter(lambda t: "\0" not in t and "▁" not in t))
@example(text=" leading, trailing ")
@example(text="</s>")
def test_ids_of_a_text_give_it_back_spm(spm: LlamaCppEngine, text: str):
    assert spm.detokenize(spm.tokenize(text)) == text


@given(text=texts)
def test_the_bytes_of_the_tokens_are_those_of_the_text(tiny_engine: LlamaCppEngine, text: str):
    assert b"".join(map(tiny_engine.token_bytes, tiny_engine.tokenize(text))) == text.encode()


def test_a_control_token_is_text_unless_it_is_asked_for(tiny_engine: LlamaCppEngine):
    end = tiny_engine.info.special_tokens["<|end|>"]
    assert end not in tiny_engine.tokenize("<|end|>")
    ids = tiny_engine.tokenize("hello<|end|>", parse_special=True)
    assert ids[-1] == end
    assert tiny_engine.detokenize(ids) == "hello"
    assert tiny_engine.detokenize(ids, special=True) == "hello<|end|>"
    assert tiny_engine.token_bytes(end) == b""
    assert tiny_engine.token_bytes(end, special=True) == b"<|end|>"


def test_no_bos_is_added(tiny_engine: LlamaCppEngine, spm: LlamaCppEngine):
    for engine in (tiny_engine, spm):
        assert engine.info.add_bos
        assert engine.info.bos_id not in engine.tokenize("hello")
        assert engine.tokenize("") == []


def test_tokens_that_the_file_does_not_name_are_not_made_up(tiny_gguf: Path, tmp_path: Path):
    """llama.cpp takes token 11 of such a vocabulary for both, which is an ordinary one."""
    keys = ("tokenizer.ggml.bos_token_id", "tokenizer.ggml.eos_token_id", "tokenizer.ggml.add_bos_token")
    path = edited(tiny_gguf, tmp_path / "nameless.gguf", drop=keys)
    with LlamaCppEngine(path, vocab_only=True) as engine:
        info = engine.info
        assert (info.bos_id, info.eos_id, info.add_bos) == (None, None, False)
        assert all(engine.token_bytes(id) == b"" for id in info.stop_ids)


def test_each_run_of_text_loses_its_space_prefix(spm: LlamaCppEngine):
    ids = spm.tokenize("hello</s>the", parse_special=True)
    assert ids.count(2) == 1
    assert spm.detokenize(ids, special=True) == "hello</s>the"


def test_half_a_character_is_replaced(tiny_engine: LlamaCppEngine):
    ids = tiny_engine.tokenize("😀")
    assert len(ids) == 4
    assert tiny_engine.detokenize(ids[:3]) == "\ufffd"


def test_a_lone_surrogate_is_refused_with_its_place(tiny_engine: LlamaCppEngine):
    read_with_surrogateescape = b"caf\xe9 au lait".decode("utf-8", "surrogateescape")
    with pytest.raises(InputError, match=r"character 3 is the lone surrogate U\+DCE9"):
        tiny_engine.tokenize(read_with_surrogateescape)


def test_ten_megabytes_are_tokenised(tiny_engine: LlamaCppEngine):
    text = "hello world, and the code is 123.\n" * 300_000
    assert len(text) > 10_000_000
    ids = tiny_engine.tokenize(text)
    assert tiny_engine.detokenize(ids[-100:]) == text[-len(tiny_engine.detokenize(ids[-100:])) :]
    assert len(ids) == 300_000 * len(tiny_engine.tokenize("hello world, and the code is 123.\n"))


@pytest.mark.parametrize("pre", ["default", "deepseek-llm", "tekken", "gpt-4o"])
@pytest.mark.parametrize("unit", ["a", " ", "7", ".", "é"])
def test_a_long_run_without_a_break_does_not_overflow_the_stack(tmp_path: Path, pre: str, unit: str):
    """For these pre-tokenisers llama.cpp recurses over each run; 100,000 characters would need 33 MB of stack."""
    path = tiny.write_bpe(tmp_path / "model.gguf", weights=False, pre=pre)
    with LlamaCppEngine(path, vocab_only=True) as engine:
        assert engine.detokenize(engine.tokenize(unit * 100_000)) == unit * 100_000


def test_a_run_beyond_the_memory_is_refused(tiny_engine: LlamaCppEngine, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(vocabulary, "available_memory", lambda: 50_000_000)
    with pytest.raises(InputError, match="a run of 100000 characters without a break"):
        tiny_engine.tokenize("words and " + "x" * 100_000)


@pytest.mark.parametrize("id", [-1, 349, 2**31])
def test_an_id_outside_the_vocabulary_is_refused(tiny_engine: LlamaCppEngine, id: int):
    with pytest.raises(InputError, match=f"{id} is outside the vocabulary of 349"):
        tiny_engine.token_bytes(id)
    with pytest.raises(InputError, match="outside the vocabulary"):
        tiny_engine.detokenize([5, id])


def test_after_close_nothing_works(tiny_gguf: Path):
    engine = LlamaCppEngine(tiny_gguf, n_threads=1)
    engine.close()
    engine.close()
    for call in (
        lambda: engine.tokenize("a"),
        lambda: engine.detokenize([1]),
        lambda: engine.token_bytes(1),
        lambda: engine.generate([]),
        lambda: engine.score([]),
    ):
        with pytest.raises(EngineError, match="engine is closed"):
            call()
