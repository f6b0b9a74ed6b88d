"""pico's tokeniser: byte-level BPE whose merges never cross white space or a digit.

    python -m training.tokenizer    # learn it anew, into training/tokenizer.json

Another tokeniser makes another model: the one in the repository belongs to the weights that are shipped.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from random import Random

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

SPECIALS = ("<|pad|>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>")
"""Control tokens; they are ids 0 to 4."""

VOCAB_SIZE = 1024
TOKENIZER = Path(__file__).with_name("tokenizer.json")


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


def main() -> None:
    """Learn from a sample of what pico is trained on."""
    from training.data import draw

    rng = Random(7)
    sample = [draw(rng, step=10_000) for _ in range(20_000)]
    systems = {episode.system for episode in sample if episode.system}
    train_tokenizer([*(turn for episode in sample for turn in episode.turns), *sorted(systems)]).save(str(TOKENIZER))


if __name__ == "__main__":
    main()
