"""Log probabilities of responses under policies, by `scoring.run`; the clone's come from a process of their own.

One forward pass serves all policies that differ in their samplers alone, so a clone scored beside the base would agree
with it by construction. What is to be shown is that scoring itself is repeatable: the clone's scores are computed by a
new process, into an empty store, in another order, with nothing shared between responses, and read from there.
"""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from llamalab.arena.generation import asked
from llamalab.arena.jsonl import read_lines
from llamalab.errors import EngineError, LlamalabError, ProviderUnavailable
from llamalab.scoring.policy import Policy
from llamalab.scoring.result import LogProbResult
from llamalab.scoring.rows import as_line
from llamalab.scoring.session import Item, Session
from llamalab.scoring.spans import Tokens

HOW = "in a new process, with an empty store, in another order, nothing shared between responses"
"""How a clone is scored."""


def rows_to_score(responses: Path, prompts: Mapping[str, Mapping[str, Any]]) -> bytes:
    """A file of responses as rows for `scoring.run`; those that could not be generated are left out."""
    lines = []
    for line in read_lines(responses):
        row = line.fields
        if row.get("error"):
            continue
        prompt = asked(prompts[row["prompt_id"]])
        asks = {"prompt": prompt} if isinstance(prompt, str) else {"messages": prompt}
        ids = {"response_ids": row["response_ids"]} if row.get("response_ids") else {}
        lines.append(
            as_line({"id": row["response_id"], **asks, "response": row["response"], **ids, "finished": row["finished"]})
        )
    return b"".join(lines)


class PolicyScorer:
    """Scores as sessions do: each policy's own tokens, and the clone from where it was scored.

    Args:
        session: for all policies.
        foreign: names of policies whose tokens are not those of the responses' ids: they score the text.
        clone: name of the clone; None: it is scored like the others.
        scored: where the clone's scores are found.
    """

    def __init__(
        self, session: Session, foreign: Iterable[str] = (), clone: str | None = None, scored: Session | None = None
    ) -> None:
        self._session, self._foreign = session, frozenset(foreign)
        self._clone, self._scored = clone, scored

    def score(self, items: Iterable[Item]) -> Iterator[tuple[Item, LogProbResult | LlamalabError]]:
        """Each item with its outcome, in order; see `Session.score`.

        Raises:
            ProviderUnavailable: an endpoint does not answer. That is no property of the response: later it may have a
                number.
        """
        given = list(items)
        as_text = [self._as_scored(item) for item in given]
        apart = [self._scored is not None and item.tag == self._clone for item in given]
        others = self._session.score(i for i, alone in zip(as_text, apart, strict=True) if not alone)
        clones = (self._scored or self._session).score(i for i, alone in zip(as_text, apart, strict=True) if alone)
        for item, alone in zip(given, apart, strict=True):
            outcome = next(clones if alone else others)[1]
            if isinstance(outcome, ProviderUnavailable):
                raise outcome
            yield item, outcome

    def _as_scored(self, item: Item) -> Item:
        foreign = item.tag in self._foreign or item.policy.remote
        return replace(item, response_ids=None) if foreign and item.response is not None else item


def same_tokens(one: Tokens, other: Tokens) -> bool:
    """Whether an id means the same in both."""
    if one.info.n_vocab != other.info.n_vocab or one.info.special_tokens != other.info.special_tokens:
        return False
    return all(
        one.token_bytes(id, special=True) == other.token_bytes(id, special=True) for id in range(one.info.n_vocab)
    )


def score_clone(policy: Policy, rows: Path, store: Path, progress: Callable[[int, int], None]) -> None:
    """Score rows under the clone in a process of its own; its scores are in `store` afterwards.

    Raises:
        EngineError: the process failed; with what it said.
    """
    command = [sys.executable, "-m", "llamalab.arena.rescore", str(rows), str(store)]
    with tempfile.TemporaryFile("w+") as said:
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": said}
        with subprocess.Popen(command, text=True, **pipes) as process:  # type: ignore[call-overload]
            try:
                process.stdin.write(json.dumps(as_settings(policy)))
                process.stdin.close()
                for line in process.stdout:
                    done, total = map(int, line.split())
                    progress(done, total)
            except BaseException:
                process.kill()
                raise
        said.seek(0)
        reason = said.read().strip() or f"it ended with code {process.returncode}"
    if process.returncode:
        last = reason.splitlines()[-1]
        raise EngineError(f"The clone '{policy.name}' could not be scored in a process of its own: {last}")


def as_settings(policy: Policy) -> dict[str, Any]:
    """A policy as the settings that `make_policy` makes it from."""
    own: dict[str, Any] = {"provider": policy.provider, "model": policy.model, "system_prompt": policy.system_prompt}
    own |= {"template": policy.template, "seed": policy.seed, "date": policy.date}
    options = dict(policy.options)
    if "adapters" in options:
        items = options["adapters"]
        options["adapters"] = [[str(each[0]), each[1]] if isinstance(each, tuple) else each for each in items]
    return {**dataclasses.asdict(policy.decoding), **own, **options}
