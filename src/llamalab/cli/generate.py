"""`llamalab generate`: one prompt, one response."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llamalab.cli.jax_options import JaxOptions
from llamalab.cli.options import EngineOptions, JsonOption, ModelArgument, ModelOption, SamplingOptions, expand_options
from llamalab.cli.output import (
    check_argument,
    interruptible,
    print_error,
    print_json,
    print_table,
    read_stdin,
    write,
)
from llamalab.cli.schema_file import read_schema, read_text
from llamalab.cli.trace import TraceOptions, complete_plot
from llamalab.errors import ConfigError, InputError, SchemaError

if TYPE_CHECKING:
    from llamalab.engine import Engine, GenerateRequest, Generation, TokenLogprob

FAILED, INTERRUPTED = 1, 130


@dataclass(frozen=True, slots=True)
class PromptOptions:
    """How the text of the prompt becomes the model's input."""

    system: Annotated[
        str | None, typer.Option("--system", "-s", metavar="TEXT", help="A system message before the prompt.")
    ] = None
    template: Annotated[
        str | None, typer.Option(metavar="NAME|FILE", help="Chat template instead of the model's own.")
    ] = None
    raw: Annotated[
        bool, typer.Option("--raw", help="Continue the prompt as plain text: no chat template, no system message.")
    ] = False


@dataclass(frozen=True, slots=True)
class ConstraintOptions:
    """What the response has to look like."""

    schema: Annotated[Path | None, typer.Option(metavar="FILE", help="JSON schema that the response must satisfy.")] = (
        None
    )
    grammar: Annotated[Path | None, typer.Option(metavar="FILE", help="GBNF grammar of the response.")] = None


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command()(generate)


def complete_arguments(arguments: Sequence[str]) -> list[str]:
    """Of this command, `--logprobs` without a number means `--logprobs 0`; see `complete_plot` for `--plot`."""
    if next((argument for argument in arguments if not argument.startswith("-")), None) != "generate":
        return list(arguments)
    completed = []
    for position, argument in enumerate(arguments):
        completed.append(argument)
        following = arguments[position + 1] if position + 1 < len(arguments) else ""
        if argument == "--logprobs" and not following.isdecimal():
            completed.append("0")
    return complete_plot(completed)


@expand_options
def generate(
    first: ModelArgument = None,
    prompt: Annotated[str | None, typer.Argument(metavar="PROMPT", help="The prompt; - reads standard input.")] = None,
    *,
    model: ModelOption = None,
    prompting: PromptOptions,
    sampling: SamplingOptions,
    constraint: ConstraintOptions,
    logprobs: Annotated[
        int | None,
        typer.Option(min=0, metavar="[N]", help="Log probability of each token, and of the N most probable ones."),
    ] = None,
    tracing: TraceOptions,
    as_json: JsonOption = False,
    engine: EngineOptions,
    jax: JaxOptions,
) -> None:
    """Answer one prompt.

    The prompt is sent as a user's turn in the model's chat template; with --raw it is continued as plain text. With
    --schema, a response that is cut off by -n is no valid JSON: it is reported as such, and the exit code is 1.
    """
    spec, text = model_and_prompt(first, prompt, model)
    schema = read_schema(constraint.schema) if constraint.schema else None
    grammar = read_text(constraint.grammar) if constraint.grammar else None
    if schema is not None and grammar is not None:
        raise SchemaError("--schema and --grammar exclude each other: a response follows one of them.")

    options = engine.given() | jax.given(spec, sampling)

    from llamalab.engines import load

    with tracing.recording(jax) as recorder:
        loaded = load(spec, **options, **({} if recorder is None else {"trace": recorder}))
        try:
            if recorder is not None:
                recorder.bytes_of = partial(loaded.token_bytes, special=True)
            request = _request(loaded, text, prompting, sampling, schema, grammar, logprobs)
            result = _run(loaded, request, show=not as_json)
            document = describe(loaded, spec, result)
        finally:
            loaded.close()
    if as_json:
        print_json(document)
    elif result.logprobs is not None:
        _print_logprobs(document["logprobs"])
    if result.finish_reason == "cancelled":
        raise typer.Exit(INTERRUPTED)
    if result.finish_reason != "stop" and (schema or grammar):
        kind = "JSON" if schema else "text by the grammar"
        print_error(
            f"The response was cut off after {result.usage.output} tokens ({result.finish_reason}): it is not complete "
            f"{kind}. Allow more with -n, or a larger --n-ctx."
        )
        raise typer.Exit(FAILED)


def model_and_prompt(first: str | None, second: str | None, model: str | None) -> tuple[str, str]:
    """From `PROMPT`, `MODEL PROMPT` or `-m MODEL PROMPT`; the prompt `-`, or none in a pipe, is standard input.

    Raises:
        InputError: no prompt, or an empty one.
        ConfigError: two models.
    """
    if first is not None and second is not None:
        if model is not None:
            raise ConfigError(f"Two models are named: '{first}' and, with --model, '{model}'. Quote the prompt?")
        model, prompt = first, second
    elif first is not None:
        prompt = first
        if model is None and prompt.endswith(".gguf") and Path(prompt).expanduser().is_file():
            raise InputError(f"'{prompt}' is a model file and there is no prompt. Put one after it, or - to read it.")
    elif not sys.stdin.isatty():
        prompt = "-"
    else:
        raise InputError("There is no prompt. Put one in quotes after the command, or - to read standard input.")
    prompt = read_stdin() if prompt == "-" else check_argument(prompt, "The prompt")
    if not prompt:
        raise InputError("The prompt is empty.")
    return model or "pico", prompt


def describe(engine: Engine, spec: str, result: Generation) -> dict[str, Any]:
    """A response as one JSON document."""
    document: dict[str, Any] = {
        "model": spec,
        "text": result.text,
        "ids": list(result.ids),
        "finish_reason": result.finish_reason,
        "usage": {
            "fresh": result.usage.fresh,
            "cached": result.usage.cached,
            "output": result.usage.output,
            "reasoning": result.usage.reasoning,
        },
        "timings": {
            "queued_s": result.timings.queued,
            "prompt_s": result.timings.prompt,
            "generation_s": result.timings.generation,
        },
        "seed": result.seed,
    }
    if result.schema_mode is not None:
        document["schema_mode"] = result.schema_mode
        document["parsed"] = json.loads(result.text) if result.finish_reason == "stop" else None
    if result.logprobs is not None:
        document["logprobs"] = [_describe_logprob(engine, logprob) for logprob in result.logprobs]
    return document


def _request(
    engine: Engine,
    prompt: str,
    prompting: PromptOptions,
    sampling: SamplingOptions,
    schema: str | None,
    grammar: str | None,
    logprobs: int | None,
) -> GenerateRequest:
    from dataclasses import replace

    from llamalab.chat import DEFAULT_SAMPLING, EngineChat
    from llamalab.engine import GenerateRequest

    params = sampling.params(DEFAULT_SAMPLING, engine.info.sampling)
    if prompting.raw:
        bos = [engine.info.bos_id] if engine.info.add_bos and engine.info.bos_id is not None else []
        ids = [*bos, *engine.tokenize(prompt)]
    else:
        chat = EngineChat(engine, prompting.template)
        messages = [{"role": "user", "content": prompt}]
        if prompting.system:
            messages.insert(0, {"role": "system", "content": check_argument(prompting.system, "--system")})
        ids = chat.prompt_ids(messages)
        params = replace(params, stop=(*params.stop, *chat.template.stop))
    return GenerateRequest(ids, params, schema=schema, grammar=grammar, logprobs=logprobs)


def _run(engine: Engine, request: GenerateRequest, *, show: bool) -> Generation:
    """Generate, printing the text as it comes; Ctrl-C ends it and keeps what there is."""
    from dataclasses import replace

    from llamalab.engine import Generation
    from llamalab.errors import EngineError

    with interruptible() as cancel:
        for event in engine.generate([replace(request, cancel=cancel)]):
            if isinstance(event, Generation):
                if show:
                    write("\n")
                return event
            if show and event.text:
                write(event.text)
    raise EngineError("The engine ended the request without saying how.")


def _describe_logprob(engine: Engine, logprob: TokenLogprob) -> dict[str, Any]:
    def token(id: int) -> dict[str, Any]:
        return {"id": id, "text": engine.token_bytes(id, special=True).decode("utf-8", "replace")}

    return {
        **token(logprob.id),
        "logprob": logprob.raw,
        "sampled_logprob": logprob.sampled,
        "top": [{**token(id), "logprob": raw} for id, raw in logprob.top],
    }


def _print_logprobs(logprobs: Sequence[dict[str, Any]]) -> None:
    rows = []
    for entry in logprobs:
        others = "  ".join(f"{other['text']!r} {other['logprob']:.3f}" for other in entry["top"])
        rows.append([repr(entry["text"]), f"{entry['logprob']:.4f}", f"{entry['sampled_logprob']:.4f}", others])
    print_table(["token", "log p", "log p sampled", "most probable"], rows, right=["log p", "log p sampled"])
