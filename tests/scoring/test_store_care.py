"""A store can be looked at, pruned, exported, and repaired after any damage."""

from __future__ import annotations

import json
import random
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from llamalab.errors import InputError, StoreError
from llamalab.scored import Decoding
from llamalab.scoring.store import Store, StoredScore
from llamalab.scoring.store_care import export, info, prune
from llamalab.scoring.store_repair import repair
from tests.scoring.stored import MARK, OTHER, made_up, wanted


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "scores.sqlite"


def fill(path: Path, count: int = 30, *, others: int = 0) -> None:
    with Store(path) as store:
        for n in range(count):
            store.put_many(MARK, [(wanted(n), made_up(n))])
        store.put_many(OTHER, [(wanted(n, mark=OTHER), made_up(n)) for n in range(others)])


def there(path: Path, count: int) -> list[int]:
    """Which rows of `fill` the store has; each must be right."""
    with Store(path) as store:
        found = store.get_many([wanted(n) for n in range(count)])
    assert all(score in (None, made_up(n)) for n, score in enumerate(found))
    return [n for n, score in enumerate(found) if score is not None]


def set_age(path: Path, created: dict[int, float]) -> None:
    """Give rows, by their number in the file from 1, another time; the checksum is not looked at by `prune`."""
    connection = sqlite3.connect(path)
    connection.executemany("UPDATE scores SET created = ? WHERE id = ?", [(t, id) for id, t in created.items()])
    connection.commit()
    connection.close()


def test_info_counts_by_fingerprint(path: Path) -> None:
    fill(path, 30, others=4)
    with Store(path) as store:
        found = info(store)
    assert [(each.model, each.mode, each.rows) for each in found.holdings] == [
        ("made-up", "strict", 30),
        ("another", "fast", 4),
    ]
    # 3 prefix and 3 response ids of 4 bytes; 3 log probabilities, raw ones and entropies of 8; 3 ranks of 4.
    assert found.holdings[0].n_bytes == 30 * (24 + 3 * 24 + 12)
    assert (found.rows, found.path) == (34, path)
    assert found.size > found.holdings[0].n_bytes


def test_prune_by_age(path: Path) -> None:
    fill(path, 4)
    set_age(path, {1: 100.0, 2: 200.0, 3: 300.0, 4: 400.0})
    with Store(path) as store:
        assert prune(store, older_than=200, now=500.0) == 3
    connection = sqlite3.connect(path)
    assert connection.execute("SELECT id FROM scores").fetchall() == [(4,)]
    connection.close()


def test_prune_by_size_keeps_the_newest_and_gives_room_back(path: Path) -> None:
    fill(path, 600)
    before = path.stat().st_size
    with Store(path) as store:
        assert prune(store, max_bytes=10 * 108) == 590
    assert there(path, 600) == list(range(590, 600))
    assert path.stat().st_size < before / 2


@pytest.mark.parametrize("name", ["another", "deadbeefdead", OTHER.key[:8]])
def test_prune_by_model(path: Path, name: str) -> None:
    fill(path, 5, others=7)
    with Store(path) as store:
        assert prune(store, model=name) == 7
        assert [each.model for each in info(store).holdings] == ["made-up"]
    assert there(path, 5) == [0, 1, 2, 3, 4]


def test_prune_wants_to_be_told_what(path: Path) -> None:
    fill(path, 2)
    with Store(path) as store:
        with pytest.raises(InputError, match="Say what to remove"):
            prune(store)
        with pytest.raises(InputError, match=r"nothing of 'unheard'.*made-up"):
            prune(store, model="unheard")
    assert there(path, 2) == [0, 1]


def test_export_gives_every_row_as_json_can_say_it(path: Path) -> None:
    fill(path, 2100)
    out = StoredScore((None, -float("inf"), -1.5), (None, -2.0, -1.0), (None, 4, 1), (None, 0.5, 0.25), 0.0)
    decoding = Decoding(0.5, top_k=3)
    with Store(path) as store:
        store.put_many(MARK, [(wanted(9, decoding=decoding), out)])
        rows = [json.loads(json.dumps(row, allow_nan=False)) for row in export(store)]
    assert len(rows) == 2101
    assert rows[3]["logprobs"] == list(made_up(3).logprobs)
    assert (rows[3]["prefix_ids"], rows[3]["response_ids"]) == ([1, 2, 3], [3, 7, 9])
    assert rows[3]["sampler"] is None
    assert (rows[3]["model"], rows[3]["fingerprint"]) == ("made-up", MARK.key)
    assert rows[-1]["sampler"]["top_k"] == 3
    # The first token stands after nothing; the second is outside the sampler's support.
    assert (rows[-1]["logprobs"], rows[-1]["raw"]) == ([None, None, -1.5], [None, -2.0, -1.0])


def test_repair_drops_rows_with_a_wrong_checksum_and_no_others(path: Path) -> None:
    fill(path)
    connection = sqlite3.connect(path)
    connection.execute("UPDATE scores SET logprobs = zeroblob(24) WHERE id IN (3, 11)")
    connection.execute("UPDATE scores SET fingerprint = 5.5 WHERE id = 20")
    connection.commit()
    connection.close()
    found = repair(path)
    assert (found.kept, found.dropped, found.aside) == (27, 3, None)
    assert there(path, 30) == [n for n in range(30) if n not in (2, 10, 19)]


def test_repair_of_a_sound_store_changes_nothing(path: Path) -> None:
    fill(path)
    found = repair(path)
    assert (found.kept, found.dropped, found.aside) == (30, 0, None)
    assert there(path, 30) == list(range(30))


@pytest.mark.parametrize("seed", range(6))
def test_repair_saves_what_lies_on_sound_pages(path: Path, seed: int) -> None:
    """Pages of the middle of the file become noise; afterwards the store is sound, and no value in it is wrong."""
    fill(path, 400)
    connection = sqlite3.connect(path)
    connection.execute("UPDATE scores SET raw = zeroblob(24) WHERE id = 5")  # row 4, on a page that stays sound
    connection.commit()
    connection.close()
    content = bytearray(path.read_bytes())
    pages = len(content) // 4096
    rng = random.Random(seed)
    for page in rng.sample(range(8, pages), 3):
        content[4096 * page : 4096 * (page + 1)] = rng.randbytes(4096)
    path.write_bytes(content)
    found = repair(path)
    assert found.aside is not None
    assert found.aside.read_bytes() == content
    rows = there(path, 400)
    assert len(rows) == found.kept >= 200
    assert 4 not in rows
    assert found.dropped >= 1
    assert repair(path).aside is None


def test_repair_of_what_is_no_database_begins_anew_and_keeps_the_file(path: Path) -> None:
    path.write_bytes(b"nothing of SQLite's" * 400)
    found = repair(path)
    assert (found.kept, found.dropped) == (0, 0)
    assert found.aside is not None
    assert found.aside.read_bytes() == b"nothing of SQLite's" * 400
    fill(path, 3)
    assert there(path, 3) == [0, 1, 2]


def test_repair_waits_for_no_one_and_moves_no_file_that_is_in_use(path: Path) -> None:
    fill(path, 400)
    content = bytearray(path.read_bytes())
    content[4096 * 20 : 4096 * 24] = bytes(4096 * 4)
    path.write_bytes(content)
    script = f"import sqlite3; c = sqlite3.connect({str(path)!r}); c.execute('SELECT 1 FROM sqlite_master').fetchall()"
    script += "; print('ready', flush=True); input()"
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", script], stdin=pipe, stdout=pipe, text=True) as other:
        assert other.stdout is not None
        other.stdout.readline()
        with pytest.raises(StoreError, match="is in use"):
            repair(path)
        other.communicate("\n")
    assert path.read_bytes() == content
    assert repair(path).kept > 200


def test_repair_of_another_programs_database_is_refused(path: Path) -> None:
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE notes (text)")
    connection.commit()
    connection.close()
    with pytest.raises(StoreError, match="another program"):
        repair(path)
    with pytest.raises(StoreError, match="no store"):
        repair(path.with_name("nowhere"))
