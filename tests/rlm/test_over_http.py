"""Whole runs over real HTTP servers that speak DeepSeek's and ollama's shapes, and are killed at any turn."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from llamalab import rlm
from llamalab.errors import ProviderUnavailable
from llamalab.rlm.config import load_config
from llamalab.rlm.providers import Pool, open_pool
from llamalab.rlm.replay import replay
from tests.chat_servers import Answer, Asked, ChatServer, ollama, openai
from tests.rlm.test_config import BYPASS, EXAMPLES, HYBRID

TURNS = [
    {"thought": "the errors", "op": "find", "text": "ERROR", "store": "hits"},
    {"thought": "ask of each", "op": "map", "prompt": "How many ms?", "on": "hits", "store": "times"},
    {"thought": "add them", "op": "final", "answer": "38 ms"},
]
LOG = "10:01 INFO login\n10:02 ERROR upload took 31 ms\n10:03 ERROR backup took 7 ms\n"
QUESTION = "How long did the failed operations take together?"


def root(asked: Asked) -> str:
    """The turn that follows those before it, in a code block, as models without a schema like to write."""
    said = sum(message["role"] == "assistant" for message in asked.body["messages"])
    return f"```json\n{json.dumps(TURNS[min(said, 2)])}\n```"


def sub(asked: Asked) -> str:
    return "31" if "upload" in json.dumps(asked.body) else "7"


@dataclass
class Mortal:
    """A server that hangs up at one of its requests for a chat, and is gone then.

    Attributes:
        at: the number of the request, from 0; -1: it lives.
    """

    says: Any
    at: int = -1
    server: ChatServer = field(init=False)

    def __post_init__(self) -> None:
        self.server = ChatServer(self.answer)

    def answer(self, asked: Asked) -> Answer:
        if "messages" in asked.body and len(self.server.asked) == self.at + 1:
            self.at = -1
            self.server.stop()
        return self.says(asked)


@pytest.fixture
def servers(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Mortal, Mortal]]:
    monkeypatch.setenv("DEEPSEEK_API_KEY", "sk-secret")
    both = Mortal(openai(root, deepseek=True)), Mortal(ollama(sub))
    yield both
    for each in both:
        each.server.stop()


def config_of(folder: Path, servers: tuple[Mortal, Mortal]) -> Path:
    text = HYBRID.replace("https://api.deepseek.com", servers[0].server.url)
    path = folder / "config.toml"
    path.write_text("bypass_enabled = false\n" + text.replace("http://localhost:11434", servers[1].server.url))
    (folder / "log.txt").write_text(LOG)
    return path


def run(folder: Path, servers: tuple[Mortal, Mortal], pool: Pool | None = None, **more: Any) -> rlm.Answer:
    path = config_of(folder, servers)
    return rlm.ask(QUESTION, [folder / "log.txt"], config=path, pool=pool, **more)


def test_the_guides_hybrid_runs_as_it_stands(tmp_path: Path, servers: tuple[Mortal, Mortal]) -> None:
    """But for its addresses, and for the bypass that so short a text would take."""
    journal = tmp_path / "run.jsonl"
    answer = run(tmp_path, servers, journal=journal)
    assert (answer.text, answer.complete, answer.turns, answer.sub_calls) == ("38 ms", True, 3, 2)
    assert {role: usage.cached > 0 for role, usage in answer.usage.items()} == {"root": True, "sub": False}
    assert answer.usage["root"].reasoning > 0
    seen = json.dumps([asked.body for asked in servers[1].server.asked])
    assert '"num_ctx": 8192' in seen
    assert "sk-secret" not in journal.read_text() + seen
    assert replay(journal).equal


def either(asked: Asked) -> str:
    """One model in both roles."""
    return sub(asked) if "given a task" in asked.body["messages"][0]["content"] else root(asked)


def whole_text(asked: Asked) -> str:
    """As `either`, and who is shown the whole text answers at once; no code block where a schema is held."""
    if "They stand between two lines" in asked.body["messages"][0]["content"]:
        return "38 ms"
    said = either(asked)
    return said.removeprefix("```json\n").removesuffix("\n```") if asked.body.get("format") else said


@pytest.mark.parametrize("name", EXAMPLES)
@pytest.mark.parametrize("held", [True, False])
def test_a_run_by_each_of_the_guides_examples(
    name: str, held: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With servers that hold schemas (and write no code block then), and with servers that ignore them."""
    monkeypatch.setenv("DEEPSEEK_API_KEY", "sk-secret")
    local, api = ChatServer(ollama(whole_text, held=held)), ChatServer(openai(whole_text, deepseek=True))
    text = EXAMPLES[name].replace("http://p40-server:11434", local.url).replace("http://localhost:11434", local.url)
    text = text.replace('base_url = "https://api.deepseek.com"\n', "")
    text = text.replace('"deepseek"', f'"deepseek"\nbase_url = "{api.url}"')
    (tmp_path / "config.toml").write_text("bypass_enabled = false\n" + text)
    (tmp_path / "log.txt").write_text(LOG)
    answer = rlm.ask(QUESTION, [tmp_path / "log.txt"], config=tmp_path / "config.toml")
    for server in (local, api):
        server.stop()
    assert (answer.text, answer.complete, answer.malformed) == ("38 ms", True, 0)


def padded(characters: int) -> str:
    """The log among lines that say nothing, so many characters in all."""
    filler = "10:00 INFO ping\n"
    lines = [filler] * ((characters - len(LOG)) // len(filler))
    text = "".join([*lines[: len(lines) // 2], LOG, *lines[len(lines) // 2 :]])
    return text + "." * (characters - len(text))


@pytest.fixture
def guides_servers(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], str]]:
    """Gives the guide's examples their servers: nothing but the addresses changes."""
    monkeypatch.setenv("DEEPSEEK_API_KEY", "sk-secret")
    local, api = ChatServer(ollama(whole_text)), ChatServer(openai(whole_text, deepseek=True))

    def addressed(text: str) -> str:
        text = text.replace("http://p40-server:11434", local.url).replace("http://localhost:11434", local.url)
        text = text.replace('base_url = "https://api.deepseek.com"\n', "")
        return text.replace('"deepseek"', f'"deepseek"\nbase_url = "{api.url}"')

    yield addressed
    for server in (local, api):
        server.stop()


@pytest.mark.parametrize("name", EXAMPLES)
@pytest.mark.parametrize(
    ("bypass", "characters", "mode"),
    [
        ("", len(LOG), "direct"),
        ("", 600_000, "rlm"),  # more than the window of any of them
        (BYPASS, 3_999, "direct"),
        (BYPASS, 4_000, "rlm"),
    ],
)
def test_the_guides_examples_answer_directly_where_the_guide_says_so(
    name: str, bypass: str, characters: int, mode: str, tmp_path: Path, guides_servers: Callable[[str], str]
) -> None:
    (tmp_path / "config.toml").write_text(bypass + guides_servers(EXAMPLES[name]))
    (tmp_path / "log.txt").write_text(padded(characters))
    answer = rlm.ask(QUESTION, [tmp_path / "log.txt"], config=tmp_path / "config.toml", journal=tmp_path / "run.jsonl")
    assert (answer.text, answer.complete, answer.why, answer.mode) == ("38 ms", True, "", mode)
    assert answer.turns == (1 if mode == "direct" else 3)
    assert sorted({piece.line for piece in answer.evidence}) != []
    assert replay(tmp_path / "run.jsonl").equal


@pytest.mark.parametrize(("who", "at"), [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1)])
def test_a_provider_killed_at_any_turn_and_back_again_changes_nothing(
    who: int, at: int, tmp_path: Path, servers: tuple[Mortal, Mortal], monkeypatch: pytest.MonkeyPatch
) -> None:
    back: list[int] = []

    def pause(*_: Any) -> bool:
        back.append(who)
        servers[who].server.stop()
        servers[who].server.start()
        return True

    with open_pool(load_config(config_of(tmp_path, servers))) as pool:
        pool.probe()
        for each in servers:
            each.server.asked.clear()
        servers[who].at = at
        monkeypatch.setattr(pool, "_pause", pause)
        answer = run(tmp_path, servers, pool)
    assert (answer.text, answer.complete, answer.why) == ("38 ms", True, "")
    assert back


@pytest.mark.parametrize("at", [0, 1, 2])
def test_a_root_that_stays_away_ends_the_run_which_goes_on_when_it_is_back(
    at: int, tmp_path: Path, servers: tuple[Mortal, Mortal]
) -> None:
    journal = tmp_path / "run.jsonl"
    with open_pool(load_config(config_of(tmp_path, servers))) as pool:
        pool._retries = 0
        pool.probe()
        servers[0].server.asked.clear()
        servers[0].at = at
        with pytest.raises(ProviderUnavailable):
            run(tmp_path, servers, pool, journal=journal)
        servers[0].server.start()
        pool._retries = 1  # the first call may take a connection that the old server left behind
        answer = run(tmp_path, servers, pool, resume=journal)
    assert (answer.text, answer.complete, answer.why) == ("38 ms", True, "")
    assert replay(journal).equal


@pytest.mark.parametrize("held", [True, False])
@pytest.mark.parametrize(
    "text",
    [
        "",
        " \n",
        '{"op":"find","op":"final","answer":"forged"}',
        '{"op":"slice","start":NaN}',
        '{"op":"slice","start":' + "9" * 6000 + "}",
        '{"op":"find","text":"' + "x" * 1_000_000 + '"}',
        "[" * 100_000,
        '{"thought":"half of a repl',
        '{"op":"rust_cli_intent","intent":"delete all"}',
        "\x00\ufeff",
        "I would look for ERROR first.",
    ],
    ids=["empty", "blank", "twice", "nan", "digits", "large", "deep", "half", "unknown", "control", "prose"],
)
def test_a_root_that_says_something_else_once_still_comes_to_its_answer(
    text: str, held: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replies = iter([text, *(json.dumps(turn) for turn in TURNS)])

    def says(asked: Asked) -> str:
        return next(replies) if "You answer" in asked.body["messages"][0]["content"] else sub(asked)

    server = ChatServer(ollama(says, held=held))
    (tmp_path / "config.toml").write_text(
        f'bypass_enabled = false\n[[providers]]\nprovider_type = "ollama"\nmodel = "m"\nbase_url = "{server.url}"\n'
    )
    (tmp_path / "log.txt").write_text(LOG)
    with open_pool(load_config(tmp_path / "config.toml")) as pool:
        pool.probe()
        monkeypatch.setattr(pool, "_pause", lambda *_: True)
        config = load_config(tmp_path / "config.toml")
        answer = rlm.ask(QUESTION, [tmp_path / "log.txt"], config=config, pool=pool, journal=tmp_path / "run.jsonl")
    server.stop()
    assert (answer.text, answer.complete, answer.why) == ("38 ms", True, "")
    assert answer.malformed == (0 if not text.strip() else 1)
    assert replay(tmp_path / "run.jsonl").equal
