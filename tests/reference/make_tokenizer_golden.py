"""Write tests/golden/tokenizer: two small tokenisers, and the ids that Meta's and SentencePiece's own classes give.

    PYTHONPATH=src:. python tests/reference/make_tokenizer_golden.py

Needs llama-models, tiktoken, transformers and sentencepiece. `tiktoken/tokenizer.model` has the form of Llama 3's file
and `sentencepiece/tokenizer.model` that of Llama 2's; both are trained here, on the texts below. `tiktoken.json` and
`sentencepiece.json` hold ids by them, `llama3.json` ids by the real tokenizer.model of llama-models.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
from pathlib import Path
from typing import Any

import llama_models.llama3.tokenizer as meta
import sentencepiece
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers
from transformers.convert_slow_tokenizer import TikTokenConverter, bytes_to_unicode

from llamalab.checkpoints.tokenizer_check import TEXTS

GOLDEN = Path(__file__).parent.parent / "golden" / "tokenizer"
REAL = Path(meta.__file__).parent / "tokenizer.model"
LONG = (("x", 60_000), (" ", 60_000), ("ab cd\n", 100_000), ("é1 ", 30_000))
"""Unit and number of times: past the lengths at which Meta's class cuts a text."""

MORE = (
    "I can't believe it'll cost $1,234.56! We'VE HAD 3 of them; they'RE gone.\n\nReally?\tYes.",
    "for (int i = 0; i < n; ++i) {\r\n\tsum += a[i] * 0x1F;\r\n}",
    "<|start_header_id|>user<|end_header_id|>\n\nhi<|eot_id|>",
    "<s>[INST] <<SYS>> be brief <</SYS>> hello [/INST]</s>",
    "    indented\n        twice\n\n\n\nmany lines   ",
    "ǅ ǈ ŉ ﬁ ß İ ı ſ K Å ½ ² ③ 〇 ৩ 一二三 ١٢٣",
    "\U0001f468\U0001f3fd\u200d\U0001f52c and \U0001f1eb\U0001f1f7, a\u0308\u0323 \u1100\u1161",
    "x" * 40 + " " * 40 + "\n" * 20 + "9" * 20,
)


def main() -> None:
    for kind in ("tiktoken", "sentencepiece"):
        (GOLDEN / kind).mkdir(parents=True, exist_ok=True)
    small = GOLDEN / "tiktoken" / "tokenizer.model"
    train_tiktoken(small)
    write("tiktoken", by_meta(small))
    write("llama3", {"sha256": hashlib.sha256(REAL.read_bytes()).hexdigest(), **by_meta(REAL)})
    path = GOLDEN / "sentencepiece" / "tokenizer.model"
    train_sentencepiece(path)
    processor = sentencepiece.SentencePieceProcessor(model_file=str(path))
    write("sentencepiece", {"ids": [[text, processor.encode(text)] for text in (*TEXTS, *MORE)]})


def by_meta(path: Path) -> dict[str, Any]:
    """Ids of Meta's class, and proof that transformers' converter of the same file agrees."""
    tokenizer = meta.Tokenizer(path)
    theirs = TikTokenConverter(vocab_file=str(path), extra_special_tokens=list(tokenizer.special_tokens)).converted()
    rows = []
    for text in (*TEXTS, *MORE):
        ids = tokenizer.encode(text, bos=False, eos=False)
        marked = tokenizer.encode(text, bos=False, eos=False, allowed_special="all")
        assert marked == theirs.encode(text, add_special_tokens=False).ids, text
        rows.append([text, ids, marked])
    long = [[unit, times, digest(tokenizer.encode(unit * times, bos=False, eos=False))] for unit, times in LONG]
    return {"ids": rows, "long": long}


def digest(ids: list[int]) -> str:
    return hashlib.sha256(json.dumps(ids).encode()).hexdigest()


def train_tiktoken(path: Path) -> None:
    tokenizer = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(meta.Tokenizer.pat_str), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(False, use_regex=False)])
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=600, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator([*TEXTS, *MORE, Path(__file__).read_text(encoding="utf-8")], trainer)
    byte_of = {char: byte for byte, char in bytes_to_unicode().items()}
    lines = []
    for token, rank in sorted(tokenizer.get_vocab().items(), key=lambda entry: entry[1]):
        data = bytes(byte_of[char] for char in token)
        lines.append(f"{base64.b64encode(data).decode()} {rank}\n")
    path.write_text("".join(lines))


def train_sentencepiece(path: Path) -> None:
    trained = io.BytesIO()  # a path given to the trainer would stand in the file
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter("\n".join([*TEXTS[5:], *MORE, Path(__file__).read_text(encoding="utf-8")]).split("\n")),
        model_writer=trained,
        model_type="bpe",
        vocab_size=700,
        byte_fallback=True,
        character_coverage=0.98,
        split_digits=True,
        allow_whitespace_only_pieces=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        minloglevel=2,
    )
    path.write_bytes(trained.getvalue())


def write(name: str, data: dict[str, Any]) -> None:
    text = json.dumps(data, ensure_ascii=True, separators=(",", ":"))
    (GOLDEN / f"{name}.json").write_text(text.replace("],[", "],\n[") + "\n")


if __name__ == "__main__":
    main()
