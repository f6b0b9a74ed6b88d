"""Chat models that run elsewhere, behind real HTTP servers."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest

import llamalab
from llamalab.engine import Delta, Reply, SamplingParams, Usage
from llamalab.engines import REMOTE, load
from llamalab.engines.remote import RemoteChat
from llamalab.engines.remote_providers import PROVIDERS
from llamalab.errors import ConfigError, ContextOverflow, LlamalabError, ProviderError, ProviderUnavailable, SchemaError
from llamalab.rlm.grammar import turn_schema
from tests.chat_servers import CANARY, SENTENCE, Answer, Answering, Asked, ChatServer, chat_server, ollama, openai

QUESTION = [{"role": "user", "content": "How many words are here?"}]
GREEDY = SamplingParams(max_tokens=20, temperature=0.0)
SCHEMA = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
KINDS: dict[str, Callable[..., Answering]] = {
    "ollama": ollama,
    "openai": openai,
    "deepseek": lambda *text, **settings: openai(*text, deepseek=True, **settings),
}


@pytest.fixture(autouse=True)
def keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEEPSEEK_API_KEY", "sk-secret")
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL", "OLLAMA_HOST", "OLLAMA_API_KEY"):
        monkeypatch.delenv(name, raising=False)


def chat(provider: str, url: str, **options: Any) -> RemoteChat:
    given = {"retries": 0, "backoff": 0.01, **options}
    model = llamalab.chat_model(f"{provider}:m", base_url=url, **given)
    assert isinstance(model, RemoteChat)
    return model


@pytest.fixture
def serve() -> Iterator[Callable[[Answering], ChatServer]]:
    servers: list[ChatServer] = []

    def start(answer: Answering) -> ChatServer:
        servers.append(ChatServer(answer))
        return servers[-1]

    yield start
    for server in servers:
        server.stop()


def test_every_remote_provider_is_known_to_the_loader() -> None:
    assert set(REMOTE) == set(PROVIDERS)


@pytest.mark.parametrize(
    ("provider", "usage"),
    [
        ("ollama", Usage(fresh=15, output=5)),
        ("openai", Usage(fresh=12, cached=3, output=5, reasoning=1)),
        ("deepseek", Usage(fresh=11, cached=4, output=5, reasoning=1)),
    ],
)
def test_a_reply_says_what_it_used(provider: str, usage: Usage) -> None:
    with chat_server(KINDS[provider]()) as (url, _):
        reply = chat(provider, url).chat(QUESTION, GREEDY)
    assert (reply.text, reply.finish_reason, reply.usage) == (SENTENCE, "stop", usage)


@pytest.mark.parametrize("provider", KINDS)
def test_a_stream_is_the_reply_in_pieces(provider: str) -> None:
    with chat_server(KINDS[provider]()) as (url, _):
        *pieces, reply = chat(provider, url).stream(QUESTION, GREEDY)
    assert [piece.text for piece in pieces if isinstance(piece, Delta)] == [f"{word} " for word in SENTENCE.split()]
    assert isinstance(reply, Reply)
    assert (reply.text, reply.finish_reason, reply.usage.output) == (f"{SENTENCE} ", "stop", 5)


def test_ollama_is_told_everything_that_it_would_choose_itself() -> None:
    params = SamplingParams(max_tokens=7, temperature=0.5, seed=3, stop=("END",))
    with chat_server(ollama()) as (url, asked):
        chat("ollama", url).chat(QUESTION, params)
    body = asked[0].body
    assert (asked[0].path, body["stream"], body["truncate"]) == ("/api/chat", False, False)
    options = {"num_ctx": 8192, "num_predict": 7, "temperature": 0.5, "top_k": 0, "top_p": 1.0, "min_p": 0.0}
    assert body["options"].items() >= {**options, "repeat_penalty": 1.0, "seed": 3, "stop": ["END"]}.items()


@pytest.mark.parametrize(
    ("given", "context", "expected"), [(None, 131_072, 16_384), (32_768, 131_072, 32_768), (None, 2048, 2048)]
)
def test_ollama_gets_a_context_of_a_size_that_somebody_chose(given: int | None, context: int, expected: int) -> None:
    with chat_server(ollama(context=context)) as (url, asked):
        model = chat("ollama", url, n_ctx=given)
        model.chat(QUESTION)
    assert asked[0].body["options"] == {"num_ctx": expected}
    assert model.info.context_length == expected


def test_what_a_server_tells_of_its_context_is_believed() -> None:
    with chat_server(openai(context=4096)) as (url, _):
        assert chat("openai", url).info.context_length == 4096


@pytest.mark.parametrize(("provider", "header"), [("deepseek", "Bearer sk-secret"), ("ollama", None)])
def test_a_key_comes_from_the_environment(provider: str, header: str | None) -> None:
    with chat_server(KINDS[provider]()) as (url, asked):
        chat(provider, url).chat(QUESTION, GREEDY)
    assert asked[0].headers.get("Authorization") == header


def test_a_key_is_in_no_message_and_no_picture_of_the_model() -> None:
    said = Answer({"error": {"message": "Incorrect API key: sk-secret"}}, 401)
    with chat_server(lambda _: said) as (url, _):
        model = chat("deepseek", url)
        with pytest.raises(ProviderError, match="refuses the key in DEEPSEEK_API_KEY") as caught:
            model.chat(QUESTION, GREEDY)
    assert "sk-secret" not in f"{caught.value!r}{vars(model)}{vars(model._connection)}"


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"api_key": "sk-123"}, "does not belong"),
        ({"base_ulr": "x"}, "Did you mean 'base_url'"),
        ({"base_url": "localhost:11434"}, "must begin with http"),
        ({"base_url": "http://me:secret@host"}, "name or password"),
        ({"n_ctx": 0}, "n_ctx"),
        ({"timeout": -1}, "timeout must be"),
        ({"schema_support": "some"}, "schema_support"),
        ({"template": "llama3"}, "leave template out"),
    ],
)
def test_an_option_that_cannot_be_is_refused_without_its_value_if_that_is_secret(
    options: dict[str, Any], says: str
) -> None:
    with pytest.raises(ConfigError, match=says) as caught:
        llamalab.chat_model("ollama:m", **options)
    assert "sk-123" not in str(caught.value)
    assert "secret" not in str(caught.value)


def test_a_missing_key_is_said_before_anything_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DEEPSEEK_API_KEY")
    with pytest.raises(ProviderError, match="set the environment variable DEEPSEEK_API_KEY"):
        llamalab.chat_model("deepseek:deepseek-chat")
    with pytest.raises(ProviderError, match="set the environment variable OPENAI_API_KEY"):
        llamalab.chat_model("openai:gpt")


@pytest.mark.parametrize(
    ("variable", "address"),
    [
        ("", "http://localhost:11434"),
        ("0.0.0.0", "http://localhost:11434"),
        ("box:8080", "http://box:8080"),
        ("https://box", "https://box"),
    ],
)
def test_ollamas_own_variable_says_where_it_is(variable: str, address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OLLAMA_HOST", variable)
    assert RemoteChat("ollama", "m").name == f"m at {address}"


def test_a_model_that_runs_elsewhere_is_not_loaded() -> None:
    with pytest.raises(ProviderError, match=r"runs elsewhere.*loaded by its name alone: llama3\.2:3b"):
        load("ollama:llama3.2:3b")


# --- schemas


@pytest.mark.parametrize(
    ("provider", "held", "support"),
    [("ollama", True, "exact"), ("ollama", False, "none"), ("openai", True, "exact"), ("openai", False, "none")],
)
def test_a_probe_finds_out_who_only_says_so(provider: str, held: bool, support: str) -> None:
    with chat_server(KINDS[provider](held=held)) as (url, _):
        model = chat(provider, url)
        found = model.probe()
    assert found.support == model.info.schema_support == support
    assert found.usage.output > 0


def test_deepseek_is_asked_for_json_in_words() -> None:
    with chat_server(KINDS["deepseek"]('{"n": 5}')) as (url, asked):
        model = chat("deepseek", url)
        assert model.probe().support == "json"
        reply = model.chat(QUESTION, GREEDY, schema=SCHEMA)
    assert (reply.text, reply.schema_mode) == ('{"n": 5}', "json")
    assert asked[-1].body["response_format"] == {"type": "json_object"}
    assert asked[-1].body["messages"][-1]["content"].endswith(json.dumps(SCHEMA, separators=(",", ":")))


@pytest.mark.parametrize(("provider", "field"), [("ollama", "format"), ("openai", "response_format")])
def test_a_schema_goes_to_the_server_as_it_stands(provider: str, field: str) -> None:
    with chat_server(KINDS[provider]('{"n":5}')) as (url, asked):
        reply = chat(provider, url).chat(QUESTION, GREEDY, schema=json.dumps(SCHEMA))
    sent = asked[-1].body[field]
    assert (sent if provider == "ollama" else sent["json_schema"]["schema"]) == SCHEMA
    assert asked[-1].body["messages"] == QUESTION
    assert reply.schema_mode == "exact"


def test_a_server_that_refuses_a_schema_is_asked_in_the_next_best_way_from_then_on() -> None:
    def answer(asked: Any) -> Answer:
        if asked.body.get("response_format", {}).get("type") == "json_schema":
            return Answer({"error": {"message": "response_format json_schema is not supported"}}, 400)
        return openai('{"n": 5}')(asked)

    with chat_server(answer) as (url, asked):
        model = chat("openai", url)
        replies = [model.chat(QUESTION, GREEDY, schema=SCHEMA) for _ in range(2)]
    assert [(reply.text, reply.schema_mode) for reply in replies] == [('{"n": 5}', "json")] * 2
    tried = [each.body["response_format"]["type"] for each in asked]
    assert tried == ["json_schema", "json_schema", "json_object", "json_object", "json_object"]


COMMANDS = turn_schema(variables=("_", "hits"))


def test_a_server_of_strict_schemas_gets_them_in_its_form_and_its_answer_comes_back_in_ours() -> None:
    find = {"thought": "é", "op": "find", "text": "code", "how": None, "on": None, "store": None}
    said = json.dumps({"reply": find})
    with chat_server(openai(said, strict=True)) as (url, asked):
        model = chat("openai", url)
        found = model.probe()
        reply = model.chat(QUESTION, GREEDY, schema=COMMANDS)
        *pieces, last = model.stream(QUESTION, GREEDY, schema=COMMANDS)
    assert (found.support, found.said) == (
        "exact",
        "the server holds every answer to the schema, put in the form that it takes.",
    )
    assert reply.text == '{"thought": "é", "op": "find", "text": "code"}'
    assert isinstance(last, Reply)
    assert [piece.text for piece in pieces if isinstance(piece, Delta)] == [last.text] == [reply.text]
    assert reply.schema_mode == "json"  # the greatest lengths had to be left out
    assert [each.body["response_format"]["type"] for each in asked] == ["json_schema"] * 4
    assert asked[-1].body["messages"] == QUESTION


def test_a_part_of_a_schema_that_is_called_size_is_no_conversation_that_is_too_long() -> None:
    said = Answer({"error": {"message": "Invalid schema for response_format: In context=('size',), 'x' is not"}}, 400)

    def answer(asked: Asked) -> Answer:
        return openai('{"n": 5}')(asked) if asked.body["response_format"]["type"] == "json_object" else said

    with chat_server(answer) as (url, _):
        assert chat("openai", url, n_ctx=100).chat(QUESTION, GREEDY, schema=SCHEMA).schema_mode == "json"


def test_a_bound_that_the_strict_form_keeps_is_held_exactly() -> None:
    schema = {"type": "object", "properties": {"n": {"type": "integer", "minimum": 1}, "why": {"type": "string"}}}
    with chat_server(openai('{"n": 5, "why": null}', strict=True)) as (url, _):
        reply = chat("openai", url).chat(QUESTION, GREEDY, schema=schema)
    assert (reply.text, reply.schema_mode) == ('{"n": 5}', "exact")


def test_a_schema_without_a_strict_form_is_asked_for_in_words_and_the_next_is_not() -> None:
    anything = {"type": "object", "additionalProperties": {"type": "integer"}}
    with chat_server(openai('{"n": 5}', strict=True)) as (url, asked):
        model = chat("openai", url)
        modes = [model.chat(QUESTION, GREEDY, schema=schema).schema_mode for schema in (anything, SCHEMA)]
    assert modes == ["json", "exact"]
    assert [each.body["response_format"]["type"] for each in asked[2:]] == ["json_object", "json_schema"]
    assert '"additionalProperties":{"type":"integer"}' in asked[2].body["messages"][-1]["content"]


def test_a_strict_stream_that_is_cut_off_gives_what_came() -> None:
    with chat_server(openai('{"n": 5}', strict=True, reason="length")) as (url, _):
        model = chat("openai", url)
        *pieces, last = model.stream(QUESTION, GREEDY, schema={"anyOf": [SCHEMA]})
    assert isinstance(last, Reply)
    assert "".join(piece.text for piece in pieces if isinstance(piece, Delta)) == last.text == '{"n": 5} '
    assert last.finish_reason == "length"


def test_an_answer_that_a_strict_server_did_not_hold_is_not_called_exact() -> None:
    with chat_server(openai('{"n": 5}', strict=True)) as (url, _):
        reply = chat("openai", url).chat(QUESTION, GREEDY, schema={"anyOf": [SCHEMA]})
    assert (reply.text, reply.schema_mode) == ('{"n": 5}', "json")


def test_openai_itself_is_asked_in_the_strict_form_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    server = RemoteChat("openai", "gpt", n_ctx=100)._server
    assert server.asked(QUESTION, GREEDY, SCHEMA).means == "strict"


@pytest.mark.parametrize("stream", [False, True])
def test_a_reply_that_is_no_json_does_not_claim_a_schema(stream: bool) -> None:
    with chat_server(ollama()) as (url, _):
        model = chat("ollama", url, schema_support="exact")
        *_, reply = model.stream(QUESTION, GREEDY, schema=SCHEMA) if stream else [model.chat(QUESTION, schema=SCHEMA)]
    assert isinstance(reply, Reply)
    assert reply.schema_mode == "none"


def test_a_probe_is_made_once_and_its_tokens_are_told() -> None:
    with chat_server(ollama('{"n": 5}')) as (url, asked):
        model = chat("ollama", url)
        used = [model.chat(QUESTION, GREEDY, schema=SCHEMA).usage for _ in range(2)]
    assert len(asked) == 3
    assert used[0].output > used[1].output


def test_a_model_that_has_one_temperature_can_be_probed() -> None:
    only = {"temperature": "Unsupported value: 'temperature' does not support 0 with this model."}
    with chat_server(openai('{"n": 5}', strict=True, refuses=only)) as (url, _):
        reply = chat("openai", url).chat(QUESTION, SamplingParams(max_tokens=20), schema=SCHEMA)
    assert (reply.text, reply.schema_mode) == ('{"n": 5}', "exact")


def test_a_field_that_a_server_does_not_know_is_left_out_where_that_changes_nothing() -> None:
    refuses = {
        "top_k": "Unrecognized request argument supplied: top_k",
        "max_tokens": "use max_completion_tokens instead",
    }
    with chat_server(openai(refuses=refuses)) as (url, asked):
        model = chat("openai", url)
        model.chat(QUESTION, GREEDY)
        model.chat(QUESTION, GREEDY)
        with pytest.raises(ProviderError, match="top_k"):
            model.chat(QUESTION, SamplingParams(top_k=40))
    assert [sorted({"top_k", "max_tokens", "max_completion_tokens"} & set(each.body)) for each in asked[2:4]] == [
        ["max_completion_tokens"]
    ] * 2


def test_a_way_to_draw_that_deepseek_lacks_is_refused() -> None:
    with pytest.raises(ConfigError, match="no min_p"):
        RemoteChat("deepseek", "m").chat(QUESTION, SamplingParams(min_p=0.1))


@pytest.mark.parametrize("schema", ["{", "[1]", '"x"'])
def test_a_schema_that_is_none_is_an_error(schema: str) -> None:
    with pytest.raises(SchemaError):
        RemoteChat("ollama", "m", n_ctx=100).chat(QUESTION, schema=schema)


# --- what goes wrong


LONG = [{"role": "user", "content": "word " * 3000}]


@pytest.mark.parametrize("stream", [False, True])
def test_a_conversation_that_ollama_has_cut_is_an_error_and_no_answer(stream: bool) -> None:
    with chat_server(ollama(reads=1000)) as (url, _):
        model = chat("ollama", url)
        with pytest.raises(ContextOverflow, match=r"read only 1,010 tokens") as caught:
            _ = list(model.stream(LONG, GREEDY)) if stream else model.chat(LONG, GREEDY)
    assert (caught.value.needed, caught.value.available) == (2250, 1010)


def test_a_conversation_that_cannot_fit_is_not_sent() -> None:
    with chat_server(ollama(context=1024)) as (url, asked), pytest.raises(ContextOverflow):
        chat("ollama", url).chat(LONG, GREEDY)
    assert asked == []


@pytest.mark.parametrize(
    "words",
    [
        "the request exceeds the available context size, try increasing it",
        "This model's maximum context length is 4096 tokens.",
        "the input length exceeds the context length",
    ],
)
def test_a_servers_own_word_that_it_is_too_long_is_an_overflow(words: str) -> None:
    with chat_server(lambda _: Answer({"error": words}, 400)) as (url, _), pytest.raises(ContextOverflow):
        chat("ollama", url, n_ctx=4096).chat(QUESTION, GREEDY)


@pytest.mark.parametrize("provider", ["ollama", "openai"])
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (Answer({"error": "busy"}, 503), "answers 503"),
        (Answer(b"<html>"), r"does not answer with JSON|no JSON|broke off"),
        (Answer(b'{"choices": [], "done": true}', cut=9), "broke"),
        (Answer([]), "another shape|broke off"),
        (Answer({"done": False, "message": {"content": "half of"}}), "broke off|no choices"),
        (Answer("text"), "no object|broke off|no JSON object"),
        (Answer({"error": "out of memory"}), "gave up: out of memory|broke off"),
        (Answer(b"9" * 6000), "does not answer with JSON|no JSON|broke off"),
        (Answer(b"[" * 100_000), "does not answer with JSON|no JSON|broke off"),
        (Answer(b'{"a": NaN}' * 100_000), "does not answer with JSON|no JSON|broke off"),
        (
            Answer({"done": True, "message": {"content": 3}, "choices": [{"message": {"content": 3}}]}),
            "no text|no ollama|broke off",
        ),
    ],
)
def test_what_is_no_answer_is_one_typed_message(provider: str, answer: Answer, says: str, stream: bool) -> None:
    with chat_server(lambda _: answer) as (url, _):
        model = chat(provider, url, n_ctx=100)
        with pytest.raises(ProviderError, match=says):
            _ = list(model.stream(QUESTION, GREEDY)) if stream else model.chat(QUESTION, GREEDY)


@pytest.mark.parametrize("provider", KINDS)
def test_an_empty_answer_is_an_error(provider: str) -> None:
    with (
        chat_server(KINDS[provider](" \n")) as (url, _),
        pytest.raises(ProviderUnavailable, match="empty text") as caught,
    ):
        chat(provider, url).chat(QUESTION, GREEDY)
    assert caught.value.usage is not None


def test_an_answer_that_ran_out_of_tokens_says_so() -> None:
    with chat_server(ollama("", reason="length", thinking="so much to think")) as (url, _):
        reply = chat("ollama", url).chat(QUESTION, GREEDY)
    assert (reply.text, reply.finish_reason, reply.usage.reasoning) == ("", "length", 4)


def test_an_answer_without_end_is_cut_where_it_should_have_been() -> None:
    with chat_server(ollama("x" * 1_000_000)) as (url, _):
        reply = chat("ollama", url).chat(QUESTION, GREEDY)
    assert (len(reply.text), reply.finish_reason) == (20 * 256, "length")


@pytest.mark.parametrize(
    ("reason", "kind"), [("content_filter", ProviderError), ("insufficient_system_resource", ProviderUnavailable)]
)
def test_an_answer_that_was_stopped_is_an_error(reason: str, kind: type[LlamalabError]) -> None:
    with chat_server(openai(reason=reason)) as (url, _), pytest.raises(kind):
        chat("openai", url).chat(QUESTION, GREEDY)


def test_a_server_that_is_down_was_sent_nothing(serve: Callable[[Answering], ChatServer]) -> None:
    server = serve(ollama())
    model = chat("ollama", server.url)
    server.stop()
    with pytest.raises(ProviderUnavailable, match="cannot be reached") as caught:
        model.chat(QUESTION, GREEDY)
    assert not caught.value.sent
    server.start()
    assert model.chat(QUESTION, GREEDY).text == SENTENCE


def test_a_server_killed_over_an_answer_is_an_error_and_one_that_may_have_cost(
    serve: Callable[[Answering], ChatServer],
) -> None:
    server = serve(ollama(pause=5.0))
    threading.Timer(0.2, server.stop).start()
    with pytest.raises(ProviderUnavailable, match="connection broke") as caught:
        chat("ollama", server.url).chat(QUESTION, GREEDY)
    assert caught.value.sent


def test_a_stream_that_ends_too_early_is_an_error() -> None:
    lines = [b'{"message":{"content":"There "},"done":false}\n']
    with chat_server(lambda _: Answer(lines)) as (url, _):
        events = chat("ollama", url, n_ctx=100).stream(QUESTION, GREEDY)
        assert next(events) == Delta("There ")
        with pytest.raises(ProviderUnavailable, match="broke off"):
            next(events)


def test_a_request_that_failed_is_sent_again(serve: Callable[[Answering], ChatServer]) -> None:
    tries: list[int] = []

    def answer(asked: Any) -> Answer:
        if asked.path == "/api/chat":
            tries.append(1)
        return Answer({"error": "busy"}, 429, headers={"Retry-After": "0"}) if len(tries) == 1 else ollama()(asked)

    assert chat("ollama", serve(answer).url, retries=1).chat(QUESTION, GREEDY).text == SENTENCE


@pytest.mark.parametrize("stream", [False, True])
def test_a_cancelled_call_does_not_wait_for_the_answer(serve: Callable[[Answering], ChatServer], stream: bool) -> None:
    cancel, gate, answered = threading.Event(), threading.Event(), []

    def answer(asked: Asked) -> Answer:
        if not answered:
            cancel.set()
            gate.wait(20)
            answered.append(asked)
        return ollama()(asked)

    model = chat("ollama", serve(answer).url, n_ctx=100)
    if stream:
        *_, reply = model.stream(QUESTION, GREEDY, cancel=cancel)
    else:
        reply = model.chat(QUESTION, GREEDY, cancel=cancel)
    assert isinstance(reply, Reply)
    assert (reply.finish_reason, reply.text, answered) == ("cancelled", "", [])
    assert reply.usage.fresh > 0
    gate.set()
    assert model.chat(QUESTION, GREEDY).text == SENTENCE


def test_a_stream_that_is_cancelled_keeps_what_came() -> None:
    cancel = threading.Event()
    with chat_server(ollama(pause=0.05)) as (url, _):
        events = chat("ollama", url, n_ctx=100).stream(QUESTION, GREEDY, cancel=cancel)
        first = next(events)
        cancel.set()
        *_, reply = events
    assert isinstance(reply, Reply)
    assert reply.finish_reason == "cancelled"
    assert first == Delta("There ")
    assert reply.text.startswith("There ")


@pytest.mark.parametrize("stream", [False, True])
def test_a_deadline_ends_a_call(stream: bool) -> None:
    with chat_server(ollama(pause=0.15)) as (url, _):
        model = chat("ollama", url, n_ctx=100)
        deadline = time.monotonic() + (0.4 if stream else 0.1)
        if stream:
            *pieces, reply = model.stream(QUESTION, GREEDY, deadline=deadline)
        else:
            pieces, reply = [], model.chat(QUESTION, GREEDY, deadline=deadline)
    assert isinstance(reply, Reply)
    assert reply.finish_reason == "deadline"
    assert reply.text == "".join(piece.text for piece in pieces if isinstance(piece, Delta))


def test_a_llama_server_taken_for_ollama_is_recognised() -> None:
    answer = openai()
    with (
        chat_server(lambda asked: answer(replace(asked, path="/chat/completions"))) as (url, _),
        pytest.raises(ProviderError, match='Set provider_type to "openai"'),
    ):
        chat("ollama", url, n_ctx=100).chat(QUESTION, GREEDY)


def test_a_model_that_ollama_does_not_have_is_fetched_by_a_command() -> None:
    said = Answer({"error": "model 'm' not found"}, 404)
    with (
        chat_server(lambda _: said) as (url, _),
        pytest.raises(ProviderError, match="`ollama pull m` fetches it"),
    ):
        chat("ollama", url).chat(QUESTION, GREEDY)


def test_tokens_are_bounded_from_above() -> None:
    model = RemoteChat("ollama", "m")
    count = model.count_tokens([{"role": "user", "content": "é" * 100}])
    assert (count.n >= 200, count.exact) == (True, False)


def test_two_threads_have_two_connections(serve: Callable[[Answering], ChatServer]) -> None:
    model = chat("ollama", serve(ollama(lambda asked: asked.body["messages"][0]["content"] + CANARY)).url)
    texts: dict[int, str] = {}

    def ask(number: int) -> None:
        texts[number] = model.chat([{"role": "user", "content": f"number {number}"}], GREEDY).text

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert texts == {number: f"number {number}{CANARY}" for number in range(8)}


@pytest.mark.parametrize("provider", KINDS)
def test_a_stop_string_alone_is_not_taken_for_its_letters(provider: str) -> None:
    model = chat(provider, "http://localhost:1", n_ctx=100)
    with pytest.raises(ConfigError, match="stop must be a list"):
        model.chat(QUESTION, SamplingParams(stop="END"))  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="stop must be a list"):
        model.stream(QUESTION, SamplingParams(stop="END"))  # type: ignore[arg-type]


def test_a_connection_that_was_in_use_when_all_were_closed_is_closed_after_it() -> None:
    model: list[RemoteChat] = []

    def text(_: Asked) -> str:
        model[0].close()
        return SENTENCE

    with chat_server(openai(text)) as (url, _):
        model.append(chat("openai", url, n_ctx=100))
        assert model[0].chat(QUESTION, GREEDY).text == SENTENCE
        assert not model[0]._connection._lines
