"""Settings and tokenisers that are JSON: whatever stands in them, a folder is read or refused with a message."""

from __future__ import annotations

import contextlib
import copy
import json
import shutil
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llamalab.checkpoints.checkpoint import open_checkpoint
from llamalab.checkpoints.huggingface import write_huggingface
from llamalab.checkpoints.load import load_weights
from llamalab.checkpoints.meta import write_meta
from llamalab.checkpoints.pieces import byte_token
from llamalab.checkpoints.safetensors_file import read_safetensors
from llamalab.checkpoints.vocabulary import TokenType, Vocabulary
from llamalab.engines.tokenizer import open_tokenizer
from llamalab.errors import LlamalabError
from tests.checkpoints.tiny_checkpoint import SCALED, checkpoint

STRANGE = st.sampled_from(
    [None, True, -1, 0, 3, 10**9, 2**70, 1.5, 1e300, float("nan"), "", "x", "\ud800", [], [None], [[1]], {}, {"a": {}}]
)
Place = tuple[str | int, ...]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    base = tmp_path_factory.mktemp("whole")
    made = checkpoint(SCALED)
    write_meta(made, base / "meta", "F32")
    write_huggingface(made, base / "huggingface", "F32")
    # In a shard with an index, as large models have it; and the file that old ones have beside the tokeniser.
    whole, shard = (base / "huggingface" / name for name in ("model.safetensors", "model-00001-of-00001.safetensors"))
    whole.rename(shard)
    places = dict.fromkeys(read_safetensors(shard), shard.name)
    (base / "huggingface" / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    named = {"bos_token": "<|bos|>", "eos_token": {"content": "<|eos|>"}}
    (base / "huggingface" / "special_tokens_map.json").write_text(json.dumps(named))
    (base / "huggingface" / "tokenizer_config.json").write_text(
        json.dumps({"chat_template": [{"name": "default", "template": "{{ messages }}"}]})
    )
    write_huggingface(replace(made, vocabulary=sentencepiece_vocabulary()), base / "sentencepiece", "F32")
    return {folder.name: folder for folder in base.iterdir()}


def sentencepiece_vocabulary() -> Vocabulary:
    bytes_ = [byte_token(byte) for byte in range(256)]
    tokens = ["<unk>", "<s>", "</s>", *bytes_, "th", "t", "h"]
    types: list[TokenType] = ["unknown", "control", "control", *["byte"] * 256, "normal", "normal", "normal"]
    return Vocabulary(
        kind="sentencepiece",
        tokens=tokens,
        types=types,
        scores=[*[0.0] * 259, -1.0, -2.0, -3.0],
        bos_id=1,
        eos_id=2,
        unk_id=0,
        stop_ids=frozenset({2}),
        add_bos=True,
        space_prefix=True,
    )


def places(value: Any, at: Place = ()) -> Iterator[Place]:
    """Where a value stands in a tree of JSON; of lists and long tables, whose entries are alike, the first two."""
    yield at
    if isinstance(value, dict | list):
        keys = list(value) if isinstance(value, dict) else list(range(len(value)))
        for key in keys if isinstance(value, dict) and len(keys) < 50 else keys[:2]:
            yield from places(value[key], (*at, key))


def changed(tree: Any, at: Place, value: Any) -> Any:
    """The tree with another value there; `...` leaves the entry out."""
    if not at:
        return None if value is ... else value
    tree = copy.deepcopy(tree)
    parent = tree
    for key in at[:-1]:
        parent = parent[key]
    if value is ...:
        del parent[at[-1]]
    else:
        parent[at[-1]] = value
    return tree


def use(folder: Path) -> None:
    """All that an engine does with a folder before it computes."""
    opened = open_checkpoint(folder)
    load_weights(opened)
    with contextlib.closing(open_tokenizer(opened)) as tokenizer:
        ids = tokenizer.tokenize("the <|eos|> cat", parse_special=True)
        tokenizer.detokenize(ids, special=True)


@pytest.mark.parametrize(
    ("folder", "name"),
    [
        ("huggingface", "config.json"),
        ("huggingface", "tokenizer.json"),
        ("huggingface", "tokenizer_config.json"),
        ("huggingface", "generation_config.json"),
        ("huggingface", "special_tokens_map.json"),
        ("huggingface", "model.safetensors.index.json"),
        ("sentencepiece", "tokenizer.json"),
        ("meta", "params.json"),
        ("meta", "llamalab.json"),
        ("meta", "tokenizer.json"),
    ],
)
@settings(max_examples=50, deadline=None)
@given(data=st.data())
def test_no_value_of_a_json_file_is_a_traceback(
    folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory, folder: str, name: str, data: st.DataObject
) -> None:
    source = folders[folder] / name
    text = source.read_text()
    tree = json.loads(text)
    at = data.draw(st.sampled_from(list(places(tree))))
    broken = json.dumps(changed(tree, at, data.draw(st.just(...) | STRANGE)))
    if data.draw(st.integers(0, 9)) == 0:
        broken = broken[: data.draw(st.integers(0, len(broken)))]
    target = tmp_path_factory.mktemp("broken")
    for file in folders[folder].iterdir():
        (target / file.name).symlink_to(file)
    (target / name).unlink()
    (target / name).write_text(broken)
    with warnings.catch_warnings(), contextlib.suppress(LlamalabError):
        warnings.simplefilter("ignore")
        use(target)
    shutil.rmtree(target)
