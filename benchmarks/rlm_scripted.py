"""Parts of `rlm.py` that need no model: resuming after a kill, a map with slow sub calls, weights of providers.

python benchmarks/rlm_scripted.py JOURNAL scripted   # one run, to be killed: `rlm.py` starts it
"""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from random import Random
from typing import Any

from llamalab import rlm
from llamalab.engine import ChatInfo, Message, Reply, SamplingParams, Schema, Timings, TokenCount, Usage
from llamalab.errors import ProviderUnavailable
from llamalab.rlm.bench import make_case
from llamalab.rlm.config import RlmConfig, default_config
from llamalab.rlm.providers import Pool, Provider, open_pool
from rlm_line import Line

LINES = "".join(f"line {at}: value={at * 7 % 101} of {'abc'[at % 3]}\n" for at in range(400))
SCRIPT = (
    '{"thought":"look","op":"find","text":"value","store":"hits"}',
    '{"thought":"","op":"aggregate","pattern":"value=([0-9]+)","what":"sum","store":"total"}',
    '{"thought":"ask","op":"map","prompt":"What stands here?","chunk_size":2000,"store":"said"}',
    '{"thought":"","op":"regex","pattern":"of [ab]$","store":"ab"}',
    '{"thought":"","op":"llm_query","prompt":"And now?","on":"total","store":"then"}',
    '{"thought":"done","op":"final","answer":"${total}, ${then}"}',
)


@dataclass
class Scripted:
    """A chat model that says what a function of the conversation gives.

    Attributes:
        say: from messages to a reply.
        seconds: that each reply takes.
        down: every call fails.
        calls: replies so far.
    """

    say: Callable[[Sequence[Message]], str]
    seconds: float = 0.0
    down: bool = False
    calls: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def info(self) -> ChatInfo:
        return ChatInfo("scripted", "scripted", 1_000_000, "exact")

    def count_tokens(self, messages: Sequence[Message]) -> TokenCount:
        return TokenCount(sum(len(str(message["content"])) // 4 + 4 for message in messages), exact=True)

    def chat(
        self,
        messages: Sequence[Message],
        _params: SamplingParams | None = None,
        *,
        schema: Schema | None = None,
        **_: object,
    ) -> Reply:
        if self.down:
            raise ProviderUnavailable("This one is down.", sent=False)
        time.sleep(self.seconds)
        with self._lock:
            self.calls += 1
        text = self.say(messages)
        usage = Usage(fresh=self.count_tokens(messages).n, output=len(text) // 4 + 1)
        return Reply(text, (), "stop", usage, Timings(), "scripted", schema_mode="exact" if schema else None)

    def stream(self, messages: Sequence[Message], params: SamplingParams | None = None, **rest: Any) -> Any:
        rest.pop("logprobs", None)
        yield self.chat(messages, params, **rest)

    def close(self) -> None:
        pass


def by_script(messages: Sequence[Message]) -> str:
    """The next command of the script."""
    return SCRIPT[min(sum(message["role"] == "assistant" for message in messages), len(SCRIPT) - 1)]


def by_hash(messages: Sequence[Message]) -> str:
    """An answer that depends on every word of the question."""
    return hashlib.sha256(repr([message["content"] for message in messages]).encode()).hexdigest()[:12]


def scripted_pool(seconds: float = 0.0, concurrency: int = 8, script: Callable[..., str] = by_script) -> Pool:
    return Pool(
        [
            Provider("root", Scripted(script, seconds / 2), role="root"),
            Provider("sub", Scripted(by_hash, seconds), role="sub", concurrency=concurrency),
        ]
    )


def full_config(**changes: Any) -> RlmConfig:
    return replace(default_config(), protocol="full", bypass_enabled=False, **changes)


# ---- weights -----------------------------------------------------------------------------------------------------


def weights(_quick: bool) -> list[Line]:
    params, asked = SamplingParams(temperature=0.0, max_tokens=8), [{"role": "user", "content": "?"}]

    def ask(pool: Pool, n: int) -> list[str]:
        return [pool.chat("sub", asked, params).provider for _ in range(n)]

    def pool(*weights: int, down: int | None = None) -> Pool:
        return Pool(
            [
                Provider(f"p{at}", Scripted(by_hash, down=at == down), role="both", weight=weight)
                for at, weight in enumerate(weights)
            ]
        )

    counts = Counter(ask(pool(3, 1), 400))
    picks = ask(pool(5, 3, 1), 900)
    wrong = sum(Counter(picks[at : at + 9]) != Counter({"p0": 5, "p1": 3, "p2": 1}) for at in range(len(picks) - 8))
    answered = ask(pool(2, 1, 1, down=1), 100)
    return [
        Line(
            "weights",
            "weights 3:1, picks off 300 and 100 of 400",
            abs(counts["p0"] - 300) + abs(counts["p1"] - 100),
            "",
            0,
        ),
        Line("weights", "weights 5, 3, 1: windows of 9 that are not exact, of 892", wrong, "", 0),
        Line("weights", "one of three providers down: calls lost of 100", 100 - len(answered), "", 0),
    ]


# ---- map ---------------------------------------------------------------------------------------------------------


def slow_map(quick: bool) -> list[Line]:
    seconds = 0.1 if quick else 0.5
    text = "".join(f"{at:03d} {'x' * 95}\n" for at in range(80))  # eight chunks of a thousand characters

    def script(messages: Sequence[Message]) -> str:
        turns = (
            '{"thought":"","op":"map","prompt":"What?","chunk_size":1000,"store":"said"}',
            '{"thought":"","op":"final_var","name":"said"}',
        )
        return turns[min(sum(message["role"] == "assistant" for message in messages), 1)]

    def run(concurrency: int, **limits: Any) -> tuple[float, rlm.Answer, int]:
        pool = scripted_pool(seconds, concurrency, script)
        pool.providers[0].model.seconds = 0.0  # type: ignore[attr-defined]
        began = time.perf_counter()
        answer = rlm.ask("What?", [document(text)], config=full_config(**limits), pool=pool)
        return time.perf_counter() - began, answer, pool.providers[1].model.calls  # type: ignore[attr-defined]

    one, _, calls_of_one = run(1)
    eight, answer, calls = run(8)
    assert (calls, calls_of_one) == (8, 8), (calls, calls_of_one)
    limit = answer.tokens // 2 + 3000
    _, tight, _ = run(8, max_tokens=limit)
    _, few, made = run(8, max_sub_calls=5)
    return [
        Line(
            "map",
            f"8 sub calls of {seconds:g} s in flight, times as fast as one by one",
            one / eight,
            "",
            6,
            least=True,
        ),
        Line("map", "tokens used over a limit of max_tokens", max(tight.tokens - limit, 0), "", 0),
        Line("map", "sub calls over a limit of 5", max(made - 5, few.sub_calls - 5, 0), "", 0),
    ]


def document(text: str) -> Any:
    from llamalab.rlm.text import Document

    return Document.of(text, "text")


# ---- resume ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Killable:
    """A run that can be killed and resumed."""

    question: str
    text: str
    config: RlmConfig
    pool: Callable[[], Pool]


def killable(kind: str) -> Killable:
    if kind == "scripted":
        return Killable("What?", LINES, full_config(), lambda: scripted_pool(0.04))
    case = make_case("count", 60_000, 5)
    config = replace(default_config(), bypass_enabled=False)
    return Killable(case.question, case.text, config, lambda: open_pool(config))


def resume(quick: bool) -> list[Line]:
    lines = []
    for kind, kills in (("scripted", 3 if quick else 25), ("pico", 2 if quick else 25)):
        run = killable(kind)
        with run.pool() as pool, tempfile.TemporaryDirectory() as folder:
            text = Path(folder) / "text.txt"
            text.write_text(run.text)
            wanted = rlm.ask(run.question, [text], config=run.config, pool=pool).text
            other = sum(_killed_and_resumed(run, kind, pool, text, Random(seed)) != wanted for seed in range(kills))
        lines.append(Line("resume", f"{kind}: other answers after kill -9, of {kills}", other, "", 0))
    return lines


def _killed_and_resumed(run: Killable, kind: str, pool: Pool, text: Path, rng: Random) -> str:
    """The answer of a run that was killed at a random point and resumed."""
    longest = 1.0 if kind == "scripted" else 0.3
    while True:
        journal = text.parent / f"{rng.getrandbits(64):x}.jsonl"
        child = subprocess.Popen(
            [sys.executable, __file__, str(journal), kind, str(text)],
            start_new_session=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        while not (journal.exists() and journal.stat().st_size) and child.poll() is None:
            time.sleep(0.002)
        time.sleep(rng.uniform(0, longest))
        killed = child.poll() is None
        if killed:
            os.kill(child.pid, signal.SIGKILL)
        child.wait()
        if killed:
            return rlm.ask(run.question, [text], config=run.config, pool=pool, resume=journal).text
        longest *= 0.7  # it was faster than thought


def main() -> None:
    """One run, with a journal."""
    journal, kind, text = sys.argv[1:]
    run = killable(kind)
    with run.pool() as pool:
        rlm.ask(run.question, [Path(text)], config=run.config, pool=pool, journal=journal)


if __name__ == "__main__":
    main()
