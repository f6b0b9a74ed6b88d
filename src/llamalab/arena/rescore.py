"""`python -m llamalab.arena.rescore ROWS STORE`: scores of one policy, each computed on its own, in another order.

The policy's settings come as JSON on standard input; standard output is told how many rows are done, and of how many.
A store that an earlier run of this process left unfinished is completed.
"""

from __future__ import annotations

import json
import random
import sys
from dataclasses import replace
from pathlib import Path

from llamalab.checkpoints.locate import locate
from llamalab.errors import LlamalabError
from llamalab.scored import ScoreRequest
from llamalab.scoring.policy import Policy, make_policy
from llamalab.scoring.rows import Row, read_rows
from llamalab.scoring.session import Item, Session
from llamalab.scoring.store import Store

_ORDER = 0  # seed of the shuffle
_TINY = 64 * 2**20  # bytes of a model that several threads compute slower than one: they mostly wait for each other


def rescore(policy: Policy, rows: Path, store: Path) -> None:
    """Score rows under a policy; after each one, what the engine holds is thrown away."""
    with rows.open("rb") as file:
        found = [row for row in read_rows(file) if isinstance(row, Row)]
    random.Random(_ORDER).shuffle(found)
    policy = _on_few_threads(policy)
    with Store(store) as kept, Session([policy], store=kept) as session:
        for number, row in enumerate(found, 1):
            item = Item(policy, row.prompt, row.response, row.finished, row.response_ids)
            ((_, outcome),) = session.score([item])
            # What is wrong with one row is found again, and reported, by the run that reads the store.
            if not isinstance(outcome, LlamalabError) and not outcome.stored:
                _forget(session, policy)
            print(number, len(found), flush=True)


def _on_few_threads(policy: Policy) -> Policy:
    """The same policy, on one thread if its model is tiny; how many there are changes no bit of llama.cpp's scores."""
    if policy.provider != "llama_cpp" or "n_threads" in policy.options or locate(policy.model).stat().st_size > _TINY:
        return policy
    return replace(policy, options={**policy.options, "n_threads": 1})


def _forget(session: Session, policy: Policy) -> None:
    """Let the engine compute something that begins otherwise, so that nothing of the last prompt is left to share."""
    engine = session.engine(policy)
    other = next(id for id in range(engine.info.n_vocab) if id != engine.info.bos_id)
    engine.score([ScoreRequest([other], [other])])


def _main(arguments: list[str]) -> int:
    rows, store = map(Path, arguments)
    try:
        rescore(make_policy("clone", json.load(sys.stdin)), rows, store)
    except LlamalabError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(_main(sys.argv[1:]))
