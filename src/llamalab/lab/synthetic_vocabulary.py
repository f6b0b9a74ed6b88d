"""A made-up vocabulary of any size, cut by byte-level BPE as Llama 3's is."""

from __future__ import annotations

import random

from llamalab.checkpoints.pieces import ALPHABET
from llamalab.checkpoints.vocabulary import TokenType, Vocabulary

_MOST_CONTROL = 256
_SHARE_CONTROL = 16
"""One token of so many is a control token, as long as there are no more than Llama 3 has."""

_SHARE_MERGES = 8
"""Where there are fewer tokens than bytes, one of so many is a merge of two others."""

_JSON_PAIRS = ('{"', '":', '",', ',"', '"}', "[{", "}]", "},", '["', '"]')
_LETTERS = "etaoinshrdlucmfwypvbgkjqxzETAOINSHRDLUCMFWYPVBGKJQXZ"
_LONGEST = 12


def made_up_vocabulary(size: int) -> Vocabulary:
    """Bytes, JSON's own pairs, two-digit numbers, and strings of letters of a natural length.

    What text becomes is no language, but it has the lengths of one: speed and memory of tokenising, constraining and
    sampling are those of a real vocabulary of the size. Below 275 tokens some bytes have none, the rarest first.

    Args:
        size: number of tokens; always the same ones for a size.
    """
    n_control = min(_MOST_CONTROL, max(2, size // _SHARE_CONTROL))
    tokens, merges = _byte_level_bpe(size - n_control)
    control = ["<|begin_of_text|>", "<|end_of_text|>", *(f"<|control_{i}|>" for i in range(2, n_control))]
    normal: list[TokenType] = ["normal"] * len(tokens)
    special: list[TokenType] = ["control"] * n_control
    return Vocabulary(
        kind="bpe",
        tokens=[*tokens, *control],
        types=normal + special,
        merges=merges,
        pre="llama-bpe",
        bos_id=len(tokens),
        eos_id=len(tokens) + 1,
        stop_ids=frozenset({len(tokens) + 1}),
        add_bos=True,
    )


def _byte_level_bpe(count: int) -> tuple[list[str], list[str]]:
    """`count` tokens in GPT-2's byte alphabet, and their merges in order."""
    common = [ord(c) for c in f" \n{_LETTERS}"]
    order = range(256) if count > 256 else [*common, *(b for b in range(256) if b not in common)]
    # llama.cpp refuses a byte-level BPE without merges, so a small vocabulary gives up some bytes for them.
    n_bytes = 256 if count > 256 else count - max(1, count // _SHARE_MERGES)
    tokens = [ALPHABET[byte] for byte in order][:n_bytes]
    merges: list[str] = []
    known = set(tokens)

    def merge(left: str, right: str) -> None:
        joined = left + right
        if len(tokens) < count and joined not in known and known.issuperset((left, right)):
            known.add(joined)
            tokens.append(joined)
            merges.append(f"{left} {right}")

    for pair in _JSON_PAIRS:
        merge(*pair)
    for tens in "0123456789":
        for ones in "0123456789":
            merge(tens, ones)
    space = ALPHABET[ord(" ")]
    for letter in _LETTERS[:30]:
        merge(space, letter)
    words = [*_LETTERS[:26], *(space + letter for letter in _LETTERS[:30])]
    draw = random.Random(0).random
    while len(tokens) < count:
        left, right = words[int(draw() * len(words))], _LETTERS[int(draw() * 26)]
        if len(left) < _LONGEST and left + right not in known:
            merge(left, right)
            if left + right in known:
                words.append(left + right)
    return tokens, merges
