"""Do two forms of a tokeniser give the same ids?"""

from __future__ import annotations

import json
from pathlib import Path

from llamalab.checkpoints.encoders import json_encoder, sentencepiece_encoder, tiktoken_encoder
from llamalab.checkpoints.tokenizer_json import build_tokenizer_json
from llamalab.checkpoints.vocabulary import Vocabulary
from llamalab.errors import ConfigError, ModelFileError

TEXTS = (
    "",
    " ",
    "  ",
    "\n",
    "\r\n\r\n \t\n",
    "Hello, world!",
    " leading and trailing ",
    "The quick brown fox jumps over the lazy dog, 13 times in 2024.",
    "I'll, you're, WE'VE, it's, she'd, can't; 'tis o'clock 'LL 'Re",
    "1 12 123 1234 12345 123456789 3.14159 1,000,000 ½ ٣٤ Ⅷ",
    "def f(x):\n    return {'a': [x ** 2, x // 3]}  # comment\n\n\n\tpass\n",
    "a  b   c    d                                        e",
    "trailing spaces   \n   and lines\n\n  \n",
    "Ångström naïve façade Straße œuvre ŁÓDŹ",
    "Привет, мир! Γειά σου Κόσμε. שלום עולם. مرحبا بالعالم",
    "你好，世界。こんにちは世界 안녕하세요 สวัสดีชาวโลก नमस्ते दुनिया",
    "e\u0301 cafe\u0301 \u200d\u200b\ufeff zero widths",
    "😀 👩‍👩‍👧‍👦 🏳️‍🌈 🇩🇪 ✓ → ∑ ≤ €",
    "<|begin_of_text|><|eot_id|> </s><s><unk> [INST] <0x0A> <|end|>",
    "https://example.org/path?q=1&r=%20#top user@example.org",
    "!!!???...---===***___```'''\"\"\"",
    "\u2581already\u2581marked",
    "\u00a0\u2003\u3000 wide \u0085 spaces \x0b\x0c\x00\x1f",
    "𝔘𝔫𝔦𝔠𝔬𝔡𝔢 \U0010ffff \ufffd",
    "word " * 50 + "x" * 300,
)
"""What is compared: spaces, digits, contractions, code, scripts, marks, emoji, control tokens as text, odd bytes."""


def first_difference(vocabulary: Vocabulary, model: Path) -> str | None:
    """Where a `tokenizer.model` gives other ids than `vocabulary` on `TEXTS`; None where it nowhere does."""
    source = vocabulary.files.get("tokenizer.json")
    expected = json_encoder(json.dumps(build_tokenizer_json(vocabulary)) if source is None else source)
    try:
        found = tiktoken_encoder(model) if vocabulary.kind == "bpe" else sentencepiece_encoder(model, {})
    except (ConfigError, ModelFileError) as error:
        return f"the class that would read it does not ({error})"
    for text in TEXTS:
        if found(text, False) != expected(text, False):
            return f"the class that reads it gives other ids for {text[:40]!r}"
    return None
