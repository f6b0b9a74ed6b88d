"""`llamalab chat`: a pipe, a terminal, and the commands of a conversation."""

from __future__ import annotations

import json
import os
import pty
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from llamalab.cli.chat import Conversation, _read_message, run_command
from llamalab.engine import ChatInfo, Delta, Message, Reply, SamplingParams, Timings, Usage
from llamalab.errors import ConfigError, ContextOverflow, InputError
from tests.chat_servers import chat_server, ollama
from tests.cli.conftest import Cli


class Echo:
    """A chat model that repeats the last message, and remembers what it was sent."""

    info = ChatInfo("echo", "test", 100, "none")

    def __init__(self) -> None:
        self.sent: list[list[Message]] = []

    def stream(self, messages: list[Message], *_: object, **__: object) -> Iterator[Delta | Reply]:
        self.sent.append(list(messages))
        text = messages[-1]["content"]
        if text == "too long":
            raise ContextOverflow("too long", needed=2, available=1)
        yield Delta(text[:2])
        yield Delta(text[2:])
        yield Reply(text, (), "stop", Usage(), Timings(), "echo")


@pytest.fixture
def conversation() -> Conversation:
    return Conversation(Echo(), SamplingParams())  # type: ignore[arg-type]


def test_all_of_standard_input_is_one_message_and_only_the_reply_is_printed(cli: Cli, model: str) -> None:
    one = cli("chat", model, "-t", "0", "-n", "6", stdin="hello\nworld\n")
    assert one.code == 0
    assert one.err == ""
    assert one.out == cli("generate", model, "hello\nworld", "-t", "0", "-n", "6").out


def test_a_model_that_runs_elsewhere_answers_through_a_pipe(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    with chat_server(ollama("The sea is blue.")) as (url, asked):
        monkeypatch.setenv("OLLAMA_HOST", url)
        one = cli("chat", "ollama:llama3.2:3b", "-t", "0", "--n-ctx", "2048", stdin="Why?\n")
        wrong = cli("chat", "ollama:llama3.2:3b", "-g", "3", stdin="Why?\n")
    assert (one.code, one.out.strip(), one.err) == (0, "The sea is blue.", "")
    assert asked[0].body["options"].items() >= {"num_ctx": 2048, "temperature": 0.0}.items()
    assert (wrong.code, "no option 'n_gpu_layers'" in wrong.err) == (2, True)


def test_system_message_and_template_are_used(cli: Cli, model: str) -> None:
    options = ("chat", model, "-t", "0", "-n", "12")
    replies = {
        cli(*options, stdin="hello").out,
        cli(*options, "--system", "the world and her code", stdin="hello").out,
        cli(*options, "--template", "chatml", stdin="hello").out,
    }
    assert len(replies) == 3


def test_the_conversation_is_sent_with_every_message(
    conversation: Conversation, capsys: pytest.CaptureFixture[str]
) -> None:
    conversation.system = "be brief"
    conversation.say("one")
    conversation.say("two")
    assert capsys.readouterr().out == "one\ntwo\n"
    assert [m["content"] for m in conversation.model.sent[-1]] == ["be brief", "one", "one", "two"]  # type: ignore[attr-defined]


def test_a_message_that_cannot_be_answered_is_not_kept(conversation: Conversation) -> None:
    conversation.say("one")
    with pytest.raises(ContextOverflow):
        conversation.say("too long")
    assert [turn["content"] for turn in conversation.turns] == ["one", "one"]


def test_ctrl_c_ends_the_reply_and_keeps_what_was_said(
    conversation: Conversation, capsys: pytest.CaptureFixture[str]
) -> None:
    def stream(*_: object, cancel: threading.Event, **__: object) -> Iterator[Delta | Reply]:
        yield Delta("half")
        signal.raise_signal(signal.SIGINT)
        assert cancel.is_set()
        yield Reply("half", (), "cancelled", Usage(), Timings(), "echo")

    conversation.model.stream = stream  # type: ignore[method-assign]
    before = signal.getsignal(signal.SIGINT)
    assert conversation.say("go on").finish_reason == "cancelled"
    assert capsys.readouterr().out == "half\n"
    assert conversation.turns[-1]["content"] == "half"
    assert signal.getsignal(signal.SIGINT) is before


def test_reset_keeps_the_system_message_and_system_starts_afresh(conversation: Conversation) -> None:
    conversation.say("one")
    run_command(conversation, "/system  be brief")
    assert conversation.messages() == [{"role": "system", "content": "be brief"}]
    conversation.say("one")
    run_command(conversation, "/reset")
    assert conversation.messages() == [{"role": "system", "content": "be brief"}]
    run_command(conversation, "/system")
    assert conversation.messages() == []


def test_save_writes_the_conversation(conversation: Conversation, tmp_path: Path) -> None:
    conversation.say("größer")
    assert "2 messages" in run_command(conversation, f"/save {tmp_path}/talk.json")
    saved = json.loads((tmp_path / "talk.json").read_text())
    assert saved == {"model": "echo", "messages": conversation.messages()}


@pytest.mark.parametrize(
    ("line", "error"), [("/save", ConfigError), ("/save /no/such/talk.json", InputError), ("/sytem x", ConfigError)]
)
def test_commands_that_cannot_be_done(conversation: Conversation, line: str, error: type[Exception]) -> None:
    with pytest.raises(error):
        run_command(conversation, line)


def reader(*lines: str) -> Callable[[str], str]:
    left = list(lines)
    return lambda _: left.pop(0)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["hello"], "hello"),
        (["one\\", "two\\", "three"], "one\ntwo\nthree"),
        (['"""one', "", 'two"""'], "one\n\ntwo"),
        (['"""', "one", '"""'], "one"),
        (['"""one line"""'], "one line"),
    ],
)
def test_messages_of_several_lines(lines: list[str], message: str) -> None:
    assert _read_message(reader(*lines)) == message


def test_conversation_at_a_terminal(model: str, tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "llamalab", "chat", model, "-n", "4", "-t", "0"]
    env = {**os.environ, "TERM": "dumb"}
    child = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, cwd=tmp_path, env=env, close_fds=True)
    os.close(theirs)
    screen = ""
    for line in ("hello", "world", "/nonsense", "/save talk.json", "/exit"):
        screen += until_prompt(ours)
        os.write(ours, f"{line}\n".encode())
    assert child.wait(timeout=60) == 0
    os.close(ours)
    assert "context of 512" in screen
    assert "no command /nonsense" in screen
    messages = json.loads((tmp_path / "talk.json").read_text())["messages"]
    assert [message["role"] for message in messages] == ["user", "assistant", "user", "assistant"]


def until_prompt(terminal: int, prompt: str = ">>> ", patience: float = 60) -> str:
    seen, give_up = "", time.monotonic() + patience
    while not seen.endswith(prompt):
        assert time.monotonic() < give_up, seen
        if select.select([terminal], [], [], 0.1)[0]:
            seen += os.read(terminal, 4096).decode()
    return seen
