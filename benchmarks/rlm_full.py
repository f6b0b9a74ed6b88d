"""The part `full` of `rlm.py`: every operation of the full protocol, drawn by decoders and done, in whole runs.

Two models draw their turns at temperature 1 under the compiled schema: one with random weights, and pico, which was
never shown this protocol. Each is root and sub of its runs, over one to three documents, in small budgets.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from random import Random

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # for the tests' tiny models

from tests.rlm.steered import LOG, PROSE, Steered
from tests.tiny import write_bpe

from llamalab import rlm
from llamalab.chat import EngineChat
from llamalab.engines import load
from llamalab.engines.llama_cpp import LlamaCppEngine
from llamalab.rlm.commands import COMMANDS
from llamalab.rlm.config import RlmConfig, default_config
from llamalab.rlm.providers import Pool, Provider
from llamalab.rlm.replay import replay
from rlm_line import Line

CONFIG = replace(
    default_config(),
    protocol="full",
    bypass_enabled=False,
    max_iterations=12,
    max_sub_calls=10,
    max_depth=2,
    max_tokens=150_000,
    output_limit=600,
    sub_tokens=16,
)


@dataclass
class Tally:
    """What has come of the commands.

    Attributes:
        emitted: turns, by operation.
        errors: those that ended in an error, by operation: a bad pattern, a range without lines.
        rejected: turns that were no command, or none that the state allowed.
        sub_calls: that were made.
        runs: in all, nested ones among them.
        replays: that were equal.
        over: runs that used more than they may.
        broken: runs that were broken off.
        resumed: of these, those that went on to an answer, and whose replay is equal.
    """

    emitted: Counter[str] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)
    rejected: int = 0
    sub_calls: int = 0
    runs: int = 0
    replays: int = 0
    over: int = 0
    broken: int = 0
    resumed: int = 0

    def add(self, events: Iterable[rlm.Event]) -> None:
        """Count a run's turns."""
        said: dict[tuple[str, int], str] = {}
        for event in events:
            if isinstance(event, rlm.Turn):
                self.rejected += bool(event.malformed)
                op = "" if event.malformed else json.loads(event.command)["op"]
                said[event.path, event.n] = op
                self.emitted[op] += 1
            elif isinstance(event, rlm.Done) and event.error:
                self.errors[said[event.path, event.n]] += 1
                self.rejected += "not allowed now" in event.error
            elif isinstance(event, rlm.SubCall):
                self.sub_calls += 1
            elif isinstance(event, rlm.Answered):
                self.runs += 1


def full(quick: bool) -> list[Line]:
    """Runs of both models, each replayed; every third is broken off at a random point and resumed."""
    lines: list[Line] = []
    for kind, wanted, least in (("random weights", 12 if quick else 48, 5), ("pico", 3 if quick else 18, 2)):
        tally = Tally()
        with tempfile.TemporaryDirectory() as folder, closing(_engine(kind, Path(folder))) as engine:
            pool = Pool([Provider("model", Steered(EngineChat(engine)), concurrency=4)])
            for at in range(wanted):
                _run(tally, pool, Path(folder), at)
        lines += _lines(kind, tally, wanted, None if quick else least)
    return lines


def _lines(kind: str, tally: Tally, runs: int, least: int | None) -> Iterator[Line]:
    """The figures of a model; `least`: how often each operation is to be done, which few runs do not come to."""
    turns = tally.emitted.total()
    done = {op: tally.emitted[op] - tally.errors[op] for op in COMMANDS}
    yield Line("full", f"{kind}: turns that were no command, or one not allowed, of {turns:,}", tally.rejected, "", 0)
    yield Line(
        "full",
        f"{kind}: times that the rarest of {len(done)} operations was done",
        min(done.values()),
        "",
        least,
        least=True,
    )
    for op, n in done.items():
        errors = f", {tally.errors[op]} errors" if tally.errors[op] else ""
        yield Line("full", f"  {op}: done, of {tally.emitted[op]:,} drawn{errors}", n)
    yield Line("full", f"{kind}: sub calls, in {tally.runs:,} runs, nested ones among them", tally.sub_calls)
    yield Line("full", f"{kind}: runs whose replay differs, of {runs}", runs - tally.replays, "", 0)
    yield Line("full", f"{kind}: runs over their budget, of {runs + tally.broken}", tally.over, "", 0)
    lost = tally.broken - tally.resumed
    yield Line("full", f"{kind}: broken off at random and not resumed, of {tally.broken}", lost, "", 0)


def _engine(kind: str, folder: Path) -> LlamaCppEngine:
    if kind == "pico":  # trained on 2,048 tokens, in which the prompt of the full protocol leaves no room
        engine = load("pico", n_ctx=8192, n_seq=2, n_threads=1, cache_prompts=True)
        assert isinstance(engine, LlamaCppEngine)
        return engine
    path = write_bpe(folder / "random.gguf", context=32768)
    return LlamaCppEngine(path, n_ctx=8192, n_seq=2, n_threads=1, cache_prompts=True)


def _run(tally: Tally, pool: Pool, folder: Path, at: int) -> None:
    """One run and its replay; some go on again from where their journal was cut."""
    rng = Random(f"full/{at}")
    files = [folder / f"{at}-{n}.txt" for n in range(rng.choice((1, 2, 3)))]
    for file in files:
        file.write_text(rng.choice((LOG, PROSE, PROSE + LOG)) + f"{at}\n")
    question, journal = f"What of number {at}?", folder / f"{at}.jsonl"
    events = list(rlm.events(question, files, config=CONFIG, pool=pool, journal=journal))
    tally.add(events)
    tally.over += _over(events[-1], CONFIG)
    tally.replays += replay(journal).equal
    if at % 3:
        return
    tally.broken += 1
    whole = journal.read_bytes()
    header = whole.index(b"\n") + 1
    journal.write_bytes(whole[: rng.randrange(header, len(whole))])
    events = list(rlm.events(question, files, config=CONFIG, pool=pool, resume=journal))
    tally.over += _over(events[-1], CONFIG)
    tally.resumed += isinstance(events[-1], rlm.Answered) and replay(journal).equal


def _over(last: rlm.Event, config: RlmConfig) -> bool:
    assert isinstance(last, rlm.Answered)
    used = last.answer
    limits = (
        (used.tokens, config.max_tokens),
        (used.turns, config.max_iterations),
        (used.sub_calls, config.max_sub_calls),
    )
    return any(most is not None and n > most for n, most in limits)
