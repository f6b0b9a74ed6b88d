"""pico's tokeniser: byte-level BPE whose merges never cross white space or a digit."""

from __future__ import annotations

from collections.abc import Iterable

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

SPECIALS = ("<|pad|>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>")
"""Control tokens; they are ids 0 to 4."""

VOCAB_SIZE = 1024


def train_tokenizer(texts: Iterable[str]) -> Tokenizer:
    """Learn the merges from `texts`.

    White space and digits stand alone, so that a word is the same pieces after a space and after a quote (copying
    stays copying) and a number is its digits. The remaining runs are cut as GPT-2 cuts them, which is what the
    runtime does with the exported vocabulary.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"\s"), "isolated"),
            pre_tokenizers.Split(Regex(r"\p{N}"), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=list(SPECIALS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer
