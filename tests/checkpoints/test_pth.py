"""`.pth` files without PyTorch: read as `torch.load` reads them, never run, and written so that it reads them."""

from __future__ import annotations

import builtins
import io
import os
import pickle
import resource
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from llamalab.checkpoints import pth_writer
from llamalab.checkpoints.checkpoint import Tensor
from llamalab.checkpoints.pth import layout, read_pth
from llamalab.checkpoints.pth_writer import write_pth
from llamalab.errors import ModelFileError

GOLDEN = Path(__file__).parent.parent / "golden" / "pth"


def bits(array: np.ndarray) -> np.ndarray:
    """bfloat16 as 16 bits, as the golden files hold it."""
    return array.view(np.uint16) if array.dtype == ml_dtypes.bfloat16 else array


def tensor(name: str, values: Any, dtype: str = "F32") -> Tensor:
    array = np.asarray(values)
    return Tensor(name, array.shape, dtype, lambda: array)


@pytest.mark.parametrize("name", ["types", "views", "module", "parameters", "big_endian"])
def test_tensors_are_those_of_torch_load(name: str) -> None:
    """Types, strides, offsets, shared storages, both byte orders."""
    expected = np.load(GOLDEN / f"{name}.npz")
    found = read_pth(GOLDEN / f"{name}.pth")
    assert list(found) == list(expected)
    for key, stored in found.items():
        values = stored.read()
        assert values.shape == stored.shape
        assert values.dtype.name == {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}[stored.dtype]
        np.testing.assert_array_equal(bits(values), expected[key], strict=True)


def test_names_of_one_storage_are_known_as_such() -> None:
    places = layout(GOLDEN / "views.pth")
    assert places["whole"] == places["same"]
    assert places["whole"] != places["turned"]


def test_values_are_mapped_and_cannot_be_changed() -> None:
    values = read_pth(GOLDEN / "types.pth")["f32"].read()
    with pytest.raises(ValueError, match="read-only"):
        values[:] = 0


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("old", "old format"),
        ("training", "under 'step' there is a int"),
        ("class", r"asks for torch\.nn\.modules\.linear\.Linear"),
        ("float8", r"asks for torch\._utils\._rebuild_tensor_v3, which is no plain float tensor"),
    ],
)
def test_files_of_anything_else_are_refused_by_name(name: str, message: str) -> None:
    with pytest.raises(ModelFileError, match=message):
        read_pth(GOLDEN / f"{name}.pth")


def with_pickle(path: Path, content: bytes) -> Path:
    """The golden file `types.pth` with another pickle in it."""
    with zipfile.ZipFile(GOLDEN / "types.pth") as source, zipfile.ZipFile(path, "w") as target:
        for name in source.namelist():
            target.writestr(name, content if name.endswith("/data.pkl") else source.read(name))
    return path


class Reduced:
    """Pickled as a call."""

    def __init__(self, call: Callable[..., Any], *arguments: Any) -> None:
        self.call = call
        self.arguments = arguments

    def __reduce__(self) -> Any:
        return self.call, self.arguments


@pytest.mark.parametrize(
    "call",
    [
        lambda flag: Reduced(os.system, f"touch {flag}"),
        lambda flag: Reduced(builtins.exec, f"open({flag!r}, 'w')"),
        lambda flag: Reduced(builtins.open, flag, "w"),
        lambda flag: {"w": Reduced(builtins.eval, f"open({flag!r}, 'w')")},
    ],
)
def test_code_in_a_pickle_is_refused_and_not_run(call: Callable[[str], Any], tmp_path: Path) -> None:
    flag = tmp_path / "was-run"
    path = with_pickle(tmp_path / "evil.pth", pickle.dumps(call(str(flag)), protocol=2))
    with pytest.raises(ModelFileError, match=r"refused: its pickle asks for .*Nothing in it was run"):
        read_pth(path)
    assert not flag.exists()


def test_a_pickle_cannot_change_what_stands_for_pytorch(tmp_path: Path) -> None:
    """BUILD sets attributes of what a GLOBAL gave: not of ours."""
    rebuild = pickle.GLOBAL + b"torch._utils\n_rebuild_tensor_v2\n"
    state = pickle.MARK + pickle.NONE + pickle.EMPTY_DICT + b"X\x04\x00\x00\x00callN" + pickle.SETITEM + pickle.TUPLE
    path = with_pickle(tmp_path / "x.pth", b"\x80\x02" + rebuild + state + pickle.BUILD + pickle.STOP)
    with pytest.raises(ModelFileError, match="cannot be read"):
        read_pth(path)
    np.testing.assert_array_equal(read_pth(GOLDEN / "types.pth")["f16"].read().shape, (5,))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x80\x02.",
        b"\x80\x02}q",
        b"\x80\x02I\xff\n.",
        b"\x80\x02(X\x07\x00\x00\x00storageK\x01K\x02K\x03K\x04tQ.",
        b"\x80\x02X\xff\xff\xff\xffa.",
        b"\x80\x02\x82\x01.",
        b"\x80\x02}r\xff\xff\xff\xff.",
        b"\xff" * 50,
    ],
)
def test_broken_pickles_are_one_error(content: bytes, tmp_path: Path) -> None:
    with pytest.raises(ModelFileError):
        read_pth(with_pickle(tmp_path / "broken.pth", content))


def test_every_truncation_is_one_error(tmp_path: Path) -> None:
    content = (GOLDEN / "types.pth").read_bytes()
    for length in range(0, len(content), 127):
        (tmp_path / "cut.pth").write_bytes(content[:length])
        with pytest.raises(ModelFileError, match=r"cut\.pth"):
            read_pth(tmp_path / "cut.pth")


def test_every_damaged_byte_is_an_error_or_harmless(tmp_path: Path) -> None:
    """Nothing but `ModelFileError` comes out, whatever byte is wrong."""
    content = bytearray((GOLDEN / "module.pth").read_bytes())
    path = tmp_path / "damaged.pth"
    refused = 0
    for at in range(0, len(content), 13):
        damaged = content.copy()
        damaged[at] ^= 0xFF
        path.write_bytes(damaged)
        try:
            for stored in read_pth(path).values():
                stored.read()
        except ModelFileError:
            refused += 1
    assert refused > 10


def test_a_tensor_beyond_its_storage_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(GOLDEN / "parameters.pth") as archive:
        content = archive.read("parameters/data.pkl")
    # The shape (2, 3) becomes (9, 3), which the six values of the storage do not fill.
    assert content.count(b"K\x02K\x03\x86") == 1
    path = tmp_path / "beyond.pth"
    with zipfile.ZipFile(GOLDEN / "parameters.pth") as source, zipfile.ZipFile(path, "w") as target:
        for name in source.namelist():
            record = source.read(name)
            target.writestr(name, record.replace(b"K\x02K\x03\x86", b"K\x09K\x03\x86"))
    with pytest.raises(ModelFileError, match="weight reaches beyond its storage"):
        read_pth(path)


def test_compressed_archives_and_other_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.pth"
    with zipfile.ZipFile(GOLDEN / "types.pth") as source, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as target:
        for name in source.namelist():
            target.writestr(name, source.read(name))
    with pytest.raises(ModelFileError, match="compressed"):
        read_pth(path)
    with zipfile.ZipFile(path, "w") as target:
        target.writestr("a/b.txt", "no weights")
    with pytest.raises(ModelFileError, match=r"no data\.pkl"):
        read_pth(path)
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    with pytest.raises(ModelFileError, match="git lfs pull"):
        read_pth(path)
    path.write_text("hello")
    with pytest.raises(ModelFileError, match="not a zip archive"):
        read_pth(path)
    with pytest.raises(ModelFileError, match="cannot be read: No such file"):
        read_pth(tmp_path / "none.pth")


def test_what_is_written_is_read_back_bit_for_bit(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    matrix = rng.normal(size=(3, 5)).astype(np.float32)
    tensors = [
        tensor("a", matrix),
        tensor("half", matrix.astype(np.float16), "F16"),
        tensor("brain", matrix.astype(ml_dtypes.bfloat16), "BF16"),
        tensor("turned", matrix.T),
        tensor("vector", np.arange(7, dtype=np.float32)),
    ]
    path = tmp_path / "w.pth"
    write_pth(path, tensors, aliases={"z": "a"})
    places = layout(path)
    assert places["z"] == places["a"]
    assert list(places) == ["a", "half", "brain", "turned", "vector", "z"]
    assert all(place.offset % 64 == 0 for place in places.values())
    for written in tensors:
        np.testing.assert_array_equal(bits(read_pth(path)[written.name].read()), bits(written.read()), strict=True)
    assert list(tmp_path.iterdir()) == [path]


def test_a_failed_write_leaves_nothing(tmp_path: Path) -> None:
    def fails() -> Any:
        raise ModelFileError("unreadable")

    with pytest.raises(ModelFileError, match="unreadable"):
        write_pth(tmp_path / "w.pth", [tensor("a", np.zeros(3, np.float32)), Tensor("b", (2,), "F32", fails)])
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_files_beyond_four_gigabytes(tmp_path: Path) -> None:
    """zip64, and neither reading nor writing holds more than one tensor."""
    if shutil.disk_usage(tmp_path).free < 6 << 30:
        pytest.skip("needs 6 GB of disk")
    values = np.zeros(5 << 28, np.float32)  # 5.4 GB, of pages that are never touched
    values[-1] = 3
    write_pth(tmp_path / "big.pth", [tensor("big", values), tensor("after", np.float32([1, 2]))])
    found = read_pth(tmp_path / "big.pth")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert found["big"].read()[-1] == 3
    np.testing.assert_array_equal(found["after"].read(), [1, 2])
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000


@pytest.mark.reference
@pytest.mark.parametrize("zip64", [False, True])
def test_torch_loads_what_is_written(zip64: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch")
    if zip64:
        monkeypatch.setattr(pth_writer, "_ZIP64_FROM", 0)
    rng = np.random.default_rng(0)
    matrix = rng.normal(size=(300, 70)).astype(np.float32)
    tensors = [
        tensor("a", matrix),
        tensor("half", matrix.astype(np.float16), "F16"),
        tensor("brain", matrix.astype(ml_dtypes.bfloat16), "BF16"),
        tensor("one", np.float32([7])),
    ]
    path = tmp_path / "w.pth"
    write_pth(path, tensors, aliases={"z": "a"})
    for mmap in (True, False):
        loaded = torch.load(path, weights_only=True, mmap=mmap)
        assert list(loaded) == ["a", "half", "brain", "one", "z"]
        assert loaded["z"].data_ptr() == loaded["a"].data_ptr()
        for written in tensors:
            assert loaded[written.name].float().numpy().tobytes() == written.read().astype(np.float32).tobytes()


@pytest.mark.reference
def test_torch_files_of_random_views_are_read_as_torch_reads_them(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    generator = torch.Generator().manual_seed(0)
    for case in range(30):
        base = torch.randn(4, 6, 5, generator=generator).to([torch.float32, torch.float16, torch.bfloat16][case % 3])
        axes = torch.randperm(3, generator=generator).tolist()
        view = base.permute(axes)[1:, case % 3 :: 2]
        buffer = io.BytesIO()
        torch.save({"view": view, "base": base}, buffer)
        path = tmp_path / "v.pth"
        path.write_bytes(buffer.getvalue())
        values = read_pth(path)["view"].read()
        assert values.astype(np.float32).tobytes() == view.contiguous().float().numpy().tobytes()
