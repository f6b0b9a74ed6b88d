"""Do two engines give the same numbers?"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from llamalab.checkpoints.checkpoint import open_checkpoint
from llamalab.checkpoints.locate import locate
from llamalab.engine import LogitsEngine
from llamalab.engines import load, provider_of, split_spec
from llamalab.errors import ConfigError, InputError, ModelFileError
from llamalab.lab.comparison import Comparison, Progress, compare
from llamalab.lab.prompts import LENGTH, LONG, Prompt, built_in_prompts, check_vocabularies, tokenised
from llamalab.lab.rounding import Rounding, rounding_of

RTOL, ATOL = 1e-3, 1e-2
"""Tolerances of the official models' own comparison guide: relative, absolute."""

EXACT: Mapping[str, Mapping[str, Any]] = {
    "llama_cpp": {"n_seq": 1, "type_k": "f32", "type_v": "f32", "flash_attn": False},
    "jax": {"dtype": "float32"},
    "transformers": {"dtype": "float32"},
    "meta": {},
}
"""Options that let each provider compute in float32 throughout."""

_SMALL = 2**26
"""Bytes of a model file below which llama.cpp gets one thread: small matrices gain nothing from a second one, and its
threads wait for each other hundreds of times in each token, which takes minutes where the cores are shared."""

AS_IS: Mapping[str, Mapping[str, Any]] = {"llama_cpp": {"n_seq": 1}, "meta": {"as_published": True}}
"""Options for engines as they run by themselves."""

Model = str | Path | LogitsEngine


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether two engines agree, and by how much.

    Attributes:
        comparisons: of the two as they are; where llama.cpp rounds to the type of its file, also with that file in F32.
        prompts: name and length of each.
        rtol: relative tolerance, of the second engine's values.
        atol: absolute tolerance.
        notes: what to know about the comparison, one sentence each.
    """

    comparisons: tuple[Comparison, ...]
    prompts: tuple[tuple[str, int], ...]
    rtol: float
    atol: float
    notes: tuple[str, ...]

    @property
    def agree(self) -> bool:
        """Of the last comparison: the one in which both engines compute with the same weights in float32."""
        return self.comparisons[-1].agrees


def verify(
    a: Model,
    b: Model,
    prompts: Mapping[str, str] | None = None,
    *,
    rtol: float = RTOL,
    atol: float = ATOL,
    tokens: int = 32,
    layers: bool = False,
    as_is: bool = False,
    long: bool = False,
    strict: bool = False,
    n_ctx: int | None = None,
    progress: Progress = lambda _: None,
) -> Verdict:
    """Give two engines the same token ids and compare what they compute.

    Args:
        a: a model spec, or an open engine (which stays open).
        b: another; the reference, where one is.
        prompts: texts by name; None: a built-in set.
        rtol: relative tolerance, of b's values.
        atol: absolute tolerance.
        tokens: greedy tokens to compare after each prompt; 0: none.
        layers: compare the residual stream after each block too.
        as_is: open the engines with their own defaults instead of in float32 throughout.
        long: let the built-in set reach position 2,048.
        strict: no difference outside the tolerance is explained by rounding.
        n_ctx: context of both engines; None: their default.
        progress: is told what is being done.

    Raises:
        InputError: the two have other vocabularies or cut a text into other tokens.
        ConfigError: a tolerance below 0, or an engine that does not show its logits.
    """
    if not (rtol >= 0 and atol >= 0):
        raise ConfigError(f"Tolerances must be 0 or more, not rtol={rtol:g} and atol={atol:g}.")
    names = _name(a), _name(b)
    with ExitStack() as stack:
        engines = [_opened(model, stack, as_is=as_is, n_ctx=n_ctx, progress=progress) for model in (a, b)]
        notes = [note for engine in engines for note in getattr(engine, "notes", ())]
        padding = check_vocabularies(engines[0], engines[1])
        notes += [padding] if padding else []
        found, shortened = _prompts(engines, prompts, long=long, tokens=tokens)
        notes += shortened

        bars = None if as_is or strict else rounding_of(engines)

        def compared(name_a: str, name_b: str, *, last: bool) -> Comparison:
            one, other = engines
            settings: dict[str, Any] = {"rtol": rtol, "atol": atol, "tokens": tokens, "layers": layers}
            settings["bars"] = bars if last else None  # in the first of two rows, narrower types explain far more
            return compare(one, other, found, names=(name_a, name_b), progress=progress, **settings)

        rounded = [] if as_is else [(side, _rounded_types(engines[side], engines[1 - side])) for side in (0, 1)]
        comparisons = [compared(*names, last=not any(types for _, types in rounded))]
        for side, types in rounded:
            if types:
                notes.append(
                    f"{names[side]} holds {', '.join(types)}, and llama.cpp rounds what it multiplies by such weights "
                    "to narrower types too; the second row is of the same weights in F32, and the verdict follows it."
                )
                progress(f"writing {names[side]} in F32")
                path = _in_float32(Path(engines[side].info.path or ""), stack)
                if isinstance((a, b)[side], str | Path):
                    engines[side].close()  # frees its memory before the larger one is loaded
                engines[side] = _opened(f"llama_cpp:{path}", stack, as_is=False, n_ctx=n_ctx, progress=progress)
                wide = [f"{name} in F32" if i == side else name for i, name in enumerate(names)]
                comparisons.append(compared(wide[0], wide[1], last=True))
        if comparisons[-1].rounding is not None:
            notes.append(_on_rounding(comparisons[-1].rounding, comparisons[-1].rows))
    if layers and comparisons[-1].layers is None:
        notes.append("One of the engines does not show what leaves its layers, so they are not compared.")
    lengths = tuple((prompt.name, len(prompt.ids)) for prompt in found)
    return Verdict(tuple(comparisons), lengths, rtol, atol, tuple(dict.fromkeys(notes)))


def _on_rounding(found: Rounding, rows: int) -> str:
    """What rounding explains, for people."""
    share = "all of them" if found.explains else f"{found.explained} of them"
    return (
        f"{found.rows} of {rows} rows lie outside the tolerance, and in {share} float32 cannot tell: another rounding "
        f"of the rotary frequencies moves these logits as far (by up to {found.largest:.2g})."
    )


def _name(model: Model) -> str:
    return str(model) if isinstance(model, str | Path) else f"{model.info.provider}:{model.info.name}"


def _opened(model: Model, stack: ExitStack, *, as_is: bool, n_ctx: int | None, progress: Progress) -> LogitsEngine:
    if not isinstance(model, str | Path):
        return model
    provider = provider_of(model)
    options = dict((AS_IS if as_is else EXACT).get(provider, {}))
    if n_ctx is not None:
        options["n_ctx"] = n_ctx
    if provider == "llama_cpp" and not as_is and locate(split_spec(model)[1]).stat().st_size < _SMALL:
        options["n_threads"] = 1
    progress(f"loading {model}")
    engine = load(model, **options)
    stack.callback(engine.close)
    if not isinstance(engine, LogitsEngine):
        raise ConfigError(f"The {provider} engine does not show its logits, so {model} cannot be compared.")
    return engine


def _prompts(
    engines: Sequence[LogitsEngine], texts: Mapping[str, str] | None, *, long: bool, tokens: int
) -> tuple[list[Prompt], list[str]]:
    """The prompts, cut to what both contexts hold, and a note where one was."""
    a, b = engines
    room = min(a.info.n_ctx, b.info.n_ctx) - tokens
    if room < 1:
        raise InputError(f"A context of {room + tokens} tokens has no room for {tokens} greedy tokens and a prompt.")
    if texts is None:
        found = built_in_prompts(a, b, length=LONG if long else LENGTH)
        return [replace(prompt, ids=prompt.ids[:room]) for prompt in found], []
    found = tokenised(dict(texts), a, b)
    notes = [
        f"The prompt {prompt.name} has {len(prompt.ids)} tokens; the first {room} are used, so that {tokens} more fit "
        "into the context."
        for prompt in found
        if len(prompt.ids) > room
    ]
    return [replace(prompt, ids=prompt.ids[:room]) for prompt in found], notes


def _rounded_types(engine: LogitsEngine, other: LogitsEngine) -> list[str]:
    """Types of matrices for which llama.cpp computes in less than float32, where the other engine does not."""
    info = engine.info
    if info.provider != "llama_cpp" or other.info.provider == "llama_cpp" or info.path is None:
        return []
    tensors = open_checkpoint(Path(info.path)).tensors.values()
    return sorted({tensor.dtype for tensor in tensors if len(tensor.shape) == 2} - {"F32"})


def _in_float32(path: Path, stack: ExitStack) -> Path:
    """The model with every tensor in F32, in a temporary folder.

    Raises:
        ModelFileError: no room for it.
    """
    from llamalab.checkpoints.convert import convert

    folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="llamalab-verify-")))
    need, free = 4 * open_checkpoint(path).n_params, shutil.disk_usage(folder).free
    if need > free:
        raise ModelFileError(
            f"{path.name} in F32 takes {need / 2**30:.1f} GiB and {folder.parent} has {free / 2**30:.1f} GiB free. "
            "Name another folder in TMPDIR, or compare as it is with --as-is."
        )
    target = folder / f"{path.stem}-F32.gguf"
    convert(path, target, to="gguf", dtype="F32")
    return target
