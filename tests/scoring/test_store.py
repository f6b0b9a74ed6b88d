"""The store keeps its promises to many threads and processes, to those that are killed, and about damage."""

from __future__ import annotations

import dataclasses
import math
import os
import random
import signal
import sqlite3
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from llamalab.errors import ModelFileError, StoreError
from llamalab.scored import Decoding
from llamalab.scoring.fingerprint import FileState, Fingerprint
from llamalab.scoring.store import Store, StoredScore, Wanted, digest_of
from llamalab.scoring.store_file import SCHEMA_VERSION
from tests.scoring.stored import MARK, OTHER, made_up, wanted

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "scores.sqlite"


def bits(score: StoredScore | None) -> bytes:
    assert score is not None
    numbers = [value for part in (score.logprobs, score.raw, score.entropies) for value in part]
    return struct.pack(f"<{len(numbers)}d", *numbers)  # type: ignore[arg-type]


def test_what_was_put_comes_back_to_the_bit_in_the_order_of_the_question(path: Path) -> None:
    with Store(path) as store:
        store.put_many(MARK, [(wanted(n), made_up(n)) for n in range(1200)])
    with Store(path) as store:
        order = [*range(1199, -1, -1), 5000, 3, 3]
        found = store.get_many([wanted(n) for n in order])
    assert found[1200] is None
    assert [bits(score) for n, score in zip(order, found, strict=True) if n != 5000] == [
        bits(made_up(n)) for n in order if n != 5000
    ]
    assert found[0] == made_up(1199)


def test_every_part_of_the_address_counts(path: Path) -> None:
    here = wanted(1, decoding=Decoding(temperature=0.5))
    others = [
        here._replace(key=OTHER.key),
        here._replace(prefix_ids=(1, 2)),
        here._replace(prefix_ids=(1, 2, 1, 1), response_ids=(7, 9)),  # the same ids, cut elsewhere
        here._replace(response_ids=(1, 7, 10)),
        here._replace(decoding=None),
        here._replace(decoding=Decoding(temperature=0.5000000000000001)),
        here._replace(decoding=Decoding(temperature=0.5, top_p=0.9)),
    ]
    with Store(path) as store:
        store.put_many(MARK, [(here, made_up(1))])
        assert store.get_many([here, *others]) == [made_up(1)] + [None] * len(others)


def test_equal_distributions_have_one_address() -> None:
    """Without truncation its order does not matter; with it, it does."""
    plain = [Decoding(0.7, order=order) for order in ("truncate_first", "temperature_first")]
    cut = [Decoding(0.7, top_k=5, order=order) for order in ("truncate_first", "temperature_first")]
    assert len({digest_of("k", [1], [2], decoding) for decoding in plain}) == 1
    assert len({digest_of("k", [1], [2], decoding) for decoding in cut}) == 2


def test_minus_infinity_and_a_first_token_without_score_are_kept(path: Path) -> None:
    score = StoredScore((None, -math.inf, -1.0), (None, -4.0, -1.0), (None, 9, 1), (None, 0.5, 0.25))
    with Store(path) as store:
        store.put_many(MARK, [(wanted(1), score)])
        assert store.get_many([wanted(1)]) == [score]


@pytest.mark.parametrize(
    "change",
    [
        lambda score: dataclasses.replace(score, logprobs=(math.nan, -1.0, -1.0)),
        lambda score: dataclasses.replace(score, raw=score.raw[:2]),
        lambda score: dataclasses.replace(score, ranks=(1, None, 2)),
    ],
)
def test_what_is_no_score_is_not_kept(path: Path, change: Callable[[StoredScore], StoredScore]) -> None:
    with Store(path) as store:
        with pytest.raises(ValueError, match=r"."):
            store.put_many(MARK, [(wanted(1), made_up(1)), (wanted(2), change(made_up(2)))])
        assert store.get_many([wanted(1), wanted(2)]) == [None, None]


def test_the_first_value_stays(path: Path) -> None:
    with Store(path) as store:
        store.put_many(MARK, [(wanted(1), made_up(1))])
        store.put_many(MARK, [(wanted(1), made_up(2))])
        assert store.get_many([wanted(1)]) == [made_up(1)]


def test_scores_of_a_model_that_changed_meanwhile_are_refused(path: Path, tmp_path: Path) -> None:
    model = tmp_path / "model.gguf"
    model.write_bytes(b"weights")
    stat = model.stat()
    mark = Fingerprint(MARK.key, MARK.facts, (FileState(model, stat.st_size, stat.st_mtime_ns, stat.st_ino),))
    with Store(path) as store:
        store.put_many(mark, [(wanted(1), made_up(1))])
        model.write_bytes(b"otherwise")
        with pytest.raises(ModelFileError, match=r"model\.gguf changed"):
            store.put_many(mark, [(wanted(2), made_up(2))])
        assert store.get_many([wanted(1), wanted(2)]) == [made_up(1), None]


def test_threads_share_a_store(path: Path) -> None:
    failed: list[Exception] = []

    def work(first: int) -> None:
        try:
            for n in range(first, first + 40):
                store.put_many(MARK, [(wanted(n), made_up(n))])
                assert store.get_many([wanted(n)]) == [made_up(n)]
        except Exception as error:  # noqa: BLE001  (shown below)
            failed.append(error)

    with Store(path) as store:
        threads = [threading.Thread(target=work, args=(100 * i,)) for i in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not failed
        assert None not in store.get_many([wanted(100 * i + n) for i in range(4) for n in range(40)])


WRITER = """
import sys
from pathlib import Path
from llamalab.scoring.store import Store
from tests.scoring.stored import MARK, made_up, wanted
path, first, batch = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
print("ready", flush=True)
sys.stdin.readline()
with Store(path) as store:
    for begin in range(first, first + int(sys.argv[4]), batch):
        store.put_many(MARK, [(wanted(n), made_up(n)) for n in range(begin, begin + batch)])
        print(begin, flush=True)
"""


def writer(path: Path, first: int, batch: int, count: int) -> subprocess.Popen[str]:
    arguments = [sys.executable, "-c", WRITER, str(path), str(first), str(batch), str(count)]
    pipe = subprocess.PIPE
    process = subprocess.Popen(arguments, stdin=pipe, stdout=pipe, text=True, cwd=ROOT)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def start(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()


def test_processes_that_make_one_store_at_once_lose_nothing(path: Path) -> None:
    processes = [writer(path, 1000 * i, 5, 50) for i in range(4)]
    for process in processes:
        start(process)
    assert [process.wait() for process in processes] == [0] * 4
    with Store(path) as store:
        found = store.get_many([wanted(1000 * i + n) for i in range(4) for n in range(50)])
    assert found == [made_up(1000 * i + n) for i in range(4) for n in range(50)]


def test_kill_9_leaves_whole_batches_or_none(path: Path) -> None:
    """What was reported as written is there; of what was not, a batch is there whole or not at all."""
    rng = random.Random(0)
    batch, rounds = 20, 4
    for round in range(rounds):
        process = writer(path, 100_000 * round, batch, 50_000)
        start(process)
        assert process.stdout is not None
        assert process.stdout.readline()
        time.sleep(0.05 * rng.random())
        os.kill(process.pid, signal.SIGKILL)
        reported = [100_000 * round] + [int(line) for line in process.stdout.read().splitlines()]
        process.wait()
        with Store(path) as store:
            known = store.get_many([wanted(n) for n in range(reported[0], reported[-1] + batch)])
            assert known == [made_up(n) for n in range(reported[0], reported[-1] + batch)]
            after = reported[-1] + batch
            last = store.get_many([wanted(n) for n in range(after, after + batch)])
            assert last in ([made_up(n) for n in range(after, after + batch)], [None] * batch)
    connection = sqlite3.connect(path)
    assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    connection.close()


FORKING = """
import os, sys
from pathlib import Path
from llamalab.scoring.store import Store
from tests.scoring.stored import MARK, made_up, wanted

with Store(Path(sys.argv[1])) as store:
    store.put_many(MARK, [(wanted(1), made_up(1))])
    child = os.fork()
    if child == 0:
        code = 1
        try:
            if store.get_many([wanted(1)]) == [made_up(1)]:
                store.put_many(MARK, [(wanted(2), made_up(2))])
                code = 0
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert store.get_many([wanted(2)]) == [made_up(2)]
"""
"""In a process of its own: libraries with threads, which other tests have loaded here, must not be forked."""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_child_process_opens_the_file_for_itself(path: Path) -> None:
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", FORKING, str(path)], cwd=root, capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr


def test_a_changed_byte_in_a_row_is_refused(path: Path) -> None:
    with Store(path) as store:
        store.put_many(MARK, [(wanted(n), made_up(n)) for n in range(3)])
        with store.connection() as connection:
            connection.execute("UPDATE scores SET raw = zeroblob(24) WHERE id = 2")
        assert store.get_many([wanted(0), wanted(2)]) == [made_up(0), made_up(2)]
        with pytest.raises(StoreError, match=r"is damaged.*llamalab score store repair --store"):
            store.get_many([wanted(1)])


@pytest.mark.parametrize("content", [b"no database at all" * 100, b"SQLite format 3\0" + bytes(5000)])
def test_a_file_that_is_no_database_is_refused_and_left_alone(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    with pytest.raises(StoreError, match="is damaged"):
        Store(path)
    assert path.read_bytes() == content


def test_damaged_pages_are_an_error_not_a_wrong_value(path: Path) -> None:
    with Store(path) as store:
        store.put_many(MARK, [(wanted(n), made_up(n)) for n in range(500)])
    content = bytearray(path.read_bytes())
    content[4096 * 3 : 4096 * 40] = bytes(4096 * 37)
    path.write_bytes(content)
    with pytest.raises(StoreError, match="is damaged"), Store(path) as store:
        store.get_many([wanted(n) for n in range(500)])


def test_a_database_of_another_program_is_refused_and_left_alone(path: Path) -> None:
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE notes (text)")
    connection.commit()
    connection.close()
    before = path.read_bytes()
    with pytest.raises(StoreError, match="of another program"):
        Store(path)
    assert path.read_bytes() == before


def test_a_store_of_a_newer_version_is_refused(path: Path) -> None:
    Store(path).close()
    connection = sqlite3.connect(path)
    connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION + 1}")
    connection.close()
    with pytest.raises(StoreError, match="newer llamalab"):
        Store(path)


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"nowhere.*--no-store"):
        Store(tmp_path / "nowhere" / "scores.sqlite")


def test_a_closed_store_says_so(path: Path) -> None:
    store = Store(path)
    store.close()
    store.close()
    with pytest.raises(StoreError, match="closed"):
        store.get_many([Wanted("k", (), (1,))])
