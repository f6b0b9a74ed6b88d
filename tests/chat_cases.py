"""Conversations that every chat test and `reference/make_chat_golden.py` use, and small vocabularies as files."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gguf

CODE = "def f(x):\n    if x > 1:\n\treturn {'a': [1, 2.5]}  # done\n\n\nprint(f(3))\n"
LONG = "The quick brown fox jumps over the lazy dog; 1234567890 times, they say. " * 400


def talk(*contents: str, system: str | None = None) -> list[dict[str, str]]:
    """The contents as user and assistant in turn, after a system message if there is one."""
    turns = [{"role": ("user", "assistant")[i % 2], "content": content} for i, content in enumerate(contents)]
    return turns if system is None else [{"role": "system", "content": system}, *turns]


CONVERSATIONS: dict[str, list[dict[str, str]]] = {
    "one question": talk("What is the capital of France?"),
    "system": talk("Hello!", system="You are brief."),
    "several turns": talk("Hi", "Hello, how can I help?", "Sing.", "La la la.", "Thanks!", system="You sing."),
    "ends with assistant": talk("Hi", "Hello there"),
    "empty": talk("", "", ""),
    "empty system": talk("Hi", system=""),
    "unicode": talk("Größe, naïve café, Ελληνικά, русский, 中文字符, 日本語, עברית", "한국어 ไทย"),
    "emoji": talk("👩‍👩‍👧‍👦 and 🏳️‍🌈 and 😀😃", "🫠"),
    "spaces around": talk("  two before, three behind   ", "\n\n newlines \t\n", " x "),
    "inner white space": talk("a  b   c\td\r\ne\n\n\n\nf", "g\u00a0h\u3000i"),
    "code": talk(CODE, "```python\n" + CODE + "```", "Why?"),
    "digits": talk("1 12 123 1234 12345 3.14159 1,000,000 0x1F", "42"),
    "punctuation": talk("What?! (no) [yes] {maybe} <b>bold</b> 'a' \"b\" it's we'll a_b a-b ...", "#$%^&*|\\/~`"),
    "almost special": talk("<|eot_id <s INST] |> <|> </ s> <start_of_turn <|im_end| >", "<<SYS>> [INST]x[/INST]"),
    "long": talk(LONG, "Yes.", LONG, system=LONG),
}

CONTROL = [
    *("<s>", "</s>", "<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
    *("<|im_start|>", "<|im_end|>", "<start_of_turn>", "<end_of_turn>"),
    *("<|system|>", "<|user|>", "<|assistant|>", "<|end|>"),
]
"""Control strings of the small vocabularies: those of every built-in template."""

NORMAL, UNKNOWN, CONTROL_TYPE, USER_DEFINED, BYTE = 1, 2, 3, 4, 6


def write_vocabulary(path: Path, vocabulary: dict[str, Any], *, template: str | None = None) -> Path:
    """A GGUF that holds `vocabulary` and no weights."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name(vocabulary["name"])
    writer.add_tokenizer_model(vocabulary["model"])
    writer.add_tokenizer_pre(vocabulary["pre"])
    writer.add_token_list(vocabulary["tokens"])
    writer.add_token_types(vocabulary["types"])
    if vocabulary["model"] == "llama":
        writer.add_token_scores(vocabulary["scores"])
        writer.add_unk_token_id(vocabulary["types"].index(UNKNOWN))
    else:
        writer.add_token_merges([" ".join(merge) for merge in vocabulary["merges"]])
    writer.add_bos_token_id(vocabulary["bos"])
    writer.add_eos_token_id(vocabulary["eos"])
    writer.add_add_bos_token(vocabulary["add_bos"])
    if template is not None:
        writer.add_chat_template(template)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def digest(ids: Sequence[int]) -> str:
    """A short name for a list of ids."""
    return hashlib.sha256(" ".join(map(str, ids)).encode()).hexdigest()[:16]


def short(text: str) -> str:
    """`text`, or its length and digest if it is long."""
    return text if len(text) < 2_000 else f"{len(text)} characters, {hashlib.sha256(text.encode()).hexdigest()[:16]}"
