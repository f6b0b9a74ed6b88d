"""`llamalab generate`: prompts, schemas, log probabilities, one JSON document."""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.cli.conftest import Cli

PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 8}, "age": {"type": "integer", "minimum": 0, "maximum": 99}},
    "required": ["name", "age"],
    "additionalProperties": False,
}


@pytest.fixture
def schema(tmp_path: Path) -> str:
    file = tmp_path / "person.json"
    file.write_text(json.dumps(PERSON))
    return str(file)


def test_every_way_to_give_model_and_prompt_is_the_same(cli: Cli, model: str) -> None:
    options = ("-t", "0", "-n", "8")
    expected = cli("generate", model, "hello world", *options)
    assert expected.code == 0
    assert expected.out.endswith("\n")
    assert cli("generate", "-m", model, "hello world", *options) == expected
    assert cli("generate", "--model", model, "-", *options, stdin="hello world\n") == expected
    assert cli("generate", model, "-", *options, stdin="hello world\n") == expected
    assert cli("generate", "-m", model, *options, stdin="hello world") == expected


def test_one_word_is_the_prompt_of_the_built_in_model(cli: Cli, model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llamalab.checkpoints.locate.PICO", Path(model))
    result = cli("generate", "hello world", "-t", "0", "-n", "8", "--json")
    assert json.loads(result.out)["model"] == "pico"


def test_json_document_holds_the_whole_response(cli: Cli, model: str) -> None:
    result = cli("generate", model, "hello", "-n", "8", "--seed", "3", "--json", "--logprobs", "2")
    document = json.loads(result.out)
    assert result.code == 0
    assert document["seed"] == 3
    assert document["usage"]["output"] == len(document["ids"]) == len(document["logprobs"])
    assert document["finish_reason"] in {"stop", "length"}
    assert "parsed" not in document
    for entry, id in zip(document["logprobs"], document["ids"], strict=True):
        first, second = (top["logprob"] for top in entry["top"])
        assert entry["id"] == id
        assert entry["logprob"] <= first + 1e-6
        assert second <= first <= 0
        assert not math.isnan(entry["sampled_logprob"])


def test_a_seed_gives_the_same_text_again(cli: Cli, model: str) -> None:
    texts = [cli("generate", model, "hello", "-n", "16", "-t", "2", "--seed", seed).out for seed in ("1", "1", "2")]
    assert texts[0] == texts[1] != texts[2]


def test_logprobs_need_no_number(cli: Cli, model: str) -> None:
    document = json.loads(cli("generate", model, "hello", "-n", "2", "--json", "--logprobs").out)
    assert [entry["top"] for entry in document["logprobs"]] == [[]] * len(document["ids"])
    assert "log p sampled" in cli("generate", "--logprobs", model, "hello", "-n", "2").out


def test_the_prompt_is_a_users_turn_unless_raw(cli: Cli, model: str) -> None:
    def prompt_tokens(*options: str) -> int:
        usage = json.loads(cli("generate", model, "hello", "-n", "1", "--json", *options).out)["usage"]
        return int(usage["fresh"] + usage["cached"])

    assert prompt_tokens("--raw") == 2  # BOS, hello
    assert prompt_tokens() == 5  # BOS, <|user|>, hello, <|end|>, <|assistant|>
    assert prompt_tokens("--system", "world") == 8  # <|system|>, world, <|end|> as well


def test_stop_text_ends_the_response_and_is_not_part_of_it(cli: Cli, model: str) -> None:
    whole = json.loads(cli("generate", model, "hello", "-n", "24", "-t", "0", "--json").out)["text"]
    stop = whole[len(whole) // 2 :][:3]
    stopped = json.loads(cli("generate", model, "hello", "-n", "24", "-t", "0", "--json", "--stop", stop).out)
    assert stopped["text"] == whole[: whole.index(stop)]
    assert stopped["finish_reason"] == "stop"


def test_output_follows_the_schema(cli: Cli, model: str, schema: str) -> None:
    result = cli("generate", model, "who?", "--schema", schema, "--json", "--seed", "1")
    document = json.loads(result.out)
    assert result.code == 0
    assert document["schema_mode"] == "exact"
    assert document["parsed"] == json.loads(document["text"])
    assert set(document["parsed"]) == {"name", "age"}
    assert 0 <= document["parsed"]["age"] <= 99


def test_output_cut_off_under_a_schema_is_a_failed_run(cli: Cli, model: str, schema: str) -> None:
    result = cli("generate", model, "who?", "--schema", schema, "--json", "-n", "3")
    document = json.loads(result.out)
    assert result.code == 1
    assert (document["finish_reason"], document["parsed"]) == ("length", None)
    assert "not complete JSON" in result.err
    plain = cli("generate", model, "who?", "--schema", schema, "-n", "3")
    assert plain.code == 1
    with pytest.raises(json.JSONDecodeError):
        json.loads(plain.out)


def test_output_cut_off_without_a_schema_is_no_failure(cli: Cli, model: str) -> None:
    result = cli("generate", model, "hello", "-n", "3", "-t", "0", "--json")
    assert (result.code, json.loads(result.out)["finish_reason"]) == (0, "length")


def test_interrupted_output_is_still_a_whole_document(cli: Cli, model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    @contextmanager
    def interrupted() -> Iterator[threading.Event]:
        cancel = threading.Event()
        cancel.set()
        yield cancel

    monkeypatch.setattr("llamalab.cli.generate.interruptible", interrupted)
    result = cli("generate", model, "hello", "--json")
    assert (result.code, json.loads(result.out)["finish_reason"]) == (130, "cancelled")


def test_output_follows_the_grammar(cli: Cli, model: str, tmp_path: Path) -> None:
    (tmp_path / "g.gbnf").write_text('root ::= "yes" | "no"')
    assert cli("generate", model, "well?", "--grammar", "g.gbnf").out in {"yes\n", "no\n"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read: No such file"),
        (b"{'no': 1}", "line 1, column 2: not valid JSON"),
        (b"[1]", "no JSON schema"),
        (b"\xff{}", "not UTF-8"),
        (b'{"type": "nonsense"}', "schema"),
    ],
)
def test_unusable_schema_files(cli: Cli, model: str, tmp_path: Path, content: bytes | None, message: str) -> None:
    if content is not None:
        (tmp_path / "s.json").write_bytes(content)
    result = cli("generate", model, "hi", "--schema", "s.json")
    assert (result.code, result.out) == (2, "")
    assert message.lower() in result.err.lower()


def test_schema_and_grammar_exclude_each_other(cli: Cli, model: str, schema: str, tmp_path: Path) -> None:
    (tmp_path / "g.gbnf").write_text('root ::= "yes"')
    assert cli("generate", model, "hi", "--schema", schema, "--grammar", "g.gbnf").code == 2


def test_grammar_that_does_not_compile(cli: Cli, model: str, tmp_path: Path) -> None:
    (tmp_path / "g.gbnf").write_text('root ::= "unclosed')
    result = cli("generate", model, "hi", "--grammar", "g.gbnf")
    assert result.code == 2
    assert result.err.startswith("error: ")


@pytest.mark.parametrize(
    "option", [("--n-ctx", "128"), ("--n-threads", "1"), ("--type-k", "f32"), ("--load-mode", "read")]
)
def test_engine_options_reach_the_engine(cli: Cli, model: str, option: tuple[str, str]) -> None:
    assert cli("generate", model, "hello", "-n", "2", *option).code == 0


def test_a_smaller_context_holds_less(cli: Cli, model: str) -> None:
    result = cli("generate", model, "hello world " * 100, "--n-ctx", "64")
    assert result.code == 2
    assert "64" in result.err
