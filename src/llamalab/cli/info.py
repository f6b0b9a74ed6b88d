"""`llamalab info`: what is in a model file."""

from __future__ import annotations

import dataclasses
import math
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llamalab.cli.options import JsonOption, ModelArgument, ModelOption
from llamalab.cli.output import console, print_json, print_table
from llamalab.errors import ConfigError

if TYPE_CHECKING:
    from llamalab.lab.info import FileInfo, Info, RopeInfo, TokenizerInfo

_CONTROLS = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_LINE = 72
"""Characters of a chat template's first line that the table shows."""


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command()(info)


def info(
    first: ModelArgument = None,
    *,
    model: ModelOption = None,
    sha256: Annotated[
        bool, typer.Option("--sha256", help="Compute the SHA-256 of files above 64 MiB too; it is kept.")
    ] = False,
    tensors: Annotated[bool, typer.Option("--tensors", help="List every tensor.")] = False,
    as_json: JsonOption = False,
) -> None:
    """What is in a model file: shape, quantisation, tokeniser, size.

    Read from the headers, without loading weights: GGUF files (split ones too), Hugging Face folders, Meta folders.
    """
    if first is not None and model is not None:
        raise ConfigError(f"Two models are named: '{first}' and, with --model, '{model}'.")

    from llamalab.lab.info import model_info

    with _progress() as progress:
        found = model_info(first or model or "pico", sha256=sha256, progress=progress)
    if as_json:
        print_json(_document(found, tensors=tensors))
        return
    print_table(["", _cell(found.name)], list(_rows(found)))
    _print_types(found)
    if tensors:
        _print_tensors(found)
    for warning in found.warnings:
        print(f"warning: {_cell(warning)}", file=sys.stderr)


@contextmanager
def _progress() -> Iterator[Callable[[Path, int], None] | None]:
    """How far the hashing is, on a line that comes and goes; nothing where standard error is no terminal."""
    if not sys.stderr.isatty():
        yield None
        return
    from llamalab.checkpoints.names import human_size

    with console(stderr=True).status("reading") as status:
        yield lambda path, done: status.update(f"SHA-256 of {path.name}: {human_size(done)}")


def _document(found: Info, *, tensors: bool) -> dict[str, Any]:
    """The whole as JSON; the tensors only if they are asked for."""
    document: dict[str, Any] = _plain(
        {field.name: getattr(found, field.name) for field in dataclasses.fields(found) if field.name != "tensors"}
    )
    document |= {"size_bytes": found.size_bytes, "bits_per_weight": found.bits_per_weight}
    document["n_tensors"] = len(found.tensors)
    if tensors:
        document["tensors"] = [_plain(tensor) for tensor in found.tensors]
    return document


def _plain(value: Any) -> Any:
    """As JSON can say it and a terminal can show it: null for what is not finite."""
    if dataclasses.is_dataclass(value):
        return {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {_text(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return _text(value) if isinstance(value, Path | str) else value


def _text(value: object) -> str:
    """As text that can be printed: a file may hold half a character (a lone surrogate), or be called by one."""
    return str(value).encode("utf-8", "replace").decode("utf-8")


def _cell(value: object) -> str:
    """The same without control characters: a file's name for itself must not move a terminal's cursor, or worse."""
    return _CONTROLS.sub("\N{REPLACEMENT CHARACTER}", _text(value))


def _rows(found: Info) -> Iterator[list[str]]:
    """What is known, a line for each; nothing for what the headers do not tell."""
    for label, value in _facts(found):
        if value is not None and value != "":
            yield [label, _cell(value)]


def _facts(found: Info) -> Iterator[tuple[str, object]]:
    from llamalab.checkpoints.names import human_size

    yield "path", found.path
    yield "format", {"gguf": "GGUF", "safetensors": "Hugging Face", "meta": "Meta"}[found.format]
    yield "architecture", found.architecture
    yield "parameters", f"{found.n_params:,} ({human_count(found.n_params)})" if found.n_params else None
    yield "quantisation", found.quantisation
    yield "bits per weight", f"{found.bits_per_weight:.2f}" if found.bits_per_weight else None
    yield "size on disk", f"{human_size(found.size_bytes)} ({found.size_bytes:,} bytes)"
    yield "context", _tokens(found.context_length)
    yield "layers", found.n_layers
    yield "width", _count(found.dim)
    yield "heads", _span(found.n_heads)
    yield "KV heads", _span(found.n_kv_heads)
    yield "head size", _head_size(found)
    yield "feed-forward", _span(found.ffn_dim)
    if found.experts is not None:
        used = f", {found.experts.used} for each token" if found.experts.used else ""
        yield "experts", f"{found.experts.total}{used}"
    if found.mla is not None:
        yield "latent attention", f"rank {found.mla.kv_lora_rank}"
    yield "vocabulary", _tokens(found.n_vocab)
    yield "embedding", None if found.tied is None else "also the output" if found.tied else "apart from the output"
    yield "sliding window", _tokens(found.sliding_window)
    yield "RoPE", None if found.rope is None else _rope(found.rope)
    yield "tokeniser", None if found.tokenizer is None else _tokenizer(found.tokenizer)
    yield "special tokens", None if found.tokenizer is None else _special(found.tokenizer)
    yield "chat template", "none" if found.chat_template is None else _first_line(found.chat_template)
    yield "licence", found.licence
    yield "quantised by", found.quantised_by
    for file in found.files:
        yield "SHA-256", _sha256(file, alone=len(found.files) == 1)


def human_count(n: int) -> str:
    """A number of parameters as people say it: "8.03 B"."""
    for unit, size in (("T", 10**12), ("B", 10**9), ("M", 10**6), ("k", 10**3)):
        if n >= size:
            return f"{n / size:.3g} {unit}"
    return str(n)


def _count(n: int | None) -> str | None:
    return None if n is None else f"{n:,}"


def _tokens(n: int | None) -> str | None:
    return None if n is None else f"{n:,} tokens"


def _span(value: int | tuple[int, ...] | None) -> str | None:
    if isinstance(value, tuple):
        return f"{min(value):,} to {max(value):,}, by layer"
    return _count(value)


def _head_size(found: Info) -> str | None:
    if found.key_length == found.value_length or found.value_length is None:
        return _count(found.key_length)
    return f"keys {found.key_length}, values {found.value_length}"


def _rope(rope: RopeInfo) -> str:
    parts = [f"base {rope.base:,.10g}"] if rope.base is not None else []
    if rope.scaling:
        factor = f", factor {rope.factor:g}" if rope.factor is not None else ""
        table = f", table {rope.table}" if rope.table else ""
        parts.append(f"scaling {rope.scaling}{factor}{table}")
    if rope.original_context:
        parts.append(f"first trained for {rope.original_context:,} tokens")
    return "; ".join(parts)


def _tokenizer(tokenizer: TokenizerInfo) -> str:
    parts = [tokenizer.kind or "of an unknown kind"]
    parts += [f"pre-tokeniser {tokenizer.pre}"] if tokenizer.pre else []
    parts += [f"{tokenizer.n_tokens:,} tokens"] if tokenizer.n_tokens is not None else []
    if tokenizer.add_bos is not None:
        parts.append("BOS in front" if tokenizer.add_bos else "no BOS in front")
    return ", ".join(parts)


def _special(tokenizer: TokenizerInfo) -> str:
    parts = (
        f"{part.upper()} {token.id}{'' if token.text is None else f' {token.text}'}"
        for part, token in tokenizer.special.items()
    )
    return ", ".join(parts)


def _first_line(template: str) -> str:
    line = next(iter(template.strip().splitlines()), "")
    more = len(template.strip()) > len(line[:_LINE])
    return f"{line[:_LINE]}{' ...' if more else ''} ({len(template):,} characters)"


def _sha256(file: FileInfo, *, alone: bool) -> str:
    said = file.sha256 or "not computed (--sha256)"
    return said if alone else f"{said} {file.path.name}"


def _print_types(found: Info) -> None:
    from llamalab.checkpoints.names import human_size

    if not found.types:
        return
    print_table(
        ["type", "tensors", "parameters", "size", "share"],
        [
            [
                _cell(kind),
                f"{count.n_tensors:,}",
                f"{count.n_params:,}",
                human_size(count.n_bytes),
                f"{count.n_bytes / max(1, found.tensor_bytes):.1%}",
            ]
            for kind, count in found.types.items()
        ],
        right=["tensors", "parameters", "size", "share"],
    )


def _print_tensors(found: Info) -> None:
    from llamalab.checkpoints.names import human_size

    print_table(
        ["tensor", "shape", "type", "size"],
        [[_cell(t.name), " x ".join(map(str, t.shape)), _cell(t.dtype), human_size(t.n_bytes)] for t in found.tensors],
        right=["size"],
    )
