"""Rows of prompts in files: JSON lines, CSV, Parquet, a folder of those, or a data set of the Hugging Face hub."""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from llamalab.arena.jsonl import read_lines
from llamalab.errors import ConfigError, InputError, ProviderError

Place = tuple[Path, int]
"""File and line (of Parquet: row), both from 1."""

JSON_LINES = (".jsonl", ".ndjson", ".json")
SUFFIXES = (*JSON_LINES, ".csv", ".parquet")
_DATASET = re.compile(r"[\w.-]+/[\w.-]+")


def rows_of(source: str, split: str) -> Iterator[tuple[Place, Mapping[str, Any]]]:
    """Every row of a source, with its place.

    Args:
        source: a file, a folder, or the id of a data set on the hub.
        split: of a data set or folder whose files are named by one.

    Raises:
        InputError: no such file, or one that cannot be read; names file and line.
        ProviderError: the hub cannot be reached, or refuses.
        ConfigError: Parquet, and its library is not installed.
    """
    path = Path(source).expanduser()
    if is_missing(source):
        raise InputError(f"The prompts {source} cannot be read: there is no such file.")
    if not path.exists():
        path = _downloaded(source)
    for file in [path] if path.is_file() else _files(path, split):
        yield from _rows(file)


def files_of(source: str, split: str) -> list[Path]:
    """The files that a source is read from; none for a data set on the hub, whatever of it is in the cache.

    Raises:
        InputError: a folder without that split.
    """
    path = Path(source).expanduser()
    if path.is_dir():
        return _files(path, split)
    return [path] if path.is_file() else []


def is_missing(source: str) -> bool:
    """Whether a source is no file that is there, and no data set's id either."""
    path = Path(source).expanduser()
    return not path.exists() and (not _DATASET.fullmatch(source) or path.suffix.lower() in SUFFIXES)


def _rows(file: Path) -> Iterator[tuple[Place, Mapping[str, Any]]]:
    kind = file.suffix.lower()
    if kind in JSON_LINES:
        yield from (((line.path, line.number), line.fields) for line in read_lines(file, growing=False))
    elif kind == ".csv":
        yield from _csv(file)
    elif kind == ".parquet":
        yield from _parquet(file)
    else:
        raise InputError(f"{file} is no file of prompts that is known here: it ends in none of {', '.join(SUFFIXES)}.")


def _csv(file: Path) -> Iterator[tuple[Place, Mapping[str, Any]]]:
    try:
        with file.open(encoding="utf-8-sig", newline="") as text:
            reader = csv.DictReader(text, strict=True)
            for row in reader:
                if None in row or None in row.values():
                    raise InputError(f"{file}, line {reader.line_num}: not as many fields as the first line names.")
                yield (file, reader.line_num), row
    except OSError as error:
        raise InputError(f"{file} cannot be read: {error.strerror or error}.") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{file} is not UTF-8 text (byte {error.start}: {error.reason}).") from None
    except csv.Error as error:
        raise InputError(f"{file}, line {reader.line_num}: not valid CSV: {error}.") from None


def _parquet(file: Path) -> Iterator[tuple[Place, Mapping[str, Any]]]:
    try:
        from pyarrow import ArrowException, parquet
    except ImportError:
        raise ConfigError(f"Reading {file} needs the extra 'arena': pip install 'llamalab[arena]'.") from None
    number = 0
    try:
        with parquet.ParquetFile(file) as table:
            for batch in table.iter_batches():
                for row in batch.to_pylist():
                    number += 1
                    yield (file, number), _plain(row)
    except (ArrowException, OSError) as error:
        raise InputError(f"{file} is no Parquet file that can be read: {error}.") from None


def _plain(value: Any) -> Any:
    """A value as JSON can say it: times as text, a number that is none as None."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)


def _files(folder: Path, split: str) -> list[Path]:
    """The files of a split in a folder, in order: those in `data` or the folder itself, named by the split if any is.

    Raises:
        InputError: there are none.
    """
    found = sorted(each for each in folder.rglob("*") if each.suffix.lower() in SUFFIXES and each.is_file())
    found = [each for each in found if each.name not in ("dataset_infos.json", "dataset_info.json", "state.json")]
    named = [each for each in found if re.match(rf"{re.escape(split)}(?![A-Za-z])", each.name)]
    named = named or [each for each in found if split in each.relative_to(folder).parts[:-1]]
    if named:
        return named
    if any(re.match(r"(train|test|validation|dev)(?![A-Za-z])", each.name) for each in found) or not found:
        there = ", ".join(sorted({each.name for each in found})[:5]) or "no file of prompts"
        raise InputError(f"{folder} has no split '{split}' (prompts.split); there is: {there}.")
    return found


def _downloaded(dataset: str) -> Path:
    """A data set of the hub in its cache.

    Raises:
        ProviderError: it is not there and cannot be fetched.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    network: Any = HfHubHTTPError.__mro__[1]  # HTTPError of whatever library huggingface-hub fetches with
    patterns = [f"*{suffix}" for suffix in SUFFIXES]
    try:
        return Path(snapshot_download(dataset, repo_type="dataset", allow_patterns=patterns))
    except (network, LocalEntryNotFoundError, OSError, ValueError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise ProviderError(
            f"The data set {dataset} cannot be had from the Hugging Face hub: {reason} Give prompts of your own with "
            "--prompts FILE (or prompts.file), or agree to the data set's terms there and set HF_TOKEN."
        ) from None
