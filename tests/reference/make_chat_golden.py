"""Write tests/golden/chat/*.json: prompts as transformers makes them, text and token ids.

    python -m venv reference && reference/bin/pip install transformers tokenizers jinja2 gguf
    PYTHONPATH=src:. reference/bin/python tests/reference/make_chat_golden.py [LLAMA_CPP_MODELS]

PyTorch is not needed. LLAMA_CPP_MODELS is the folder `models` of a llama.cpp source tree: it holds vocabularies of
well-known models (`ggml-vocab-*.gguf`) and published templates (`templates/*.jinja`). Without it the
files that come from there are left as they are. The tests that need the folder itself find it in the environment
variable LLAMALAB_LLAMA_CPP_MODELS, and are skipped without it.

text.json       built-in templates, rendered by transformers: text of every conversation
published.json  templates of well-known models: text of every conversation, for the built-ins of the same layout
bpe.json        a small byte-level BPE vocabulary, and the ids of every conversation under every built-in
spm.json        the same with a small SentencePiece vocabulary, whose texts get a space in front
real.json       vocabularies of well-known models: number and digest of the ids
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import tokenizers
import transformers
from gguf import GGUFReader
from tests.chat_cases import (
    BYTE,
    CODE,
    CONTROL,
    CONTROL_TYPE,
    CONVERSATIONS,
    NORMAL,
    UNKNOWN,
    USER_DEFINED,
    digest,
    short,
)
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast
from transformers.tokenization_utils_sentencepiece import generate_merges

from llamalab.templates.builtin import BUILT_IN

GOLDEN = Path(__file__).parent.parent / "golden" / "chat"

GPT4 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,%d}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SPLITS = {"gpt-2": None, "llama-bpe": GPT4 % 3, "qwen2": GPT4 % 1}
"""Pre-tokeniser patterns in the tokenizer.json of these models; None: ByteLevel's own."""

REAL = {
    "llama-bpe": ("llama3",),
    "llama-spm": ("llama2", "mistral"),
    "phi-3": ("phi3",),
    "qwen2": ("chatml",),
    "gpt-2": ("plain", "chatml"),
}
"""Vocabulary to the built-ins that are tried with it."""

PUBLISHED = {
    "gemma": "google-gemma-2-2b-it",
    "phi3": "microsoft-Phi-3.5-mini-instruct",
    "chatml": "Qwen-Qwen2.5-7B-Instruct",
}
"""Built-in to a published template of the same layout (the last two write a system message of their own or none)."""

TRAINING_TEXT = [content for turns in CONVERSATIONS.values() for content in (t["content"] for t in turns)] + [CODE]


def main() -> None:
    """Write every file that can be made here."""
    GOLDEN.mkdir(parents=True, exist_ok=True)
    bpe, spm = small_bpe(), small_spm()
    texts = {
        name: {talk: outcome(reference(bpe, source), talk, tokenize=False) for talk in CONVERSATIONS}
        for name, source in BUILT_IN.items()
    }
    write("text.json", texts)
    for file, vocabulary in (("bpe.json", bpe), ("spm.json", spm)):
        write(file, {"vocabulary": vocabulary, "ids": ids_of(vocabulary, BUILT_IN)})
    if len(sys.argv) > 1:
        folder = Path(sys.argv[1])
        published = {
            name: (folder / "templates" / f"{model}.jinja").read_text(encoding="utf-8")
            for name, model in PUBLISHED.items()
        }
        write(
            "published.json",
            {
                name: {talk: outcome(reference(bpe, source), talk, tokenize=False) for talk in CONVERSATIONS}
                for name, source in published.items()
            },
        )
        write(
            "real.json",
            {name: ids_of(read_vocabulary(folder / f"ggml-vocab-{name}.gguf"), names) for name, names in REAL.items()},
        )


def ids_of(vocabulary: dict[str, Any], names: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Template and conversation to [number of ids, digest, the first 24 ids], BOS in front if the model wants one."""
    found: dict[str, dict[str, Any]] = {}
    for name in names:
        tokenizer = reference(vocabulary, BUILT_IN[name])
        found[name] = {}
        for talk in CONVERSATIONS:
            ids = outcome(tokenizer, talk, tokenize=True)
            if vocabulary["add_bos"] and ids[:1] != [vocabulary["bos"]]:
                ids = [vocabulary["bos"], *ids]
            found[name][talk] = [len(ids), digest(ids), ids[:24]]
    return found


def outcome(tokenizer: PreTrainedTokenizerFast, talk: str, *, tokenize: bool) -> Any:
    """What transformers makes of a conversation; None where the template refuses it."""
    messages = CONVERSATIONS[talk]
    try:
        made = tokenizer.apply_chat_template(
            messages, tokenize=tokenize, add_generation_prompt=messages[-1]["role"] == "user", return_dict=False
        )
    except Exception as error:  # noqa: BLE001 - jinja2 and transformers raise many kinds
        print(f"{talk}: {error}", file=sys.stderr)
        return None
    return list(made) if tokenize else short(made)


def reference(vocabulary: dict[str, Any], source: str) -> PreTrainedTokenizerFast:
    """The vocabulary as a transformers tokeniser with the chat template `source`."""
    tokens, types = vocabulary["tokens"], vocabulary["types"]
    tokenizer = sentencepiece(vocabulary) if vocabulary["model"] == "llama" else byte_level(vocabulary)
    rstrip = vocabulary["name"].lower().startswith("phi") and {"<unk>", "<s>", "<|endoftext|>"}
    for token, kind in zip(tokens, types, strict=True):
        if kind in (CONTROL_TYPE, USER_DEFINED, UNKNOWN) and not (kind == UNKNOWN and token != "<unk>"):
            strips = bool(rstrip) and token not in rstrip
            added = AddedToken(token, normalized=False, special=kind != USER_DEFINED, rstrip=strips)
            (tokenizer.add_tokens if kind == USER_DEFINED else tokenizer.add_special_tokens)([added])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=tokens[vocabulary["bos"]],
        eos_token=tokens[vocabulary["eos"]],
        chat_template=source,
    )


def byte_level(vocabulary: dict[str, Any]) -> Tokenizer:
    """GPT-2's kind of BPE, with the pre-tokeniser of the model."""
    ids = {token: i for i, token in enumerate(vocabulary["tokens"])}
    merges = [tuple(merge) for merge in vocabulary["merges"]]
    tokenizer = Tokenizer(models.BPE(ids, merges, ignore_merges=vocabulary["pre"] == "llama-bpe"))
    split = SPLITS[vocabulary["pre"]]
    if split is None:
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    else:
        parts = [
            pre_tokenizers.Split(Regex(split), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(parts)
    if vocabulary["pre"] == "qwen2":
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def sentencepiece(vocabulary: dict[str, Any]) -> Tokenizer:
    """Llama 2's kind: BPE by scores, byte fallback, and a space in front of every run of text."""
    ids = {token: i for i, token in enumerate(vocabulary["tokens"])}
    scores = {
        token: score
        for token, score, kind in zip(vocabulary["tokens"], vocabulary["scores"], vocabulary["types"], strict=True)
        if kind == NORMAL
    }
    merges = generate_merges(ids, scores)
    tokenizer = Tokenizer(models.BPE(ids, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    return tokenizer


def read_vocabulary(path: Path) -> dict[str, Any]:
    """The vocabulary of a GGUF."""
    fields = GGUFReader(path).fields

    def value(key: str, default: Any = None) -> Any:
        field = fields.get(f"tokenizer.ggml.{key}")
        return default if field is None else field.contents()

    model = value("model")
    return {
        "name": fields["general.name"].contents(),
        "model": model,
        "pre": value("pre"),
        "tokens": value("tokens"),
        "types": value("token_type"),
        "scores": value("scores"),
        "merges": [merge.split(" ") for merge in value("merges", [])],
        "bos": value("bos_token_id"),
        "eos": value("eos_token_id"),
        # llama.cpp's rule where the file is silent: SentencePiece vocabularies and Llama 3's want a BOS.
        "add_bos": value("add_bos_token", model == "llama" or value("pre") == "llama-bpe"),
    }


def small_bpe() -> dict[str, Any]:
    """A byte-level BPE of about 500 tokens, trained on the conversations, with Llama 3's pre-tokeniser."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLITS["llama-bpe"]), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    trainer = trainers.BpeTrainer(vocab_size=500, initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    tokenizer.train_from_iterator(TRAINING_TEXT, trainer)
    model = json.loads(tokenizer.to_str())["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].get)
    return {
        "name": "small-bpe",
        "model": "gpt2",
        "pre": "llama-bpe",
        "tokens": tokens + CONTROL,
        "types": [NORMAL] * len(tokens) + [CONTROL_TYPE] * len(CONTROL),
        "merges": model["merges"],
        "bos": len(tokens) + CONTROL.index("<s>"),
        "eos": len(tokens) + CONTROL.index("</s>"),
        "add_bos": True,
    }


def small_spm() -> dict[str, Any]:
    """A SentencePiece BPE of about 700 tokens: bytes, pieces in the order in which they were merged."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("▁"), behavior="merged_with_next")
    tokenizer.train_from_iterator(
        [text for text in TRAINING_TEXT if text.isascii()], trainers.BpeTrainer(vocab_size=400)
    )
    model = json.loads(tokenizer.to_str())["model"]
    merged = ["".join(merge) for merge in model["merges"]]
    letters = [token for token in sorted(model["vocab"]) if len(token) == 1 and token not in "\n\t\r"]
    pieces = [piece for piece in dict.fromkeys([*merged, *letters]) if not set(piece) & set("\n\t\r")]
    special = ["<unk>", "<s>", "</s>"]
    rest = [token for token in CONTROL if token not in special]
    data = [f"<0x{byte:02X}>" for byte in range(256)]
    return {
        "name": "small-spm",
        "model": "llama",
        "pre": "default",
        "tokens": special + data + pieces + rest,
        "types": [UNKNOWN, CONTROL_TYPE, CONTROL_TYPE]
        + [BYTE] * 256
        + [NORMAL] * len(pieces)
        + [CONTROL_TYPE] * len(rest),
        "scores": [0.0] * 259 + [-float(i) for i in range(len(pieces))] + [0.0] * len(rest),
        "bos": 1,
        "eos": 2,
        "add_bos": True,
    }


def write(name: str, data: dict[str, dict[str, Any]]) -> None:
    """One line per entry of each part, so that a change can be read."""
    made = {"made by": {"transformers": transformers.__version__, "tokenizers": tokenizers.__version__}, **data}
    parts = []
    for part, entries in made.items():
        lines = [f"  {json.dumps(key)}: {json.dumps(value, ensure_ascii=False)}" for key, value in entries.items()]
        parts.append(f" {json.dumps(part)}: {{\n" + ",\n".join(lines) + "\n }")
    (GOLDEN / name).write_text("{\n" + ",\n".join(parts) + "\n}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
