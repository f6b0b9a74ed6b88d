"""`llamalab chat`: a conversation at the terminal, or one message through a pipe."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from llamalab.cli.jax_options import JaxOptions
from llamalab.cli.options import EngineOptions, ModelArgument, ModelOption, SamplingOptions, expand_options
from llamalab.cli.output import check_argument, console, interruptible, print_error, read_stdin, write
from llamalab.errors import ConfigError, InputError, LlamalabError

if TYPE_CHECKING:
    from llamalab.chat import Truncate
    from llamalab.engine import ChatModel, Message, Reply, SamplingParams

INTERRUPTED = 130
_BLOCK = '"""'
_COMMANDS = """\
/system TEXT   set the system message (no text: remove it) and start afresh
/reset         forget the conversation, keep the system message
/save FILE     write the conversation as JSON
/help          this list
/exit          leave (so does Ctrl-D)
A line that ends with \\ goes on in the next; \"\"\" begins and ends a text of several lines. Ctrl-C stops a reply."""

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class Conversation:
    """What has been said, with whom.

    Attributes:
        model: who answers.
        params: how replies are drawn.
        system: the system message, None without one.
        turns: messages of user and assistant, oldest first.
    """

    model: ChatModel
    params: SamplingParams
    system: str | None = None
    turns: list[Message] = field(default_factory=list)

    def messages(self) -> list[Message]:
        """All that is sent: system message and turns."""
        system: list[Message] = [{"role": "system", "content": self.system}] if self.system else []
        return system + self.turns

    def say(self, text: str) -> Reply:
        """Send a user's message and print the reply as it comes; Ctrl-C ends it and keeps what there is.

        Raises:
            LlamalabError: the message cannot be answered; it is not kept then.
        """
        from llamalab.engine import Reply
        from llamalab.errors import EngineError

        self.turns.append({"role": "user", "content": text})
        try:
            with interruptible() as cancel:
                for event in self.model.stream(self.messages(), self.params, cancel=cancel):
                    if isinstance(event, Reply):
                        write("\n")
                        self.turns.append({"role": "assistant", "content": event.text})
                        return event
                    write(event.text)
            raise EngineError("The model ended the reply without saying how.")
        except LlamalabError:
            self.turns.pop()
            raise


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command()(chat)


@expand_options
def chat(
    name: ModelArgument = None,
    *,
    model: ModelOption = None,
    system: Annotated[str | None, typer.Option("--system", "-s", metavar="TEXT", help="The system message.")] = None,
    template: Annotated[
        str | None, typer.Option(metavar="NAME|FILE", help="Chat template instead of the model's own.")
    ] = None,
    truncate: Annotated[
        str | None,
        typer.Option(metavar="oldest", help="Drop the oldest turns when the context is full."),
    ] = None,
    sampling: SamplingOptions,
    engine: EngineOptions,
    jax: JaxOptions,
) -> None:
    """Talk with a model.

    At a terminal: a conversation with history; /help lists its commands. In a pipe: all of standard input is one
    message, and the reply alone goes to standard output. A model that runs elsewhere is named with its provider, as in
    ollama:llama3.2:3b, deepseek:deepseek-chat or openai:NAME.
    """
    if name is not None and model is not None:
        raise ConfigError(f"Two models are named: '{name}' and, with --model, '{model}'.")
    if truncate not in (None, "oldest"):
        raise ConfigError(f"--truncate knows only 'oldest', not '{truncate}'.")
    interactive = sys.stdin.isatty()
    message = None if interactive else read_stdin()
    if message is not None and not message.strip():
        raise InputError("Standard input is empty: there is no message to answer.")
    if system is not None:
        check_argument(system, "--system")

    spec = name or model or "pico"
    options = engine.given() | jax.given(spec, sampling)

    from llamalab.chat import DEFAULT_SAMPLING, chat_model
    from llamalab.engines import REMOTE, provider_of, split_spec

    if split_spec(spec)[0] in REMOTE:
        options.pop("n_seq")  # how many conversations it has is the server's affair
    if interactive and provider_of(spec) == "llama_cpp":
        options["cache_prompts"] = True
    talker = chat_model(spec, template=template, truncate=cast("Truncate | None", truncate), **options)
    try:
        conversation = Conversation(talker, sampling.params(DEFAULT_SAMPLING, talker.info.sampling), system or None)
        if message is None:
            _talk(conversation, spec)
        elif conversation.say(message).finish_reason == "cancelled":
            raise typer.Exit(INTERRUPTED)
    finally:
        talker.close()


def _talk(conversation: Conversation, spec: str) -> None:
    """Read and answer until the user leaves."""
    import readline  # noqa: F401  (gives input() editing and history)

    from rich.text import Text

    info = conversation.model.info
    what = f" ({spec}), context of {info.context_length:,} tokens. "
    console().print(Text.assemble((info.name, "bold"), what, ("/help lists commands, Ctrl-D leaves.", "dim")))
    while True:
        try:
            text = _read_message(input)
        except EOFError:
            print()
            return
        except KeyboardInterrupt:
            print("\n(Ctrl-D or /exit leaves)")
            continue
        if text.strip() in {"/exit", "/quit", "/bye"}:
            return
        try:
            if text.startswith("/"):
                print(run_command(conversation, text))
            elif text.strip():
                conversation.say(check_argument(text, "The message"))
        except LlamalabError as error:
            print_error(str(error))
        except KeyboardInterrupt:
            print()


def run_command(conversation: Conversation, line: str) -> str:
    """Do what a line that begins with a slash says.

    Returns:
        What to tell the user.

    Raises:
        ConfigError: an unknown command.
        InputError: a file that cannot be written.
    """
    command, _, argument = line.strip().partition(" ")
    argument = argument.strip()
    if command == "/system":
        conversation.system = argument or None
        conversation.turns.clear()
        return "System message set; the conversation starts afresh." if argument else "System message removed."
    if command == "/reset":
        conversation.turns.clear()
        return "Forgotten."
    if command == "/save":
        if not argument:
            raise ConfigError("/save needs a file name, as in: /save talk.json")
        return _save(conversation, Path(argument).expanduser())
    if command == "/help":
        return _COMMANDS
    raise ConfigError(f"There is no command {command}; /help lists them.")


def _read_message(read_line: Callable[[str], str]) -> str:
    """One message: a line, lines joined by a backslash at the end, or all between two triple quotes."""
    line = read_line(">>> ")
    if line.lstrip().startswith(_BLOCK):
        text = line.lstrip().removeprefix(_BLOCK)
        while not text.rstrip().endswith(_BLOCK):
            text += "\n" + read_line("... ")
        return text.rstrip().removesuffix(_BLOCK).strip("\n")
    while line.endswith("\\"):
        line = line[:-1] + "\n" + read_line("... ")
    return line


def _save(conversation: Conversation, file: Path) -> str:
    document: dict[str, Any] = {"model": conversation.model.info.name, "messages": conversation.messages()}
    try:
        file.write_text(json.dumps(document, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise InputError(f"{file} cannot be written: {error.strerror or error}.") from None
    return f"Saved {len(conversation.turns)} messages to {file}."
