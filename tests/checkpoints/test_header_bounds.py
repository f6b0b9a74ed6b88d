"""Headers that lie: one error, no hang, and no more than 512 MiB, however much data they could point into."""

from __future__ import annotations

import contextlib
import signal
import struct
import subprocess
import sys
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path

import gguf
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from llamalab.checkpoints.ggml_types import GGML_TYPES
from llamalab.checkpoints.gguf_file import Texts, read_gguf_file
from llamalab.checkpoints.huggingface import write_huggingface
from llamalab.checkpoints.meta import write_meta
from llamalab.checkpoints.pth import layout
from llamalab.checkpoints.safetensors_file import read_entries, read_safetensors
from llamalab.engines.gguf_header import read_header
from llamalab.engines.native import api
from llamalab.errors import LlamalabError, ModelFileError
from tests.checkpoints.test_gguf_reader import PICO
from tests.checkpoints.tiny_checkpoint import SCALED, checkpoint

MOST_BYTES = 512 << 20
HOLE = 40 << 30
"""Bytes of zeros behind a header: a count that points into them is a lie, and the file is large enough for it."""

PATIENCE_S = 60
NUMBERS = [0, 1, 3, 8, 255, 2**16, 4_999_999, 10**7, 2**31 - 1, 2**31, 2**32 - 1, HOLE // 8, HOLE, 2**62, 2**64 - 1]
Change = tuple[str, float, int]
CHANGES = st.lists(
    st.tuples(
        st.sampled_from(["u8", "u32", "u64", "cut", "insert", "repeat"]), st.floats(0, 1), st.sampled_from(NUMBERS)
    ),
    min_size=1,
    max_size=3,
)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Real headers by their kind."""
    folder = tmp_path_factory.mktemp("whole")
    made = checkpoint(SCALED)
    write_huggingface(made, folder / "hf", "F32")
    write_meta(made, folder / "meta", "F32")
    start = min(tensor.offset for tensor in read_gguf_file(PICO).tensors.values())
    return {
        "gguf": PICO.read_bytes()[:start],
        "safetensors": (folder / "hf" / "model.safetensors").read_bytes(),
        "pth": (folder / "meta" / "consolidated.00.pth").read_bytes(),
    }


def changed(content: bytes, changes: list[Change]) -> bytes:
    """Numbers written over it, pieces cut out, put in, or put in twice."""
    made = bytearray(content)
    for kind, share, number in changes:
        at = int(share * max(0, len(made) - 8))
        if kind == "cut":
            del made[at : at + number % 64 + 1]
        elif kind == "insert":
            made[at:at] = struct.pack("<Q", number)
        elif kind == "repeat":
            made[at:at] = made[at : at + number % 256]
        else:
            layout_of = {"u8": "B", "u32": "I", "u64": "Q"}[kind]
            struct.pack_into(f"<{layout_of}", made, at, number % 256 ** struct.calcsize(layout_of))
    return bytes(made)


@contextlib.contextmanager
def bounded(*, traced: bool = True) -> Iterator[None]:
    """Within the block, patience and memory are limited, and only one kind of error is let through."""

    def impatient(*_: object) -> None:
        raise AssertionError(f"it takes more than {PATIENCE_S} s")

    before = signal.signal(signal.SIGALRM, impatient)
    signal.alarm(PATIENCE_S)
    if traced:
        tracemalloc.start()
    try:
        with contextlib.suppress(LlamalabError):
            yield
        _, peak = tracemalloc.get_traced_memory() if traced else (0, 0)
        assert peak < MOST_BYTES
    finally:
        tracemalloc.stop()
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def lay(path: Path, content: bytes, *, hole: bool) -> Path:
    path.write_bytes(content)
    if hole:
        with path.open("r+b") as file:
            file.truncate(len(content) + HOLE)
    return path


READERS: dict[str, list[Callable[[Path], object]]] = {
    "gguf": [read_gguf_file, lambda path: read_gguf_file(path, lazy=True)],
    "safetensors": [read_entries, read_safetensors],
    "pth": [layout],
}


@pytest.mark.parametrize("kind", READERS)
@settings(max_examples=40)
@given(changes=CHANGES, hole=st.booleans())
@example(changes=[("u64", 8 / (1 << 16), 4_999_999)], hole=True)
def test_a_changed_header_is_read_or_refused(
    whole: dict[str, bytes], tmp_path_factory: pytest.TempPathFactory, kind: str, changes: list[Change], hole: bool
) -> None:
    folder = tmp_path_factory.getbasetemp() / "bounds"
    folder.mkdir(exist_ok=True)
    # A zip archive has its table at the end.
    path = lay(folder / f"x.{kind}", changed(whole[kind], changes), hole=hole and kind != "pth")
    for read in READERS[kind]:
        with bounded():
            read(path)
    path.unlink()


def entry(key: str, kind: int, value: bytes) -> bytes:
    return struct.pack("<Q", len(key)) + key.encode() + struct.pack("<I", kind) + value


def array(kind: int, count: int, content: bytes = b"") -> bytes:
    return struct.pack("<IQ", kind, count) + content


STRING, ARRAY = 8, 9


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (struct.pack("<QQ", 2**40, 0), "asks for"),
        (struct.pack("<QQ", 2**30, 0), "says that it has 1,073,741,824 tensors|longer than"),
        (struct.pack("<QQ", 10**6, 0), "says that it has 1,000,000 tensors"),
        (struct.pack("<QQ", 0, 10**6), "says that it has 1,000,000 entries"),
        (struct.pack("<QQ", 0, 1) + entry("a", ARRAY, array(0, 10**7)), r"says that it has 10,000,000 items \(a\)"),
        (struct.pack("<QQ", 0, 1) + entry("a", ARRAY, array(STRING, 10**7)), "10,000,000 items"),
        (struct.pack("<QQ", 0, 1) + entry("a", ARRAY, array(10, 2 * 10**9)), "longer than 100,000,000 bytes"),
        (
            struct.pack("<QQ", 0, 2)
            + entry("a", ARRAY, array(STRING, 3 * 10**6, bytes(24 * 10**6)))
            + entry("b", ARRAY, array(STRING, 3 * 10**6)),
            r"3,000,000 items \(b\)",
        ),
        (struct.pack("<QQ", 0, 1) + entry("a", STRING, struct.pack("<Q", 10**7)), "a text of 10,000,000 bytes"),
        (struct.pack("<QQ", 0, 1) + entry("a", ARRAY, array(STRING, 2, struct.pack("<Q", 2**63))), "asks for"),
        (struct.pack("<QQ", 0, 1) + struct.pack("<Q", 2**64 - 1), "asks for"),
        (struct.pack("<QQ", 0, 1) + entry("a", ARRAY, array(ARRAY, 1)), "of an unknown type"),
        (struct.pack("<QQ", 0, 2) + 2 * entry("a", 0, b"\1"), "stands there twice"),
    ],
)
def test_counts_that_no_header_has_are_refused(tmp_path: Path, header: bytes, message: str) -> None:
    path = lay(tmp_path / "x.gguf", b"GGUF" + struct.pack("<I", 3) + header, hole=True)
    for lazy in (False, True):
        with bounded(traced=len(header) < 1000), pytest.raises(ModelFileError, match=message):
            read_gguf_file(path, lazy=lazy)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the peak is read from /proc")
def test_the_most_that_is_let_through_takes_less_than_half_a_gigabyte(tmp_path: Path) -> None:
    header = struct.pack("<QQ", 0, 1) + entry("a", ARRAY, array(STRING, 4_900_000))
    path = lay(tmp_path / "x.gguf", b"GGUF" + struct.pack("<I", 3) + header, hole=True)
    code = (
        "import sys\nfrom pathlib import Path\nfrom llamalab.checkpoints.gguf_file import read_gguf_file\n"
        "print(len(read_gguf_file(Path(sys.argv[1])).fields['a']))\n"
        "print(next(line for line in open('/proc/self/status') if line.startswith('VmHWM')))"
    )
    command = [sys.executable, "-c", code, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=PATIENCE_S)
    n_texts, peak, *_ = done.stdout.splitlines()
    assert int(n_texts) == 4_900_000
    assert int(peak.split()[1]) * 1024 < MOST_BYTES


def test_llama_cpp_is_not_asked_to_count_to_a_billion(tmp_path: Path) -> None:
    """It would: its own limit is 2^30 items."""
    header = struct.pack("<QQ", 0, 1) + entry("a", ARRAY, array(0, 10**9))
    path = lay(tmp_path / "x.gguf", b"GGUF" + struct.pack("<I", 3) + header, hole=True)
    with pytest.raises(ModelFileError, match="longer than"):
        read_header(path)


def test_texts_left_in_the_file_are_those_that_are_read() -> None:
    plain, lazy = read_gguf_file(PICO), read_gguf_file(PICO, lazy=True)
    assert plain.tensors == lazy.tensors
    assert plain.fields.keys() == lazy.fields.keys()
    for key, value in lazy.fields.items():
        if isinstance(value, Texts):
            assert list(value) == plain.fields[key]
            assert value[-1] == plain.fields[key][-1]
            assert value[3:9:2] == plain.fields[key][3:9:2]
            with pytest.raises(IndexError):
                value[len(value)]
        else:
            assert value == plain.fields[key]
    assert sum(isinstance(value, Texts) for value in lazy.fields.values()) == 2


def test_a_text_that_is_no_utf8_is_found_when_it_is_looked_at(tmp_path: Path) -> None:
    texts = b"".join(struct.pack("<Q", len(text)) + text for text in (b"good", b"\xff\xfe"))
    header = struct.pack("<QQ", 0, 1) + entry("a", ARRAY, array(STRING, 2, texts))
    path = lay(tmp_path / "x.gguf", b"GGUF" + struct.pack("<I", 3) + header, hole=False)
    found = read_gguf_file(path, lazy=True).fields["a"]
    assert found[0] == "good"
    with pytest.raises(ModelFileError, match="is not UTF-8"):
        found[1]
    with pytest.raises(ModelFileError, match="is not UTF-8"):
        read_gguf_file(path)


def test_types_are_those_of_ggml() -> None:
    """And of gguf-py, as far as it knows them (of Q8_1, which no file has, it gives another size)."""
    library = api._lib
    library.ggml_type_name.restype = api.ctypes.c_char_p
    library.ggml_type_size.restype = api.ctypes.c_size_t
    library.ggml_blck_size.restype = api.ctypes.c_int64
    for name, (number, values, n_bytes) in GGML_TYPES.items():
        assert library.ggml_type_name(number).decode().upper() == name
        assert (library.ggml_blck_size(number), library.ggml_type_size(number)) == (values, n_bytes)
    for kind, sizes in gguf.GGML_QUANT_SIZES.items():
        if kind.name != "Q8_1":
            assert GGML_TYPES[kind.name] == (kind.value, *sizes)
