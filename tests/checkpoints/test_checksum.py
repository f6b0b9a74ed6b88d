"""Checksums are computed once for a file as it is, by however many processes, and never kept for one that changed."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from llamalab.checkpoints import checksum
from llamalab.checkpoints.checksum import known_sha256, sha256
from llamalab.checkpoints.folders import cache_folder
from llamalab.errors import ModelFileError, ModelNotFound

OLD_S = 100


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


def write(path: Path, content: bytes, *, age_s: int = OLD_S) -> Path:
    path.write_bytes(content)
    then = time.time_ns() - age_s * 10**9
    os.utime(path, ns=(then, then))
    return path


def read_bytes_of(path: Path) -> int:
    """Bytes that were read to answer."""
    seen = [0]
    sha256(path, progress=lambda done: seen.append(done))
    return max(seen)


def test_it_is_the_sha256_of_the_content(tmp_path: Path) -> None:
    content = os.urandom(3 << 20)
    assert sha256(write(tmp_path / "a", content)) == hashlib.sha256(content).hexdigest()
    assert sha256(write(tmp_path / "b", b"")) == hashlib.sha256(b"").hexdigest()


def test_a_file_is_read_once(tmp_path: Path) -> None:
    path = write(tmp_path / "a", b"x" * 5000)
    assert known_sha256(path) is None
    assert read_bytes_of(path) == 5000
    assert read_bytes_of(path) == 0
    assert known_sha256(path) == hashlib.sha256(b"x" * 5000).hexdigest()
    (tmp_path / "link").symlink_to(path)
    assert read_bytes_of(tmp_path / "link") == 0


def test_a_changed_file_is_read_again(tmp_path: Path) -> None:
    path = write(tmp_path / "a", b"x" * 5000)
    sha256(path)
    write(path, b"y" * 5000, age_s=OLD_S - 1)
    assert sha256(path) == hashlib.sha256(b"y" * 5000).hexdigest()
    # The same size and time, but another file under the name.
    write(tmp_path / "other", b"z" * 5000)
    os.utime(tmp_path / "other", ns=(path.stat().st_atime_ns, path.stat().st_mtime_ns))
    (tmp_path / "other").replace(path)
    assert sha256(path) == hashlib.sha256(b"z" * 5000).hexdigest()


def test_what_was_written_just_now_is_not_kept(tmp_path: Path) -> None:
    """It could change once more within the clock's step."""
    path = write(tmp_path / "a", b"x", age_s=0)
    sha256(path)
    assert known_sha256(path) is None


def test_a_file_that_changes_meanwhile_is_an_error(tmp_path: Path) -> None:
    path = write(tmp_path / "a", b"x" * (3 << 20))
    with pytest.raises(ModelFileError, match="changed while"):
        sha256(path, progress=lambda _: write(path, b"y" * (3 << 20), age_s=1) and None)
    assert known_sha256(path) is None


def test_a_cache_that_cannot_be_used_costs_time_only(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, expected = write(tmp_path / "a", b"abc"), hashlib.sha256(b"abc").hexdigest()
    (cache_folder() / "checksums.sqlite").write_bytes(b"this is no database" * 100)
    assert sha256(path) == expected
    assert sha256(path) == known_sha256(path) == expected  # a new one has been begun
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert sha256(path) == expected
    assert known_sha256(path) is None

    def homeless(*_: str) -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(checksum, "cache_folder", homeless)
    assert sha256(path) == expected


def test_several_processes_at_once(tmp_path: Path) -> None:
    for i in range(20):
        write(tmp_path / f"{i}.bin", bytes([i]) * 1000)
    code = (
        "import sys\nfrom pathlib import Path\nfrom llamalab.checkpoints.checksum import sha256\n"
        "for _ in range(3):\n    for path in sorted(Path(sys.argv[1]).glob('*.bin')): print(path.stem, sha256(path))"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    children = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(3)]
    for child in children:
        out, err = child.communicate(timeout=100)
        assert (child.returncode, err) == (0, "")
        for line in out.splitlines():
            stem, found = line.split()
            assert found == hashlib.sha256(bytes([int(stem)]) * 1000).hexdigest()
    assert all(known_sha256(path) for path in tmp_path.glob("*.bin"))


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound):
        sha256(tmp_path / "none")
    with pytest.raises(ModelFileError, match="cannot be read"):
        sha256(tmp_path)
