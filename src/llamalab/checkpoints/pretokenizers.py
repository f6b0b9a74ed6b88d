"""How a byte-level BPE cuts text before it joins bytes: llama.cpp's names and Hugging Face's structures.

llama.cpp knows a pre-tokeniser by name, tokenizer.json spells it out. Both are a sequence of regular expressions, each
of which cuts the pieces that the one before left into matches and what lies between. What is in the table here can
be converted; anything else is refused by name where a GGUF is written, because a wrong name gives wrong ids silently.

Source: `llm_tokenizer_bpe` of llama.cpp for names and expressions; the tokenizer.json of the models named.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|"
    r"\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""The expression of Llama 3's tokeniser, as Meta's class and tokenizer.json both write it."""
_QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
_SEED = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1}| ?[^\s\p{L}\p{N}\r\n]+|"
    r"\s*[\r\n]+|\s+(?!\S)|\s+"
)
_TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|"
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|"
    r"\s*[\r\n]+|\s+(?!\S)|\s+"
)
_DIGIT, _DIGITS = r"\p{N}", r"\p{N}+"
_PUNCTUATION = r"[\p{P}\$\+<=>\^~\|]+"

UNKNOWN = "unknown"
"""`Vocabulary.pre` of a pre-tokeniser that is not in the table."""


@dataclass(frozen=True, slots=True)
class Pretokenizer:
    """One way of cutting text.

    Attributes:
        cuts: regular expressions, applied one after the other.
        whole_words: a piece that is a token is taken as it is, before any merges ("ignore_merges").
        bos: BOS is added where the file does not say.
    """

    cuts: tuple[str, ...]
    whole_words: bool = False
    bos: bool = False


PRETOKENIZERS: Mapping[str, Pretokenizer] = {
    "gpt-2": Pretokenizer((_GPT2,)),
    "llama-bpe": Pretokenizer((LLAMA3,), whole_words=True, bos=True),
    "smollm": Pretokenizer((_DIGIT, _GPT2)),
    "qwen2": Pretokenizer((_QWEN2,)),
    "tekken": Pretokenizer((_TEKKEN,), whole_words=True, bos=True),
    "smaug-bpe": Pretokenizer((LLAMA3,)),
    "seed-coder": Pretokenizer((_SEED,)),
    "deepseek-coder": Pretokenizer(("[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[一-龥ࠀ-一가-퟿]+", _DIGIT)),
    "default": Pretokenizer((_PUNCTUATION, _GPT2, _DIGITS, "[0-9][0-9][0-9]")),
}
"""By llama.cpp's name; where several names mean the same, the one of the best known Llama."""

_ALIASES = {
    **dict.fromkeys(
        ("llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2", "jina-v5-nano"), "llama-bpe"
    ),
    **dict.fromkeys(("starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b", "mellum2"), "smollm"),
    **dict.fromkeys(
        (
            "phi-2 jina-es jina-de gigachat jina-v2-es jina-v2-de a.x-4.0 mellum modern-bert "
            "mpt olmo jais trillion granite-docling exaone4"
        ).split(),
        "gpt-2",
    ),
    **dict.fromkeys(
        "deepseek-r1-qwen kormo f2llmv2 stablelm2 megrez hunyuan solar-open grok-2".split(),
        "qwen2",
    ),
    "dbrx": "smaug-bpe",
    "": "default",
}


def pretokenizer(name: str) -> Pretokenizer | None:
    """The pre-tokeniser that llama.cpp calls `name`; None where the table lacks it."""
    return PRETOKENIZERS.get(_ALIASES.get(name, name))


def name_of(structure: Mapping[str, Any] | None, *, whole_words: bool) -> str:
    """llama.cpp's name for the `pre_tokenizer` of a tokenizer.json.

    Args:
        structure: the JSON object.
        whole_words: the model's "ignore_merges".

    Returns:
        The name, or `UNKNOWN`.
    """
    cuts = _cuts(structure)
    if cuts is None:
        return UNKNOWN
    for name, known in PRETOKENIZERS.items():
        if known.cuts == tuple(cuts) and known.whole_words == whole_words:
            return name
    return UNKNOWN


def structure_of(known: Pretokenizer) -> dict[str, Any]:
    """The `pre_tokenizer` of a tokenizer.json."""
    *first, last = known.cuts
    parts = [_cut(cut) for cut in first]
    if last != _GPT2:
        parts.append(_cut(last))
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": last == _GPT2}
    return {"type": "Sequence", "pretokenizers": [*parts, byte_level]} if parts else byte_level


def _cut(expression: str) -> dict[str, Any]:
    if expression in (_DIGIT, _DIGITS):
        return {"type": "Digits", "individual_digits": expression == _DIGIT}
    return {"type": "Split", "pattern": {"Regex": expression}, "behavior": "Isolated", "invert": False}


def _cuts(structure: Mapping[str, Any] | None) -> list[str] | None:
    """The expressions of a `pre_tokenizer`, in order; None where it does something else as well."""
    match structure:
        case {"type": "Sequence", "pretokenizers": [*parts]}:
            found = [_cuts(part) for part in parts]
            return None if None in found else [cut for cuts in found if cuts for cut in cuts]
        case {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}:
            return []
        case {"type": "ByteLevel", "add_prefix_space": False}:
            return [_GPT2]
        case {"type": "Digits", "individual_digits": bool(each)}:
            return [_DIGIT if each else _DIGITS]
        case {"type": "Split", "pattern": {"Regex": str(cut)}, "behavior": "Isolated", "invert": False}:
            return [cut]
        # Keeping what does not match away from what does comes to the same where everything matches.
        case {"type": "Split", "pattern": {"Regex": str(cut)}, "behavior": "Removed", "invert": True}:
            return [cut] if cut.endswith(r"\s+") else None
    return None
