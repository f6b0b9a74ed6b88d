"""Whatever stands in a folder's settings: it is described or refused, and the description can be printed."""

from __future__ import annotations

import contextlib
import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llamalab.checkpoints.huggingface import write_huggingface
from llamalab.checkpoints.meta import write_meta
from llamalab.cli.info import _document, _rows
from llamalab.errors import LlamalabError
from llamalab.lab.info import model_info
from tests.checkpoints.tiny_checkpoint import SCALED, checkpoint

STRANGE = st.sampled_from(
    [
        None,
        True,
        -1,
        0,
        2**70,
        1.5,
        1e308,
        float("nan"),
        "",
        "x",
        "\ud800",
        [],
        [None],
        [[1]],
        {},
        {"a": {}},
        {"content": 1},
    ]
)
Place = tuple[str | int, ...]
FILES = [
    ("hf", "config.json"),
    ("hf", "tokenizer_config.json"),
    ("hf", "generation_config.json"),
    ("hf", "model.safetensors.index.json"),
    ("meta", "params.json"),
    ("meta", "llamalab.json"),
]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    base = tmp_path_factory.mktemp("whole")
    made = checkpoint(SCALED)
    write_huggingface(made, base / "hf", "F32")
    write_meta(made, base / "meta", "F32")
    weights = base / "hf" / "model.safetensors"
    weights.rename(base / "hf" / "model-00001-of-00001.safetensors")
    index = {"weight_map": {"model.norm.weight": "model-00001-of-00001.safetensors"}}
    (base / "hf" / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(base / "cache"))
        yield base


def places(value: Any, at: Place = ()) -> Iterator[Place]:
    yield at
    if isinstance(value, dict | list):
        for key in list(value)[:12] if isinstance(value, dict) else range(min(4, len(value))):
            yield from places(value[key], (*at, key))


def replaced(tree: Any, at: Place, value: Any) -> Any:
    if not at:
        return value
    tree = copy.deepcopy(tree)
    parent = tree
    for key in at[:-1]:
        parent = parent[key]
    parent[at[-1]] = value
    return tree


@pytest.mark.parametrize(("folder", "name"), FILES, ids=[name for _, name in FILES])
@settings(max_examples=40)
@given(data=st.data())
def test_no_value_is_a_traceback(folders: Path, folder: str, name: str, data: st.DataObject) -> None:
    file = folders / folder / name
    whole = file.read_bytes()
    tree = json.loads(whole)
    at = data.draw(st.sampled_from(list(places(tree))))
    changed = json.dumps(replaced(tree, at, data.draw(STRANGE))).encode()
    cut = data.draw(st.one_of(st.none(), st.integers(0, len(changed))))
    try:
        file.write_bytes(changed[:cut])
        with contextlib.suppress(LlamalabError):
            found = model_info(folders / folder)
            json.dumps(_document(found, tensors=True), allow_nan=False, ensure_ascii=False).encode()
            "".join(cell for row in _rows(found) for cell in row).encode()
    finally:
        file.write_bytes(whole)
