"""Variables that hand on a value, and words that come often: RULER's tracing and aggregation.

Source: Hsieh et al. 2024, "RULER", sections 3.2 and 3.3, and its published settings; the wording is ours.
"""

from __future__ import annotations

from collections import Counter
from itertools import accumulate, pairwise
from random import Random
from string import ascii_lowercase, ascii_uppercase

from llamalab.rlm.bench import names
from llamalab.rlm.bench.case import Made, fill
from llamalab.rlm.bench.scorers import AllOf

HOPS = 4
CHAINS = 2
COMMON, COMMON_TIMES, OTHER_TIMES = 10, 30, 3
_PER_LINE = 10


def variables(rng: Random, size: int) -> Made:
    """Which variables have a value, through `HOPS` assignments; there is another chain of the same length."""
    letters = names.distinct(rng, CHAINS * (HOPS + 1), _variable)
    values = names.distinct(rng, CHAINS, lambda rng: names.digits(rng, 5))
    chains = [letters[at * (HOPS + 1) : (at + 1) * (HOPS + 1)] for at in range(CHAINS)]
    told = [
        [f"VAR {chain[0]} = {value}", *(f"VAR {b} = VAR {a}" for a, b in pairwise(chain))]
        for chain, value in zip(chains, values, strict=True)
    ]
    text = fill(rng, size, _interleaved(rng, told), names.essay_line)
    question = (
        f"Which variables have the value {values[0]}, directly or through other variables? "
        "Answer with their names, separated by commas."
    )
    return text, question, AllOf(frozenset(chains[0]), frozenset(letters))


def common_words(rng: Random, size: int) -> Made:
    """The ten words that come thirty times; all others come three times.

    In a text too short for that the ten come as often as there is room for, and others half as often at the most.
    """
    digits = len(str(size // 15))
    often = min(COMMON_TIMES, max(size // (3 * COMMON * 15), 2))
    seldom = min(OTHER_TIMES, often // 2)
    common = names.distinct(rng, COMMON, names.made_up)
    said, listed = set(common), common * often
    room = size - sum(_width(word, digits) for word in listed)
    while True:
        word = names.made_up(rng)
        if word in said:
            continue
        room -= seldom * _width(word, digits)
        if room < 0:
            break
        said.add(word)
        listed += [word] * seldom
    rng.shuffle(listed)
    text = _in_lines([f"{at}. {word}" for at, word in enumerate(listed, start=1)])
    question = (
        "The text is a numbered list of words. Which ten words come most often? Answer with them, separated by commas."
    )
    return text, question, AllOf(frozenset(common), frozenset(said))


def frequent_words(rng: Random, size: int) -> Made:
    """The three words that come most often in a text of made-up ones, dots left out.

    The k-th word comes with a frequency of k to the power of -2; the first of all is replaced by dots. A text in which
    the third and the fourth are tied is drawn again.
    """
    vocabulary = ["...", *names.distinct(rng, max(size // 50, 20), _coded)]
    weights = list(accumulate(rank**-2.0 for rank in range(1, len(vocabulary) + 1)))
    while True:
        words: list[str] = []
        room = size
        while room > 0:
            words.append(rng.choices(vocabulary, cum_weights=weights)[0])
            room -= len(words[-1]) + 1
        words.pop()
        counts = Counter(word for word in words if word != "...")
        ranked = counts.most_common(4)
        if len(ranked) > 3 and ranked[2][1] > ranked[3][1]:
            break
    question = (
        "The text is made of coded words; dots stand for words left out. "
        "Which three coded words come most often? Answer with them, separated by commas."
    )
    return _in_lines(words), question, AllOf(frozenset(word for word, _ in ranked[:3]), frozenset(counts))


def _variable(rng: Random) -> str:
    return "".join(rng.choices(ascii_uppercase, k=5))


def _coded(rng: Random) -> str:
    return "".join(rng.choices(ascii_lowercase, k=6))


def _interleaved(rng: Random, chains: list[list[str]]) -> list[str]:
    """One list that keeps the order of each."""
    turns = [at for at, chain in enumerate(chains) for _ in chain]
    rng.shuffle(turns)
    ahead = [iter(chain) for chain in chains]
    return [next(ahead[at]) for at in turns]


def _in_lines(words: list[str]) -> str:
    return "\n".join(" ".join(words[at : at + _PER_LINE]) for at in range(0, len(words), _PER_LINE)) + "\n"


def _width(word: str, digits: int) -> int:
    """Characters of a word in the list, with its number."""
    return digits + len(". ") + len(word) + 1
