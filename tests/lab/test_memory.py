"""Estimates of memory against llama.cpp's own layout, a process that really runs, and closed forms."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llamalab.checkpoints.gguf_file import read_gguf_file
from llamalab.checkpoints.locate import PICO
from llamalab.engines.gguf_header import read_header
from llamalab.errors import ConfigError, EngineError, ModelFileError, ModelNotFound, OutOfMemory
from llamalab.lab.memory import ModelMemory, estimate
from llamalab.lab.memory_budget import budget, largest_context, parse_size
from llamalab.lab.memory_child import Child
from llamalab.lab.memory_copies import copied_bytes, learn
from llamalab.lab.memory_formula import Setting, Sizes, buffers, compute_bytes, sizes, windowed_saving, work_bytes
from llamalab.lab.memory_weights import place
from tests import tiny
from tests.lab import hole_models

MIB = 2**20
PRINTED = 0.006 * MIB
"""llama.cpp prints two digits of a MiB."""

PLAIN = Setting(n_ctx=1000, n_seq=2, type_k="f16", type_v="f16", flash_attn=False, n_batch=512, n_ubatch=256)


@pytest.fixture(scope="module")
def pico() -> Iterator[ModelMemory]:
    with ModelMemory(PICO) as memory:
        yield memory


@pytest.mark.parametrize("name", hole_models.MODELS)
def test_the_formula_s_cache_is_llama_cpp_s(name: str, tmp_path: Path) -> None:
    """Grouped heads, heads that differ by layer, sliding windows, latent attention, recurrent state: one sum."""
    path = hole_models.MODELS[name](tmp_path / "hole.gguf")
    header, file = read_header(path), read_gguf_file(path)
    size = sizes(header, file.fields, file.tensors)
    with Child(path) as child:
        for flash_attn, kv_type in ((False, "f16"), (True, "f16"), (True, "q8_0")):
            setting = replace(PLAIN, flash_attn=flash_attn, type_k=kv_type, type_v=kv_type)
            laid_out = child.ask("dry_run", options=asdict(setting))
            formula = buffers(header, size, setting)
            assert formula.kv == pytest.approx(laid_out["kv"], abs=2 * PRINTED)
            assert formula.output == pytest.approx(laid_out["output"], abs=PRINTED)


def test_the_formula_says_what_it_does_not_know(tmp_path: Path) -> None:
    """An architecture outside its lists has llama.cpp's layout alone, and a sentence about that."""
    with ModelMemory(hole_models.gemma2(tmp_path / "hole.gguf")) as memory:
        found = memory.estimate(n_ctx=1024)
    compute = next(part for part in found.parts if part.name == "compute")
    assert compute.formula is None
    assert compute.ram == compute.dry_run > 0
    assert any("does not know the computation of the architecture 'gemma2'" in note for note in found.notes)


@pytest.mark.parametrize(("name", "window"), [("gemma2", 512), ("gemma3", 1024)])
def test_what_lies_outside_sliding_windows_is_counted(name: str, window: int, tmp_path: Path) -> None:
    """Against llama.cpp itself, told to keep only what the windows see."""
    from llamalab.engines.context import context_parameters
    from llamalab.engines.native import api, captured_lines
    from llamalab.engines.options import parse_options
    from llamalab.lab import memory_dry_run

    path = hole_models.MODELS[name](tmp_path / "hole.gguf")
    setting = replace(PLAIN, n_ctx=4096)
    file = read_gguf_file(path)
    header, model = memory_dry_run._open(path)
    params = context_parameters(header, parse_options(asdict(setting)), n_ctx=4096, n_seq=2, n_outputs=2)
    sums = []
    for full in (True, False):
        params.swa_full = full
        with captured_lines() as lines:
            api.llama_free(api.llama_init_from_model(model, params))
        sums.append(memory_dry_run._sum(memory_dry_run._CACHE, "\n".join(lines)))
    assert windowed_saving(header, file.fields, setting) == pytest.approx(sums[0] - sums[1], abs=4 * PRINTED)
    assert sums[0] - sums[1] > MIB


@pytest.mark.parametrize(
    ("dim", "heads", "kv", "head", "ffn"),
    [(256, 8, 2, 32, 1024), (512, 8, 8, 64, 1408), (384, 3, 1, 128, 1024), (640, 5, 5, 128, 2000)],
)
def test_the_formula_s_compute_buffer_is_llama_cpp_s(
    dim: int, heads: int, kv: int, head: int, ffn: int, tmp_path: Path
) -> None:
    """Shapes that the formula was not fitted on, with queries as wide as the residual stream."""
    path = hole_models.llama(tmp_path / "hole.gguf", dim=dim, heads=heads, kv=kv, head=head, ffn=ffn)
    header, file = read_header(path), read_gguf_file(path)
    size = sizes(header, file.fields, file.tensors)
    with Child(path) as child:
        for n_ctx, flash_attn in ((700, False), (4000, False), (700, True), (4000, True)):
            setting = replace(PLAIN, n_ctx=n_ctx, flash_attn=flash_attn)
            laid_out = child.ask("dry_run", options=asdict(setting))["compute"]
            assert compute_bytes(size, setting) == pytest.approx(laid_out, abs=0.03 * MIB)


def test_the_work_area_is_the_largest_converted_operand() -> None:
    """Closed forms: 2 bytes a value for F16, 292 for 256 beside a K-quant, 34 for 32 beside Q8_0."""
    size = Sizes(dim=512, ffn_dim=2048, n_heads=8, n_kv_heads=8, key_length=64, value_length=64, n_vocab=1000)
    flash = replace(PLAIN, flash_attn=True)
    assert work_bytes(size, flash, {"F16", "F32"}) == 256 * 2048 * 2
    assert work_bytes(size, flash, {"Q4_K", "Q6_K"}) == 256 * 2048 * 292 // 256
    assert work_bytes(size, flash, {"Q8_0"}) == 256 * 2048 * 34 // 32
    assert work_bytes(size, flash, {"F32"}) == 0
    assert work_bytes(size, PLAIN, {"F16"}) == 8 * 256 * 1024 * 2


def test_the_estimate_is_what_a_process_takes(pico: ModelMemory) -> None:
    """Within 8 MiB of a process that filled its context; 55 MiB of scores and work area lie in that of the first."""
    for options in ({"n_ctx": 2048}, {"n_ctx": 256, "n_seq": 2, "kv_type": "q8_0"}):
        found = pico.estimate(measure=True, **options)
        assert found.measured is not None
        assert found.total == pytest.approx(found.measured.peak, abs=8 * MIB)
        assert found.measured.anonymous + found.measured.file <= found.measured.peak
        assert found.reclaimable == pytest.approx(found.measured.file, abs=5 * MIB)


def test_the_parts_add_up(pico: ModelMemory) -> None:
    found = pico.estimate(n_ctx=1000)
    assert found.total == sum(part.ram for part in found.parts)
    assert found.vram == 0
    assert [part.name for part in found.parts] == [
        "process",
        "weights",
        "copies",
        "KV cache",
        "compute",
        "output",
        "work area",
    ]
    weights = found.parts[1].ram
    assert found.without_mmap == pytest.approx(found.total, abs=2 * 4096 * 64)
    assert weights <= PICO.stat().st_size + 4096


@settings(max_examples=60)
@given(
    n_ctx=st.integers(1, 20_000),
    more=st.integers(0, 20_000),
    n_seq=st.integers(1, 16),
    kv_type=st.sampled_from(["f32", "f16", "q8_0", "q4_0"]),
    flash_attn=st.booleans(),
)
def test_more_context_and_more_sequences_never_take_less(
    n_ctx: int, more: int, n_seq: int, kv_type: str, flash_attn: bool
) -> None:
    header, file = read_header(PICO), read_gguf_file(PICO, lazy=True)
    size = sizes(header, file.fields, file.tensors)

    def total(setting: Setting) -> int:
        found = buffers(header, size, setting)
        assert found.kv is not None
        assert found.compute is not None
        assert found.output is not None
        return found.kv + found.compute + found.output + work_bytes(size, setting, {"Q8_0"})

    setting = Setting(n_ctx, n_seq, kv_type, kv_type, flash_attn, 512, 512)
    assert total(replace(setting, n_ctx=n_ctx + more)) >= total(setting)
    assert total(replace(setting, n_seq=n_seq + 1)) > total(setting)


def test_copies_are_those_that_llama_cpp_reports(tmp_path: Path) -> None:
    """A whole model of several types, really loaded: the sum of the buffers that are not the file's."""
    from llamalab.engines.native import api, captured_lines
    from llamalab.engines.options import Options
    from llamalab.engines.weights import model_parameters
    from llamalab.lab.memory_copies import _BUFFER

    for type in ("Q4_0", "Q4_K", "Q6_K", "Q8_0", "F16"):
        path = tmp_path / f"{type}.gguf"
        hole_models.llama(path, dim=512, heads=8, kv=2, head=64, ffn=1024, type=type, vocab=2048)
        tensors = read_gguf_file(path).tensors
        with captured_lines() as lines:
            api.llama_model_free(
                api.llama_model_load_from_file(str(path).encode(), model_parameters(Options(load_mode="mmap")))
            )
        found = {name: float(size) * MIB for name, size in _BUFFER.findall("\n".join(lines))}
        extra = sum(size for name, size in found.items() if not name.startswith("CPU_Mapped") and name != "CPU")
        copies = copied_bytes(tensors, lambda kinds: [learn(*kind) for kind in kinds])
        assert sum(copies.values()) == pytest.approx(extra, abs=PRINTED)


def test_weights_that_are_copied_leave_their_pages_mapped(tmp_path: Path) -> None:
    """Closed form: one range of pages, from the first tensor to the last; copies' own bytes lie inside it."""
    tensors = read_gguf_file(
        hole_models.llama(tmp_path / "hole.gguf", layers=4, dim=512, ffn=1024, head=64, type="Q4_K", vocab=2048)
    ).tensors
    copies = {name: tensor.nbytes for name, tensor in tensors.items() if "attn_" in name and "norm" not in name}
    none, some = place(tensors, {}, first=5), place(tensors, copies, first=5)
    everything = sum(tensor.nbytes for tensor in tensors.values())
    assert (none.read, none.copies, none.vram) == (everything, 0, 0)
    assert 0 <= none.mapped - everything < 4096 * 2
    assert (some.read, some.copies, some.mapped) == (
        everything - sum(copies.values()),
        sum(copies.values()),
        none.mapped,
    )


def test_a_gpu_takes_the_last_layers_and_the_output_first(tmp_path: Path) -> None:
    """llama.cpp's order; the embedding stays in RAM, and where it is the output too, a GPU holds it once more."""
    tensors = read_gguf_file(hole_models.llama(tmp_path / "hole.gguf", layers=4)).tensors
    block = sum(tensor.nbytes for name, tensor in tensors.items() if name.startswith("blk.0."))
    output = tensors["token_embd.weight"].nbytes + tensors["output_norm.weight"].nbytes
    assert [place(tensors, {}, first=first).vram for first in (5, 4, 3, 0)] == [
        0,
        output,
        output + block,
        output + 4 * block,
    ]
    assert place(tensors, {}, first=0).read == tensors["token_embd.weight"].nbytes


def test_ram_and_vram_share_the_cache_by_layers(tmp_path: Path) -> None:
    with ModelMemory(hole_models.openelm(tmp_path / "hole.gguf")) as memory:
        whole = memory.estimate(n_ctx=1024, flash_attn=True).parts[3]
        split = memory.estimate(n_ctx=1024, gpu_layers=2).parts[3]
        everything = memory.estimate(n_ctx=1024, gpu_layers=-1).parts[3]
    assert whole.formula == split.ram + split.vram == everything.vram
    assert split.vram == whole.ram * 3 / 6  # the last of three layers has 3 of 6 KV heads
    assert everything.ram == 0


@pytest.mark.parametrize("answer", [0, 256, 512, 5120, 8192, 8000])
def test_the_largest_context_is_found(answer: int) -> None:
    """Against the definition; the model's own limit need not be a multiple of 256."""
    assert largest_context(lambda n: n <= answer, 8192) == answer // 256 * 256
    assert largest_context(lambda n: n <= answer, 8000) == (8000 if answer >= 8000 else answer // 256 * 256)


def test_what_fits_into_a_budget(tmp_path: Path) -> None:
    """The largest context needs no more than the budget, the next one does; fewer bits never fit worse."""
    shape = {"layers": 2, "dim": 512, "heads": 8, "kv": 8, "head": 64, "ffn": 2048, "type": "F16", "vocab": 512}
    with ModelMemory(hole_models.llama(tmp_path / "hole.gguf", **shape)) as memory:
        asked = memory.estimate(n_ctx=1024, flash_attn=True)
        size = memory.estimate(n_ctx=4096, flash_attn=True).without_mmap + 1000
        found = budget(memory, size, asked, flash_attn=True)
        layers = memory.estimate(n_ctx=1024, gpu_layers=2).vram
        small = budget(memory, layers, asked, flash_attn=True)
    assert found.largest_context == 4096
    assert [row.type for row in found.types][:2] == ["F16", "Q8_0"]
    assert found.types[0].needed == asked.without_mmap
    assert found.types[0].largest_context == 4096
    files = {row.type: row.file_bytes for row in found.types}
    assert sorted(files.values(), reverse=True) == list(files.values()) or files["IQ4_XS"] < files["Q4_0"]
    assert all(row.largest_context >= 4096 for row in found.types)
    assert (small.gpu_layers, small.largest_context) == (2, 0)


@pytest.mark.parametrize(
    ("text", "size"),
    [("24GB", 24 * 10**9), ("16 GiB", 16 * 2**30), ("800mb", 800 * 10**6), ("1.5G", 1_500_000_000), ("4096", 4096)],
)
def test_sizes_as_people_write_them(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "much", "0", "-3GB", "5XB", "GB"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="no size of a memory"):
        parse_size(text)


def test_a_70b_is_estimated_without_its_weights(tmp_path: Path) -> None:
    """From a header of some kilobytes: what is not there cannot be loaded."""
    path = hole_models.llama(
        tmp_path / "hole.gguf", layers=80, dim=8192, heads=64, kv=8, head=128, ffn=28672, type="Q4_K", vocab=128_256
    )
    assert path.stat().st_blocks * 512 < MIB
    found = estimate(path, n_ctx=8192)
    assert found.total > path.stat().st_size
    assert found.without_mmap < path.stat().st_size + 6 * 2**30
    assert found.parts[3].formula == found.parts[3].dry_run == 8192 * 80 * 8 * 128 * 2 * 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_ctx": 0}, "n_ctx must be 1 or more, not 0"),
        ({"n_ctx": 9000}, "n_ctx=9000 is more than 4 times the 2048 tokens"),
        ({"n_seq": 0}, "n_seq must be 1 or more"),
        ({"kv_type": "q3_0"}, "kv_type must be one of"),
        ({"kv_type": "q8_0", "flash_attn": False}, "needs flash attention"),
        ({"n_batch": 0}, "n_batch must be 1 or more"),
    ],
)
def test_options_that_cannot_be_are_refused(pico: ModelMemory, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        pico.estimate(**options)


def test_files_that_cannot_be_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound, match="no file"):
        ModelMemory(tmp_path / "none.gguf")
    path = tmp_path / "cut.gguf"
    path.write_bytes(PICO.read_bytes()[:-1000])
    with pytest.raises(ModelFileError, match="cut off"):
        ModelMemory(path)


def test_an_unknown_architecture_is_one_message(tmp_path: Path) -> None:
    path = hole_models.write(tmp_path / "hole.gguf", "nobody", [hole_models.attention(64, 2, 2, 32)], 64, {})
    with pytest.raises(ModelFileError, match="has the architecture 'nobody', which"), ModelMemory(path) as memory:
        memory.estimate()


def test_a_model_that_writes_nothing_is_refused(tmp_path: Path) -> None:
    tiny.write_bert(tmp_path / "bert.gguf")
    with pytest.raises(ModelFileError, match="embedding model"), ModelMemory(tmp_path / "bert.gguf") as memory:
        memory.estimate()


def test_what_ends_llama_cpp_ends_only_the_child(tmp_path: Path) -> None:
    """A rotation of half a head: llama.cpp aborts where it lays out the computation."""
    block = hole_models.attention(256, 8, 2, 32) | hole_models.feed_forward(256, 512)
    fields = {"attention.head_count": 8, "attention.head_count_kv": 2, "feed_forward_length": 512}
    path = hole_models.write(tmp_path / "hole.gguf", "qwen2", [block], 256, fields | {"rope.dimension_count": 16})
    with pytest.raises(ModelFileError, match="ends its process over it") as error, ModelMemory(path) as memory:
        memory.estimate(n_ctx=256)
    assert str(path) in str(error.value)


def test_a_child_that_is_killed_is_one_message(pico: ModelMemory) -> None:
    with ModelMemory(PICO) as memory:
        memory._child._process.kill()
        with pytest.raises(EngineError, match="it was killed, as for want of memory"):
            memory.estimate(n_ctx=256)


def test_what_cannot_fit_is_not_loaded(pico: ModelMemory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llamalab.engines.machine.available_memory", lambda: 10 * MIB)
    with pytest.raises(OutOfMemory, match=r"cannot be measured here: .* 0.01 GiB are free"):
        pico.estimate(n_ctx=256, measure=True)
