"""The tokeniser of a checkpoint, whichever library stands behind it."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from llamalab.checkpoints.checkpoint import Format, open_checkpoint
from llamalab.checkpoints.tokenizer_meta import vocabulary_from_meta
from llamalab.engines import weights
from llamalab.engines.tokenizer import Tokenizer, open_tokenizer
from llamalab.errors import ConfigError, EngineError, InputError
from tests.tokenizer_forms import opened, read, write

GOLDEN = Path(__file__).parent.parent / "golden" / "tokenizer"
PICO = Path(__file__).parent.parent.parent / "src" / "llamalab" / "models" / "pico.gguf"
FORMS: tuple[Format, ...] = ("gguf", "safetensors", "meta")
BYTE_LEVEL = ("gguf", "safetensors", "meta", "tiktoken")

texts = st.text(max_size=40) | st.text(alphabet="the and <|eot_id|></s>é😀\n\0", max_size=40)


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Tokenizer]]:
    """pico in three forms, a small one of Llama 3's form by tiktoken, one of Llama 2's in three forms."""
    folder = tmp_path_factory.mktemp("tokenizers")
    pico, llama2 = read("gguf", PICO), vocabulary_from_meta(GOLDEN / "sentencepiece")
    found = {form: opened(form, write(pico, form, folder / "pico")) for form in FORMS}
    found |= {f"llama2 {form}": opened(form, write(llama2, form, folder / "llama2")) for form in FORMS}
    found["tiktoken"] = opened("meta", GOLDEN / "tiktoken")
    yield found
    for tokenizer in found.values():
        tokenizer.close()


@given(text=texts)
@example(text=" a\r\n\u2003\U0010ffff")
def test_ids_of_a_text_give_it_back(tokenizers: dict[str, Tokenizer], text: str) -> None:
    for name in BYTE_LEVEL:
        ids = tokenizers[name].tokenize(text)
        assert tokenizers[name].detokenize(ids) == text
        assert b"".join(map(tokenizers[name].token_bytes, ids)) == text.encode()


@given(text=texts.filter(lambda text: "\0" not in text and "▁" not in text))
@example(text="  two spaces in front")
def test_ids_of_a_text_give_it_back_without_the_space_put_in_front(tokenizers: dict[str, Tokenizer], text: str) -> None:
    for form in FORMS:
        tokenizer = tokenizers[f"llama2 {form}"]
        assert tokenizer.detokenize(tokenizer.tokenize(text)) == text


@pytest.mark.parametrize(("name", "text"), [(name, "<|end|>") for name in FORMS] + [("tiktoken", "<|eot_id|>")])
def test_a_control_token_is_text_unless_it_is_asked_for(tokenizers: dict[str, Tokenizer], name: str, text: str) -> None:
    tokenizer = tokenizers[name]
    (control,) = tokenizer.tokenize(text, parse_special=True)
    assert control not in tokenizer.tokenize(text)
    ids = tokenizer.tokenize(f"a{text}b", parse_special=True)
    assert ids.count(control) == 1
    assert tokenizer.detokenize(ids) == "ab"
    assert tokenizer.detokenize(ids, special=True) == f"a{text}b"
    assert tokenizer.token_bytes(control) == b""
    assert tokenizer.token_bytes(control, special=True) == text.encode()


@pytest.mark.parametrize("form", FORMS)
def test_each_run_of_text_between_control_tokens_has_its_own_space(
    tokenizers: dict[str, Tokenizer], form: Format
) -> None:
    tokenizer = tokenizers[f"llama2 {form}"]
    ids = tokenizer.tokenize("the</s>the", parse_special=True)
    assert ids == [*tokenizer.tokenize("the"), 2, *tokenizer.tokenize("the")]
    assert tokenizer.detokenize(ids, special=True) == "the</s>the"
    assert 2 not in tokenizer.tokenize("x </s") + tokenizer.tokenize("<s>")


def test_no_bos_is_added(tokenizers: dict[str, Tokenizer]) -> None:
    for tokenizer in tokenizers.values():
        assert tokenizer.tokenize("") == []
        assert tokenizer.token_bytes(tokenizer.tokenize("the")[0]).strip()[:1] == b"t"


def test_half_a_character_is_replaced(tokenizers: dict[str, Tokenizer]) -> None:
    for tokenizer in tokenizers.values():
        ids = tokenizer.tokenize("🜁")
        assert tokenizer.detokenize(ids[:-1]).endswith("\ufffd")


def test_a_lone_surrogate_is_refused_with_its_place(tokenizers: dict[str, Tokenizer]) -> None:
    for tokenizer in tokenizers.values():
        with pytest.raises(InputError, match=r"character 3 is the lone surrogate U\+DCE9"):
            tokenizer.tokenize("caf\udce9")


@pytest.mark.parametrize("id", [-1, 10**6])
def test_an_id_outside_the_vocabulary_is_refused(tokenizers: dict[str, Tokenizer], id: int) -> None:
    for tokenizer in tokenizers.values():
        with pytest.raises(InputError, match=f"Token id {id} is outside the vocabulary"):
            tokenizer.detokenize([5, id])


def test_after_close_nothing_works(tmp_path: Path) -> None:
    for form in FORMS:
        tokenizer = opened(form, write(read("gguf", PICO), form, tmp_path))
        tokenizer.close()
        tokenizer.close()
        for call in (tokenizer.tokenize, tokenizer.detokenize):
            with pytest.raises(EngineError, match="closed"):
                call("a" if call == tokenizer.tokenize else [5])


@pytest.mark.parametrize("name", ["safetensors", "tiktoken", "llama2 meta"])
def test_threads_do_not_see_each_others_settings(tokenizers: dict[str, Tokenizer], name: str) -> None:
    tokenizer = tokenizers[name]
    text = "the <|end|><|eot_id|></s> and " * 20
    expected = [tokenizer.tokenize(text, parse_special=special) for special in (False, True)]
    assert expected[0] != expected[1]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda i: tokenizer.tokenize(text, parse_special=bool(i % 2)), range(100)))
    assert all(ids == expected[i % 2] for i, ids in enumerate(found))


@pytest.mark.parametrize("library", ["tiktoken", "sentencepiece"])
def test_a_missing_library_is_named_with_the_command(monkeypatch: pytest.MonkeyPatch, library: str) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(ConfigError, match=rf"needs {library}, .*pip install 'llamalab\[jax\]'"):
        opened("meta", GOLDEN / library)


def test_a_tokeniser_that_is_forgotten_gives_the_model_back(tiny_gguf: Path) -> None:
    before = dict(weights._loaded)
    tokenizer = open_tokenizer(open_checkpoint(tiny_gguf))
    assert len(weights._loaded) == len(before) + 1
    del tokenizer
    gc.collect()
    assert weights._loaded == before
