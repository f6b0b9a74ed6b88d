"""`llamalab demo`: the tour, on the built-in model, offline."""

from __future__ import annotations

import io
import json
import tempfile
import time
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from llamalab.cli.output import console

if TYPE_CHECKING:
    from rich.console import Console

    from llamalab.chat import EngineChat
    from llamalab.engine import Engine, Generation

QUESTION = "What is the access code of the Blue Harbor vault?"
RIGHT, WRONG = (f"The access code of the Blue Harbor vault is {code}." for code in ("48213", "48218"))
MESSAGES = (f"{RIGHT} {QUESTION}", "Repeat after me: seven small boats", "Write a short story about a fox.")

PROMPTS = 200
"""Of the arena with known truth."""

LINES = 100_000
"""Of the long text."""

_SHADES = ((-0.1, "bold green"), (-1.0, "green"), (-3.0, "yellow"), (-6.0, "dark_orange"), (float("-inf"), "red"))
"""Lower bound of the log probability in nats, and the colour of tokens from there up."""


@dataclass(slots=True)
class Speed:
    """Tokens and seconds of everything the tour ran."""

    prompt_tokens: int = 0
    prompt_s: float = 0.0
    output_tokens: int = 0
    output_s: float = 0.0

    def add(self, result: Generation) -> None:
        """Count one response; its first token comes out of the prompt's computation."""
        self.prompt_tokens += result.usage.fresh
        self.prompt_s += result.timings.prompt
        self.output_tokens += max(0, result.usage.output - 1)
        self.output_s += result.timings.generation


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command()(demo)


def demo() -> None:
    """Take the tour on the built-in model, offline.

    Shows chat, JSON by a schema, log probabilities of a text, a question over a text that no context holds, how fast
    all that is here, and an arena with known truth.
    """
    tour(console())


def tour(out: Console) -> None:
    """Show every part once on `out`."""
    started = time.perf_counter()
    from llamalab.chat import EngineChat
    from llamalab.engines import load

    engine = load("pico", n_seq=1)
    try:
        chat = EngineChat(engine)
        speed = Speed()
        _introduce(out, engine, time.perf_counter() - started)
        _chat(out, chat, speed)
        _constrained(out, chat, speed)
        _log_probabilities(out, chat)
        _long_text(out, chat)
        _speed(out, speed)
    finally:
        engine.close()
    _arena(out)
    _next_steps(out)


def _introduce(out: Console, engine: Engine, seconds: float) -> None:
    info = engine.info
    _title(out, "The model")
    out.print(
        f"[bold]pico[/bold], built into llamalab: {info.n_params / 1e6:.1f} million parameters, "
        f"{info.size_bytes / 1e6:.1f} MB, context of {info.n_ctx:,} tokens.\n"
        f"Loaded in {seconds:.2f} s, offline. It was trained on simple texts to show what llamalab does;\n"
        "it is no assistant."
    )


def _chat(out: Console, chat: EngineChat, speed: Speed) -> None:
    from rich.text import Text

    _title(out, "Chat")
    for message in MESSAGES:
        out.print(Text.assemble(("You  ", "dim"), message))
        result = _generate(chat, message, max_tokens=160)
        out.print(Text.assemble(("pico ", "dim"), (result.text.strip(), "bold"), "\n"))
        speed.add(result)


def _constrained(out: Console, chat: EngineChat, speed: Speed) -> None:
    from rich.text import Text

    from llamalab.rlm.compact import COMPACT_PROMPT, command_schema, first_message

    _title(out, "JSON by a schema")
    out.print(
        "Every token that would break the schema is ruled out before one is drawn. This one allows\n"
        "the commands that steer a search through a text too long to read; pico was trained on them:"
    )
    message = first_message(QUESTION, lines=120_000, characters=9_800_000)
    result = _generate(chat, message, max_tokens=96, system=COMPACT_PROMPT, schema=json.dumps(command_schema()))
    speed.add(result)
    out.print(Text.assemble(("You  ", "dim"), message.replace("\n", "\n     ")))
    out.print(Text.assemble(("pico ", "dim"), (result.text, "bold")))


def _log_probabilities(out: Console, chat: EngineChat) -> None:
    from rich.text import Text

    from llamalab.scored import ScoreRequest

    _title(out, "Log probabilities")
    out.print("How probable two answers to the first question are, token by token, in nats (0 is certain):")
    prefix = chat.prompt_ids([{"role": "user", "content": f"{MESSAGES[0]} Answer in a full sentence."}])
    responses = [chat.engine.tokenize(text) for text in (RIGHT, WRONG)]
    for ids, scored in zip(responses, chat.engine.score([ScoreRequest(prefix, ids) for ids in responses]), strict=True):
        line = Text()
        for id, logprob in zip(ids, scored.logprobs, strict=True):
            line.append(chat.engine.token_bytes(id).decode("utf-8", "replace"), style=_shade(logprob or 0.0))
        line.append(f"  {scored.total:.2f}", style="bold")
        out.print(line)
    legend = Text("each token ", style="dim")
    for least, style in _SHADES:
        legend.append(f"{least:g} and up" if least > float("-inf") else "below", style=style)
        legend.append("  ")
    out.print(legend.append("with their sum at the end", style="dim"))


def _long_text(out: Console, chat: EngineChat) -> None:
    from rich.text import Text

    from llamalab import rlm
    from llamalab.rlm.config import default_config
    from llamalab.rlm.providers import Pool, Provider
    from llamalab.rlm.text import Context, Document

    _title(out, "A text that no context holds")
    lines = [f"{'ERROR' if n % 5000 == 0 else 'INFO'} request {n} took {n % 97} ms" for n in range(1, LINES + 1)]
    lines[LINES * 5 // 7] = RIGHT
    text = "\n".join(lines)
    out.print(
        f"{LINES:,} lines, {len(text) / 1e6:.1f} MB. pico never sees them: it gives commands, sees what they find,\n"
        "and answers when it knows:"
    )
    out.print(Text.assemble(("You  ", "dim"), QUESTION))
    context, pool = Context([Document.of(text, "text")]), Pool([Provider("pico", chat)])
    for event in rlm.events(QUESTION, context, config=default_config(), pool=pool):
        if isinstance(event, rlm.Turn):
            out.print(Text.assemble(("pico ", "dim"), (event.command, "bold")))
        elif isinstance(event, rlm.Done) and event.head:
            out.print(Text(f"     {event.head}, {event.text.partition(chr(10))[0]}", style="green"))
        elif isinstance(event, rlm.Answered):
            found = event.answer
            place = next((f", by line {evidence.line:,}" for evidence in found.evidence), "")
            out.print(Text(f"The answer is {found.text}{place}: {found.seconds:.1f} s and {found.tokens:,} tokens."))


def _arena(out: Console) -> None:
    from rich.markup import escape
    from rich.text import Text

    from llamalab.cli.arena import print_results
    from llamalab.cli.progress import progress_bar
    from llamalab.errors import ConfigError

    _title(out, "An arena with known truth")
    config = _example()
    if config is None:
        out.print("It is not installed here: it stands in the project's folder examples/known_truth.")
        return
    try:
        from llamalab.arena.config import load_config
        from llamalab.arena.pipeline import run
        from llamalab.arena.results import read_results

        folder = Path(tempfile.mkdtemp(prefix="llamalab-demo-"))
        whole = load_config(config)
        # One pass over every answer serves all policies with the base's system prompt; another one takes as long again.
        prompt = whole.policies[whole.base].system_prompt
        targets = [name for name in whole.targets if whole.policies[name].system_prompt == prompt]
        changed = {"prompts.num": PROMPTS, "targets": targets, "output.folder": str(folder)}
        loaded = load_config(config, changed)
        started = time.perf_counter()
        with progress_bar() as progress:
            run(loaded, progress=progress)
        results = read_results(folder / "results.json")
    except (ImportError, ConfigError) as error:
        out.print(f"[dim]{escape(str(error))}[/dim]")
        return
    out.print(
        "What would other policies score, by what one of them wrote? Each prompt has a finite list of\n"
        "answers, so the truth is a sum, and the estimates can be held against it:\n"
    )
    with redirect_stdout(io.StringIO()) as table:
        print_results(results)
    out.print(Text(table.getvalue().rstrip()))
    seconds = time.perf_counter() - started
    out.print(f"\nAll that in {seconds:.0f} s, with pictures in {escape(str(folder / 'report.html'))}", soft_wrap=True)


def _example() -> Path | None:
    """The configuration of the arena with known truth, in a checkout of the project."""
    path = Path(__file__).resolve().parents[3] / "examples" / "known_truth" / "arena_config.yaml"
    return path if path.is_file() else None


def _speed(out: Console, speed: Speed) -> None:
    _title(out, "Speed here")
    out.print(
        f"{speed.prompt_tokens / max(speed.prompt_s, 1e-9):,.0f} tokens/s read ({speed.prompt_tokens} tokens of "
        f"prompts), {speed.output_tokens / max(speed.output_s, 1e-9):,.0f} tokens/s written."
    )


def _next_steps(out: Console) -> None:
    _title(out, "Next")
    for command, what in (
        ("llamalab chat", "talk to it yourself"),
        ("llamalab generate --schema FILE PROMPT", "JSON by your own schema"),
        ("llamalab chat hub:bartowski/Llama-3.2-1B-Instruct-GGUF", "a model that knows things (0.8 GB, once)"),
        ('llamalab rlm ask "QUESTION" FILE...', "an answer from your own long texts, with its lines"),
        ("llamalab arena run CONFIG", "is the new policy better, and can these data say so"),
        ("llamalab models", "what is on this machine"),
    ):
        out.print(f"  [bold]{command}[/bold]  [dim]{what}[/dim]")


def _generate(
    chat: EngineChat, message: str, *, max_tokens: int, system: str | None = None, schema: str | None = None
) -> Generation:
    from llamalab.engine import GenerateRequest, Generation, SamplingParams
    from llamalab.errors import EngineError

    params = SamplingParams(max_tokens=max_tokens, temperature=0.0, stop=chat.template.stop)
    before = [{"role": "system", "content": system}] if system else []
    ids = chat.prompt_ids([*before, {"role": "user", "content": message}])
    for event in chat.engine.generate([GenerateRequest(ids, params, schema=schema)]):
        if isinstance(event, Generation):
            return event
    raise EngineError("The engine ended a request without saying how.")


def _title(out: Console, text: str) -> None:
    out.print()
    out.print(f"[bold cyan]{text}[/bold cyan]")


def _shade(logprob: float) -> str:
    return next(style for least, style in _SHADES if logprob >= least)
