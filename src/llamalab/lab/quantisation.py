"""Which of llama.cpp's quantisations a file has, told from its tensors and not from what it is called.

A quantisation such as Q4_K_M is a mixture: most matrices have one type, and those that suffer most from rounding (the
values of attention, its output, the way down from the feed-forward block) a finer one. S, M and L say how many.

Source: `llama_tensor_get_type_impl` and `tensor_type_fallback` of llama.cpp's quantiser.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import TypeAlias

from llamalab.checkpoints.ggml_types import GGML_TYPES
from llamalab.checkpoints.stored import Stored

FILE_TYPES: Mapping[int, str] = {
    0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 4: "Q4_1_SOME_F16", 7: "Q8_0", 8: "Q5_0", 9: "Q5_1", 10: "Q2_K",
    11: "Q3_K_S", 12: "Q3_K_M", 13: "Q3_K_L", 14: "Q4_K_S", 15: "Q4_K_M", 16: "Q5_K_S", 17: "Q5_K_M", 18: "Q6_K",
    19: "IQ2_XXS", 20: "IQ2_XS", 21: "Q2_K_S", 22: "IQ3_XS", 23: "IQ3_XXS", 24: "IQ1_S", 25: "IQ4_NL", 26: "IQ3_S",
    27: "IQ3_M", 28: "IQ2_S", 29: "IQ2_M", 30: "IQ4_XS", 31: "IQ1_M", 32: "BF16", 33: "Q4_0_4_4", 34: "Q4_0_4_8",
    35: "Q4_0_8_8", 36: "TQ1_0", 37: "TQ2_0", 38: "MXFP4_MOE", 39: "NVFP4", 40: "Q1_0", 41: "Q2_0",
}  # fmt: skip
"""What the number in `general.file_type` stands for."""

_GUESSED = 1024
"""Added to the number by whoever was not told it."""

_FALLBACK = {
    "Q4_K": "Q5_0",
    "Q5_K": "Q5_1",
    "Q6_K": "Q8_0",
    **dict.fromkeys(("Q2_K", "Q3_K", "TQ1_0", "TQ2_0"), "Q4_0"),
    **dict.fromkeys(("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S", "IQ4_XS"), "IQ4_NL"),
}
"""What the quantiser takes where a row is no multiple of 256 values."""

_SUPERBLOCK = 256
_OF_TYPE = {"IQ2_M": "IQ2_S", "IQ3_XS": "IQ3_S", "IQ3_M": "IQ3_S", "MXFP4_MOE": "MXFP4"}
"""Mixtures whose name does not begin with that of their type."""

_ROLES = {
    "v": ("attn_v.weight", "attn_qkv.weight", "attn_kv_b.weight"),
    "q": ("attn_q.weight",),
    "output": ("attn_output.weight",),
    "down": ("ffn_down",),
    "up": ("ffn_up", "ffn_gate"),
}
_PLAIN_ROLES = ("up", "q")
"""Matrices that (but for the IQ3 mixtures) get the type that the mixture is named after."""

_Roles: TypeAlias = Mapping[str, Counter[str]]


def quantisation_from_tensors(tensors: Mapping[str, Stored]) -> str | None:
    """The quantisation of a GGUF's tensors, e.g. "Q4_K_M" or "F16"; None where there are no matrices.

    Types that the quantiser took only because a row is no multiple of 256 count as what they stand for, if the other
    matrices show that. A mixture of one type throughout is called by that type alone ("Q4_K").
    """
    matrices = {name: tensor for name, tensor in tensors.items() if len(tensor.shape) > 1 and "norm" not in name}
    inside = {name: tensor for name, tensor in matrices.items() if "blk." in name and "_inp." not in name} or matrices
    kinds = _planned(inside)
    if not kinds:
        return None
    roles: dict[str, Counter[str]] = {role: Counter() for role in _ROLES}
    for name, kind in kinds.items():
        for role, parts in _ROLES.items():
            if any(part in name for part in parts):
                roles[role][kind] += math.prod(inside[name].shape)
    plain = sum((roles[role] for role in _PLAIN_ROLES), Counter[str]()) or Counter(
        {kind: sum(math.prod(inside[name].shape) for name in kinds if kinds[name] == kind) for kind in kinds.values()}
    )
    embedding = tensors.get("token_embd.weight")
    return _mixture(plain.most_common(1)[0][0], roles, embedding.dtype if embedding else None)


def file_type_name(number: object) -> str | None:
    """What `general.file_type` says; None where it says nothing, or only guesses."""
    if not isinstance(number, int) or isinstance(number, bool) or number & _GUESSED:
        return None
    return FILE_TYPES.get(number, f"unknown ({number})")


def contradicts(said: str | None, found: str | None, tensors: Iterable[Stored]) -> str | None:
    """Why a name does not fit the quantisation that was found; None if it does, or if either is unknown.

    Names that are not llama.cpp's own (UD-Q4_K_XL, Q5_K_L) are held to their type alone.

    Args:
        said: by `general.file_type` or a file name.
        found: see `quantisation_from_tensors`.
        tensors: of the file.

    Returns:
        "Q4_K_M, but the tensors are those of Q8_0", to go on from what said it.
    """
    if said is None or found is None or said == found or {said, found} == {"MXFP4", "MXFP4_MOE"}:
        return None
    exact = said in FILE_TYPES.values()
    if not exact and _type_of(said.removeprefix("UD-")) == _type_of(found):
        return None
    values: Counter[str] = Counter()
    odd = 0
    for tensor in tensors:
        if len(tensor.shape) > 1:
            values[tensor.dtype] += math.prod(tensor.shape)
            odd += math.prod(tensor.shape) if tensor.shape[-1] % _SUPERBLOCK else 0
    why, fallback = "", _FALLBACK.get(_type_of(said))
    if 2 * odd > values.total() and values.most_common(1)[0][0] == fallback:
        if found != fallback:
            return None  # several types are replaced by the same one: which it was cannot be told
        why = f": its rows are no multiple of {_SUPERBLOCK} values, for which the quantiser takes another type"
    return f"{said}, but the tensors are those of {found}{why}"


def _planned(tensors: Mapping[str, Stored]) -> dict[str, str]:
    """The type that the quantiser meant for each matrix, where its fallbacks can be told from the others."""
    whole = Counter(t.dtype for t in tensors.values() if t.shape[-1] % _SUPERBLOCK == 0)
    meant = [kind for kind, _ in whole.most_common() if GGML_TYPES[kind].values == _SUPERBLOCK]
    stands_for = {}
    for fallback in set(_FALLBACK.values()) if meant else ():
        candidates = [kind for kind in _FALLBACK if _FALLBACK[kind] == fallback]
        likely = [kind for kind in meant if kind in candidates]
        if likely or len(candidates) == 1:
            stands_for[fallback] = (likely or candidates)[0]
        elif set(meant) <= {"Q4_K", "Q5_K"} and fallback == "Q4_0":
            stands_for[fallback] = "Q3_K"  # only Q3_K_M and Q3_K_L go from there to these
    return {
        name: stands_for.get(tensor.dtype, tensor.dtype) if tensor.shape[-1] % _SUPERBLOCK else tensor.dtype
        for name, tensor in tensors.items()
    }


def _mixture(main: str, roles: _Roles, embedding: str | None) -> str:
    """The name of the mixture whose plain matrices are of the type `main`."""
    fine = {*roles["v"], *roles["down"], *roles["output"]}
    match main:
        case "Q2_K":
            return "Q2_K" if "Q3_K" in {*roles["down"], *roles["output"]} else "Q2_K_S"
        case "Q3_K":
            most = next(iter((roles["down"] or roles["output"]).most_common(1)), ("Q3_K", 0))[0]
            return {"Q4_K": "Q3_K_M", "Q5_K": "Q3_K_L"}.get(most, "Q3_K_S")
        case "Q4_K":
            return "Q4_K_M" if "Q6_K" in fine else "Q4_K_S" if "Q5_K" in fine else "Q4_K"
        case "Q5_K":
            return "Q5_K_M" if "Q6_K" in fine else "Q5_K_S"
        case "IQ2_XS":
            return "IQ2_S" if "IQ3_S" in {*roles["output"], *roles["down"], embedding} else "IQ2_XS"
        case "IQ2_S":
            return "IQ2_M"
        case "IQ3_XXS" | "IQ3_S" if "IQ3_S" in roles["down"] and "IQ3_XXS" in {*roles["q"], *roles["up"]}:
            return "IQ3_XS"
        case "IQ3_S":
            return "IQ3_M" if "Q4_K" in {*roles["output"], *roles["down"]} else "IQ3_S"
        case "MXFP4":
            return "MXFP4_MOE"
    return main


def _type_of(name: str) -> str:
    """The type that most of a mixture has: "Q4_K" of "Q4_K_M"."""
    parts = _OF_TYPE.get(name, name).split("_")
    while len(parts) > 1 and "_".join(parts) not in GGML_TYPES:
        parts.pop()
    return "_".join(parts)
