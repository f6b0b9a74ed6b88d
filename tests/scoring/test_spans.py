"""The ids that are scored are exactly those of the prompt and the response, whatever the two contain."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llamalab.checkpoints.convert import convert
from llamalab.errors import ConfigError, EmptyResponse, InputError, TemplateMissing
from llamalab.scoring.policy import Policy, make_policy
from llamalab.scoring.spans import Span, Tokens, open_tokens, span
from llamalab.templates.builtin import BUILT_IN
from tests.chat_cases import CONTROL, CONVERSATIONS, digest, talk, write_vocabulary
from tests.fake_engine import FakeEngine

GOLDEN = Path(__file__).parent.parent / "golden" / "chat"
SMALL = ("bpe", "spm")
PICO = make_policy("pico", {"model": "pico"})


def golden(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((GOLDEN / f"{name}.json").read_text(encoding="utf-8"))
    return found


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Tokens]]:
    """The small vocabularies of the golden files: byte-level BPE, and SentencePiece with a space in front."""
    folder = tmp_path_factory.mktemp("vocabularies")
    found = {}
    for name in SMALL:
        path = write_vocabulary(folder / f"{name}.gguf", golden(name)["vocabulary"])
        found[name] = open_tokens(Policy(name, "llama_cpp", str(path)))
    yield found
    for tokens in found.values():
        tokens.close()


@pytest.fixture(scope="module")
def pico() -> Iterator[Tokens]:
    with open_tokens(PICO) as tokens:
        yield tokens


def policy(template: str | None = None, system_prompt: str | None = None) -> Policy:
    return Policy("p", "llama_cpp", "x", template=template, system_prompt=system_prompt)


def fake(template: str | None = None, **options: Any) -> Tokens:
    engine = FakeEngine(template=template, **options)
    return Tokens(engine.info, engine)


def ids_of(tokens: Tokens, text: str) -> tuple[int, ...]:
    """Ids of a whole text in which control tokens are meant."""
    return tuple(tokens.tokenize(text, parse_special=True))


# What is scored


def test_picos_span_is_its_template_then_the_response_then_the_end(pico: Tokens) -> None:
    found = span(pico, PICO, "Hello", "Good day")
    assert found.prefix_ids == ids_of(pico, "<|user|>\nHello<|end|>\n<|assistant|>\n")
    assert found.response_ids == ids_of(pico, "Good day<|end|>")
    assert (found.n_end, found.template, found.agrees_jointly) == (1, "own", True)


def test_an_unfinished_response_has_no_end(pico: Tokens) -> None:
    found = span(pico, PICO, "Hello", "Good day", finished=False)
    assert found.response_ids == found.text_ids == ids_of(pico, "Good day")
    assert found.n_end == 0


@pytest.mark.parametrize("vocabulary", SMALL)
@pytest.mark.parametrize("template", BUILT_IN)
def test_the_prefix_has_transformers_ids(small: dict[str, Tokens], vocabulary: str, template: str) -> None:
    expected = golden(vocabulary)["ids"][template]
    for case, messages in CONVERSATIONS.items():
        if messages[-1]["role"] == "user":
            found = span(small[vocabulary], policy(template), messages, "x")
            ids = found.prefix_ids
            assert [len(ids), digest(ids), list(ids[:24])] == expected[case], case


@pytest.mark.parametrize("vocabulary", SMALL)
def test_prefix_response_and_end_are_transformers_ids_of_the_whole_conversation(
    small: dict[str, Tokens], vocabulary: str
) -> None:
    """Llama 3 writes nothing after the end of a turn, so all three together are what the template gives."""
    expected = golden(vocabulary)["ids"]["llama3"]["ends with assistant"]
    found = span(small[vocabulary], policy("llama3"), *(turn["content"] for turn in talk("Hi", "Hello there")))
    ids = (*found.prefix_ids, *found.response_ids)
    assert [len(ids), digest(ids), list(ids[:24])] == expected


def test_a_system_prompt_is_the_conversations_first_message(small: dict[str, Tokens]) -> None:
    expected = golden("bpe")["ids"]["chatml"]["system"]
    ids = span(small["bpe"], policy("chatml", "You are brief."), "Hello!", "x").prefix_ids
    assert [len(ids), digest(ids), list(ids[:24])] == expected


@pytest.mark.parametrize("vocabulary", SMALL)
@pytest.mark.parametrize(
    ("template", "end"),
    [("llama3", "<|eot_id|>"), ("chatml", "<|im_end|>"), ("llama2", "</s>"), ("pico", "<|end|>"), ("plain", "</s>")],
)
def test_the_end_is_the_first_control_token_after_the_assistants_words_or_else_eos(
    small: dict[str, Tokens], vocabulary: str, template: str, end: str
) -> None:
    tokens = small[vocabulary]
    assert span(tokens, policy(template), "Hi", "x").response_ids[-1] == tokens.info.special_tokens[end]


def test_a_model_without_template_and_eos_has_no_end() -> None:
    tokens = fake(control=("<s>",))
    found = span(tokens, policy(), "Hi", " there")
    assert (found.n_end, found.response_ids) == (0, tuple(b" there"))


# Without a template


def test_without_a_template_the_prompt_is_continued_as_it_is(small: dict[str, Tokens]) -> None:
    tokens = small["spm"]
    found = span(tokens, policy(), "Once upon", " a time")
    assert found.template is None
    assert found.prefix_ids == (tokens.info.bos_id, *tokens.tokenize("Once upon"))
    assert found.response_ids[-1] == tokens.info.eos_id
    assert found.prefix_ids + found.text_ids == (tokens.info.bos_id, *tokens.tokenize("Once upon a time"))
    assert found.agrees_jointly


@pytest.mark.parametrize(
    ("prompt", "system_prompt", "what"),
    [(talk("Hi"), None, "several messages"), ("Hi", "Be brief.", "a system prompt")],
)
def test_without_a_template_no_conversation_is_made_up(
    small: dict[str, Tokens], prompt: Any, system_prompt: str | None, what: str
) -> None:
    with pytest.raises(TemplateMissing, match=what):
        span(small["bpe"], policy(system_prompt=system_prompt), prompt, "x")


# The border between prompt and response


def test_no_space_is_put_in_front_of_a_sentencepiece_response(small: dict[str, Tokens]) -> None:
    tokens = small["spm"]
    for response in ("there", " there", "  there", "\nthere", "\n\n\n", "é", " "):
        found = span(tokens, policy("chatml"), "Hi", response, finished=False)
        assert b"".join(tokens.token_bytes(id) for id in found.response_ids).decode() == response


def test_tokens_that_would_reach_over_the_border_are_said(small: dict[str, Tokens]) -> None:
    """A response that goes on in the middle of a word: in one go, the word is one token."""
    tokens = small["bpe"]
    words = (tokens.token_bytes(id).decode("utf-8", "replace") for id in range(tokens.info.n_vocab))
    whole = next(word for word in words if len(word) > 1 and word.isalpha() and len(tokens.tokenize(word)) == 1)
    found = span(tokens, policy(), whole[:1], whole[1:])
    assert not found.agrees_jointly
    assert found.text_ids == tuple(tokens.tokenize(whole[1:]))
    assert span(tokens, policy(), whole, " x").agrees_jointly


fragments = st.sampled_from([*CONTROL, *(s[:n] for s in CONTROL for n in (1, 2, 5)), *(s[1:] for s in CONTROL)])
contents = st.lists(fragments | st.text(st.characters(exclude_characters="▁", codec="utf-8"), max_size=6), max_size=8)


@given(vocabulary=st.sampled_from(SMALL), template=st.sampled_from([None, *BUILT_IN]), said=contents.map("".join))
@settings(max_examples=150, deadline=None)
def test_a_response_is_spelled_by_its_tokens_and_has_no_control_token_but_the_end(
    small: dict[str, Tokens], vocabulary: str, template: str | None, said: str
) -> None:
    tokens = small[vocabulary]
    if not said:
        return
    found = span(tokens, policy(template), "Hi", said)
    assert b"".join(tokens.token_bytes(id, special=True) for id in found.text_ids).decode() == said
    assert not set(found.text_ids) & set(tokens.info.special_tokens.values())
    assert found.prefix_ids == span(tokens, policy(template), "Hi", "other").prefix_ids


def test_a_vocabulary_that_merges_its_way_to_a_control_token_is_cut_off() -> None:
    tokens = fake(careless=True)
    found = span(tokens, policy("pico"), "<|end|>", "a<|end|>b")
    assert found.text_ids == tuple(b"a<|end|>b")
    assert [id for id in found.prefix_ids if id > 255].count(tokens.info.special_tokens["<|end|>"]) == 1


def test_a_tokeniser_that_changes_the_text_is_refused() -> None:
    class Composing(FakeEngine):
        def tokenize(self, text: str, *, parse_special: bool = False) -> list[int]:
            return super().tokenize(text.replace("e\u0301", "é"), parse_special=parse_special)

    engine = Composing()
    tokens = Tokens(engine.info, engine)
    assert span(tokens, policy(), "Hi", "café").text_ids == tuple("café".encode())
    with pytest.raises(InputError, match="tokeniser changes the response"):
        span(tokens, policy(), "Hi", "cafe\u0301")


def test_sentencepiece_has_no_word_for_its_own_space(small: dict[str, Tokens]) -> None:
    assert span(small["bpe"], policy(), "Hi", "▁").text_ids
    with pytest.raises(InputError, match="tokeniser changes the response"):
        span(small["spm"], policy(), "Hi", "▁")


def test_a_megabyte_is_a_response_like_any_other(pico: Tokens) -> None:
    response = "<|end|> lorem ipsum " * 52_000
    found = span(pico, PICO, "Hi", response)
    assert len(response) > 10**6
    assert pico.detokenize(found.text_ids) == response


# Ids that were given


def test_given_ids_win_over_the_text(pico: Tokens) -> None:
    letters = [id for letter in "Good" for id in pico.tokenize(letter)]
    assert tuple(letters) != tuple(pico.tokenize("Good"))
    found = span(pico, PICO, "Hi", "Good", response_ids=letters)
    assert found.text_ids == tuple(letters)
    assert (found.agrees_jointly, found.matches_text) == (False, True)
    other = span(pico, PICO, "Hi", "Bad", response_ids=pico.tokenize("Good"))
    assert (other.agrees_jointly, other.matches_text) == (True, False)
    assert span(pico, PICO, "Hi", None, response_ids=letters).matches_text


def test_an_end_among_the_given_ids_is_the_end(pico: Tokens) -> None:
    ids, end = pico.tokenize("Good"), pico.info.special_tokens["<|end|>"]

    def scored(given: Sequence[int], *, finished: bool) -> Span:
        return span(pico, PICO, "Hi", None, response_ids=given, finished=finished)

    assert scored([*ids, end], finished=True) == scored(ids, finished=True) == span(pico, PICO, "Hi", "Good")
    assert scored([*ids, end], finished=False) == scored(ids, finished=False)
    other = next(id for id in pico.info.stop_ids if id != end) if len(pico.info.stop_ids) > 1 else end
    assert scored([*ids, other], finished=True).response_ids == (*ids, other)


def test_half_a_character_can_be_given_as_ids(pico: Tokens) -> None:
    half = pico.tokenize("é")[:1]
    assert b"".join(map(pico.token_bytes, half)) != "é".encode()
    found = span(pico, PICO, "Hi", None, response_ids=half, finished=False)
    assert (found.response_ids, found.agrees_jointly) == (tuple(half), False)


# What is refused


@pytest.mark.parametrize("finished", [True, False])
def test_an_empty_response_is_refused(pico: Tokens, finished: bool) -> None:
    with pytest.raises(EmptyResponse):
        span(pico, PICO, "Hi", "", finished=finished)
    for ids in ([], [pico.info.special_tokens["<|end|>"]]):
        with pytest.raises(EmptyResponse):
            span(pico, PICO, "Hi", None, response_ids=ids, finished=finished)


@pytest.mark.parametrize(
    ("prompt", "response", "ids", "said"),
    [
        ("", "x", None, "prompt is empty"),
        ([], "x", None, "conversation is empty"),
        ([{"role": "robot", "content": "x"}], "x", None, "robot"),
        (7, "x", None, "list of messages"),
        ("\udcff", "x", None, "Unicode"),
        ("Hi", "a\udcff", None, "Unicode"),
        ("Hi", None, None, "NoneType"),
        ("Hi", b"x", None, "bytes"),
        ("Hi", None, [10**6], "outside the vocabulary"),
        ("Hi", None, [-1], "outside the vocabulary"),
        ("Hi", None, ["a"], "integers"),
        ("Hi", None, [1.5], "integers"),
    ],
)
def test_what_is_no_prompt_or_response_is_refused(
    pico: Tokens, prompt: Any, response: Any, ids: Any, said: str
) -> None:
    with pytest.raises(InputError, match=said):
        span(pico, PICO, prompt, response, response_ids=ids)


def test_two_system_prompts_are_refused(pico: Tokens) -> None:
    with pytest.raises(InputError, match="system message"):
        span(pico, policy(system_prompt="Be brief."), talk("Hi", system="Be long."), "x")


def test_a_template_that_leaves_the_system_prompt_out_is_refused() -> None:
    deaf = "{% for m in messages if m.role != 'system' %}{{ m.content }}{% endfor %}"
    with pytest.raises(ConfigError, match="leaves the system prompt of policy 'p' out"):
        span(fake(deaf), policy(system_prompt="Be brief."), "Hi", "x")


def test_an_unknown_template_is_refused(pico: Tokens) -> None:
    with pytest.raises(TemplateMissing, match="lama3"):
        span(pico, policy("lama3"), "Hi", "x")


def test_a_policy_is_the_same_one_tomorrow() -> None:
    """A template that writes today's date, as Llama 3's does."""
    dated = "{{ strftime_now('%d %b %Y') }}{% for m in messages %} {{ m.content }}{% endfor %}"
    tokens = fake(dated)

    def written(policy: Policy) -> str:
        return tokens.detokenize(span(tokens, policy, "Hi", "x").prefix_ids)

    assert written(policy()) == "26 Jul 2024 Hi"
    assert written(replace(policy(), date="2025-01-02")) == "02 Jan 2025 Hi"


def test_a_model_has_the_same_spans_in_every_format(tiny_gguf: Path, tmp_path: Path) -> None:
    convert(tiny_gguf, tmp_path / "folder", to="safetensors")
    found = []
    for provider, path in (("llama_cpp", tiny_gguf), ("jax", tiny_gguf), ("jax", tmp_path / "folder")):
        of_model = Policy("p", provider, str(path), system_prompt="Be brief.", options={"n_ctx": 100})
        with open_tokens(of_model) as tokens:
            assert tokens.info.n_ctx == 100
            found.append([span(tokens, of_model, text, text) for text in ("Hello world", "<|end|>", " é\n\n", "👩‍👧")])
    assert found[0] == found[1] == found[2]


@pytest.mark.parametrize("provider", ["jax", "transformers"])
def test_a_context_that_is_no_number_is_refused(tiny_gguf: Path, provider: str) -> None:
    with pytest.raises(ConfigError, match="n_ctx must be a whole number above 0, not 'long'"):
        open_tokens(make_policy("p", {"provider": provider, "model": str(tiny_gguf), "n_ctx": "long"}))
