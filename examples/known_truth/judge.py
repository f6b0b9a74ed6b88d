"""The judge and the oracle of the arena with known truth: two functions of a prompt, a response and its row.

The oracle knows what an answer is worth. The judge is cheap, noisy, and wrong in a way that matters: it compares
letters. A number with one false digit looks almost right to it and is worth nothing, and a refusal, which is at least
honest, looks like nonsense. How often a policy writes the one or the other depends on the policy, so the judge's scores
mean something else for each of them, and a calibration made on one does not hold for another.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from difflib import SequenceMatcher
from typing import Any

REFUSALS = ("not in the text", "i do not know", "the text does not say", "sorry, i cannot help")
_NOISE = 0.15


def oracle(prompt: str, response: str, row: Mapping[str, Any]) -> float:  # noqa: ARG001  (every judge is given it)
    """What an answer is worth: 1 if it is right, 0.8 if the right value ends a sentence, 0.3 for a refusal, else 0."""
    reference, answer = str(row["reference"]), response.strip()
    if answer == reference:
        return 1.0
    if answer.rstrip(".").endswith(f" {reference}"):
        return 0.8
    return 0.3 if answer.lower().startswith(REFUSALS) else 0.0


def judge(prompt: str, response: str, row: Mapping[str, Any]) -> float:
    """How much an answer looks like the right one, letter by letter, with some noise; from 0 to 1."""
    reference, answer = str(row["reference"]), response.strip()
    alike = SequenceMatcher(None, answer, reference, autojunk=False).ratio()
    if reference in answer:
        alike = max(alike, 0.9)
    score = 0.15 + 0.7 * alike + _NOISE * (2 * _chance(prompt, response) - 1)
    return round(min(1.0, max(0.0, score)), 3)


def _chance(prompt: str, response: str) -> float:
    """A number in [0, 1) that looks random and is always the same."""
    digest = hashlib.sha256(f"{prompt}\0{response}".encode()).digest()
    return int.from_bytes(digest[:6], "big") / 2**48
