"""Fingerprints and scores made up for tests of the store."""

from __future__ import annotations

from llamalab.scored import Decoding
from llamalab.scoring.fingerprint import Fingerprint
from llamalab.scoring.store import StoredScore, Wanted

MARK = Fingerprint(
    "0123456789abcdef" * 2,
    {"provider": "llama_cpp", "model": "made-up", "model_sha256": "f00dfeed" * 8, "mode": "strict"},
)
OTHER = Fingerprint("fedcba9876543210" * 2, {"model": "another", "model_sha256": "deadbeef" * 8, "mode": "fast"})


def wanted(number: int, *, mark: Fingerprint = MARK, decoding: Decoding | None = None) -> Wanted:
    return Wanted(mark.key, (1, 2, number), (number, 7, 9), decoding)


def made_up(number: int) -> StoredScore:
    """Values that tell which row they are of, down to the last bit."""
    logprobs = (-number / 3, -number * 1e-17, -number * 1e17)
    return StoredScore(logprobs, tuple(2 * value for value in logprobs), (1, number, 3), (0.1 * number, 0.2, 0.3), 0.5)
