from __future__ import annotations

import json
from pathlib import Path
from random import Random

import llguidance
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llamalab.errors import InputError
from llamalab.rlm.compact import (
    COMPACT_PROMPT,
    MAX_SHOWN,
    Command,
    Count,
    Final,
    Find,
    command_schema,
    count_block,
    find_block,
    first_message,
    parse_command,
    write_command,
)
from llamalab.rlm.search import Line

GOLDEN = Path(__file__).parent.parent / "golden" / "rlm"
FACT = Line(5123, "The access code of the Blue Harbor vault is 48213.")
MENTION = Line(17, "Nobody remembers the access code of the Blue Harbor vault.")

names = st.from_regex(r"\A[a-z][a-z0-9_]{0,15}\Z")
texts = st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=200)
commands = st.one_of(
    st.builds(Find, text=texts, store=st.none() | names), st.builds(Count, on=names), st.builds(Final, answer=texts)
)


def golden(name: str) -> str:
    return (GOLDEN / name).read_text().removesuffix("\n")


def test_the_compact_protocol_has_not_changed() -> None:
    """The built-in model was trained on exactly this: who changes it trains pico again."""
    assert golden("compact_prompt.txt") == COMPACT_PROMPT
    asked = "What is the access code of the Blue Harbor vault?"
    assert first_message(asked, lines=1204, characters=48213) == golden("first_message.txt")
    assert find_block([FACT, MENTION, FACT], 3, store="hits") == golden("find_block.txt")
    fence = "0f1e2d3c4b5a69788796a5b4c3d2e1f0"
    assert find_block([FACT], 1, fence=fence) == golden("find_block_fenced.txt")
    assert (find_block([], 0), count_block(37)) == ("0 matches", "count: 37")


@pytest.mark.parametrize("line", (GOLDEN / "commands.jsonl").read_text().splitlines())
def test_written_commands_have_not_changed(line: str) -> None:
    assert write_command(parse_command(line)) == line


@given(commands)
def test_parsing_undoes_writing(command: Command) -> None:
    assert parse_command(write_command(command)) == command


@pytest.mark.parametrize(
    "text",
    [
        "",
        "find the code",
        '{"op":"grep","text":"x"}',
        '{"op":"find"}',
        '{"op":"find","text":""}',
        '{"op":"find","text":7}',
        '{"op":"find","text":"x","where":"y"}',
        '{"op":"find","text":"x","store":"No Spaces"}',
        '{"op":"count","on":"hits","what":"lines"}',
        '{"op":"final","answer":"' + "x" * 401 + '"}',
        '[{"op":"final","answer":"x"}]',
        '{"op":"final","answer":"x"} and more',
        "[" * 100_000,
    ],
)
def test_what_is_no_command_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="not a command"):
        parse_command(text)


def byte_tokenizer() -> llguidance.LLTokenizer:
    return llguidance.LLTokenizer("byte")


def walk(schema: dict[str, object], rng: Random, tokenizer: llguidance.LLTokenizer) -> bytes:
    """A random sentence of the schema's language: each byte drawn from those allowed, ends preferred."""
    grammar = llguidance.LLMatcher.grammar_from_json_schema(schema, overrides={"whitespace_flexible": False})
    matcher = llguidance.LLMatcher(tokenizer, grammar)
    said = bytearray()
    while not matcher.is_stopped():
        mask = matcher.compute_bitmask()
        allowed = [t for t in range(tokenizer.vocab_size) if mask[t // 8] >> (t % 8) & 1]
        quotes = [t for t in allowed if t == ord('"')]
        token = quotes[0] if quotes and rng.random() < 0.2 else rng.choice(allowed)
        matcher.consume_token(token)
        if token < 256:
            said.append(token)
    return bytes(said)


def test_every_sentence_of_the_schema_is_a_command() -> None:
    """Random walks through the grammar all parse, and only as what was offered."""
    tokenizer, rng = byte_tokenizer(), Random(0)
    for ops, variables in ((("find", "count", "final"), ["hits", "m"]), (("final",), None), (("find", "count"), [])):
        schema = command_schema(ops, variables)
        for _ in range(40):
            command = parse_command(walk(schema, rng, tokenizer).decode())
            assert command.op in ops
            if isinstance(command, Count):
                assert variables
                assert command.on in variables


def test_every_written_command_is_a_sentence_of_the_schema() -> None:
    """The grammar lets through what the root was taught to write."""
    grammar = llguidance.LLMatcher.grammar_from_json_schema(command_schema(), overrides={"whitespace_flexible": False})
    for line in (GOLDEN / "commands.jsonl").read_text().splitlines():
        matcher = llguidance.LLMatcher(byte_tokenizer(), grammar)
        assert matcher.consume_tokens(list(line.encode()))
        assert matcher.is_accepting()
        assert json.loads(line)


@given(st.lists(st.text(max_size=300), min_size=1, max_size=4))
def test_a_line_of_the_text_cannot_begin_a_line_of_the_block(contents: list[str]) -> None:
    """Whatever a document holds, the block has its heading and one numbered line per match, none too long."""
    block = find_block([Line(i, text) for i, text in enumerate(contents)], len(contents))
    head, *shown = block.split("\n")
    assert head == f"{len(contents)} match{'es' * (len(contents) > 1)}"
    assert len(shown) == min(2, len(contents))
    for i, line in enumerate(shown):
        assert line.startswith(f"L{i}: ")
        assert len(line) <= MAX_SHOWN + len(f"L{i}: ")
        assert line.splitlines() == [line]
