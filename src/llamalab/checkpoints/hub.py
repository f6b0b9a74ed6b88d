"""Downloading one model from the Hugging Face hub, into the hub's own cache.

Environment variables count at the time of the call: HF_ENDPOINT, HF_TOKEN, HF_HUB_OFFLINE, and the cache's own. Bytes
gather in `blobs/ETAG.incomplete`, and a download that was cut off goes on from there: huggingface-hub from version 2
on throws such a file away. It is used for everything else: listing, addresses, retries, links.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from llamalab.checkpoints.hub_cache import HubName, cached_folder, find_cached, hub_cache
from llamalab.checkpoints.hub_folder import INDEX, indexed_files, needed_files
from llamalab.checkpoints.names import PREFERRED_QUANTISATION, ModelFile, choose, human_size, model_files
from llamalab.errors import ModelNotFound, ProviderError

if TYPE_CHECKING:
    from huggingface_hub.hf_api import RepoSibling

_log = logging.getLogger(__name__)

_PLAIN_HTTP_LIMIT = 50_000_000_000
"""Bytes; the hub serves larger files through its Xet protocol only, which huggingface-hub speaks."""


def hub_endpoint() -> str:
    """Address of the hub, without a slash at the end."""
    return (os.environ.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/")


def download(name: HubName, *, progress: bool = True) -> Path:
    """Download exactly one model of a repository; one that is in the cache is used as it is, without asking the hub.

    Of a repository without GGUF files that is its checkpoint: the safetensors with settings and tokeniser, or, where
    there are none, Meta's files.

    Args:
        name: repository and quantisation. Without a quantisation: Q4_K_M if there is one, or the only model.
        progress: show a bar on standard error if that is a terminal.

    Returns:
        The file in the cache; of a split model the first part, with all others beside it; of a checkpoint its folder.

    Raises:
        ModelNotFound: no such repository, or nothing in it that fits (the message lists what there is).
        ProviderError: the hub cannot be reached, refuses, or the download broke off (the same call resumes it).
    """
    cached = find_cached(name)
    settled = name.wanted is not None or (cached and cached[0].quantisation == PREFERRED_QUANTISATION)
    if len(cached) == 1 and (settled or _offline()):
        return Path(cached[0].first)
    folder = None if cached else cached_folder(name)
    if folder is not None:
        return folder
    try:
        with _explained(name):
            commit, files = _listing(name)
    except ProviderError as error:
        if len(cached) != 1:
            raise
        _log.warning("using %s from the cache: %s", cached[0].first, error)
        return Path(cached[0].first)
    if name.wanted is None and not model_files((path, file.size) for path, file in files.items()):
        return _fetch_folder(name, files, commit, progress=progress)
    model = _pick(name, files)
    with _explained(name):
        paths = [_fetch(name, files[part], commit, progress=progress) for part in model.parts]
    return paths[0]


def _offline() -> bool:
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}


def _listing(name: HubName) -> tuple[str, dict[str, RepoSibling]]:
    """The newest commit of a repository and its files by path, with sizes and checksums."""
    from huggingface_hub import HfApi

    if _offline():
        raise ConnectionError("HF_HUB_OFFLINE is set")
    info = HfApi(endpoint=hub_endpoint()).model_info(name.repo, files_metadata=True)
    return info.sha or "main", {file.rfilename: file for file in info.siblings or []}


def _pick(name: HubName, files: dict[str, RepoSibling]) -> ModelFile:
    models = model_files((path, file.size) for path, file in files.items())
    if not models:
        raise ModelNotFound(f"{name.repo} on {hub_endpoint()} has no GGUF model. Look for one that has.")
    chosen = choose(models, name.wanted)
    if len(chosen) == 1:
        return chosen[0]
    offered = ", ".join(
        f"{model.quantisation or PurePosixPath(model.first).name} ({human_size(model.size_bytes)})"
        if len(choose(models, model.quantisation)) == 1 and model.quantisation
        else f"{PurePosixPath(model.first).name} ({human_size(model.size_bytes)})"
        for model in chosen or models
    )
    if name.wanted is None:
        problem = f"{name.repo} has several models and none in {PREFERRED_QUANTISATION}"
    else:
        problem = f"{name.repo} has {'several models' if chosen else 'nothing'} called {name.wanted}"
    raise ModelNotFound(f"{problem}. Name one after a colon, as in hub:{name.repo}:NAME. There is: {offered}.")


def _fetch_folder(name: HubName, files: dict[str, RepoSibling], commit: str, *, progress: bool) -> Path:
    """The checkpoint of a repository, file by file."""
    needed = needed_files(files)
    if not needed:
        raise ModelNotFound(
            f"{name.repo} on {hub_endpoint()} has no GGUF model, and no whole checkpoint either: that would be "
            "config.json, model.safetensors (or its parts with their index) and tokenizer.json, or Meta's params.json, "
            "consolidated.00.pth and tokenizer.model. Look for another repository of that model."
        )
    with _explained(name):
        if INDEX in needed:
            index = _fetch(name, files[INDEX], commit, progress=progress)
            missing = sorted(indexed_files(index.read_text(encoding="utf-8")) - set(needed))
            if missing:
                raise ModelNotFound(f"{name.repo} is incomplete: its index names {missing[0]}, which is not in it.")
        paths = [_fetch(name, files[file], commit, progress=progress) for file in needed]
    return paths[-1].parents[needed[-1].count("/")]


def _fetch(name: HubName, file: RepoSibling, commit: str, *, progress: bool) -> Path:
    """One file, through `blobs/ETAG.incomplete`, then linked into the cache by huggingface-hub."""
    from filelock import FileLock
    from huggingface_hub import get_hf_file_metadata, get_token, hf_hub_download, hf_hub_url

    cache, endpoint, token = hub_cache(), hub_endpoint(), get_token()
    url = hf_hub_url(name.repo, file.rfilename, revision=commit, endpoint=endpoint)
    source = get_hf_file_metadata(url, token=token, endpoint=endpoint)
    if source.etag and source.size and source.size <= _PLAIN_HTTP_LIMIT:
        blob = cache / name.folder / "blobs" / source.etag
        lock = cache / ".locks" / name.folder / f"{source.etag}.lock"
        blob.parent.mkdir(parents=True, exist_ok=True)
        lock.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(lock):
            if not blob.exists():
                partial = blob.with_name(f"{source.etag}.incomplete")
                same_host = urlsplit(source.location).netloc == urlsplit(url).netloc
                _stream(source.location, partial, source.size, file, token if same_host else None, progress=progress)
                _check(partial, file)
                partial.replace(blob)
    with _progress_bars(shown=progress):
        return Path(
            hf_hub_download(
                name.repo, file.rfilename, revision="main", cache_dir=cache, endpoint=endpoint, token=token or False
            )
        )


def _stream(url: str, partial: Path, size: int, file: RepoSibling, token: str | None, *, progress: bool) -> None:
    """Append what is missing to `partial`."""
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import build_hf_headers

    have = partial.stat().st_size if partial.exists() else 0
    if have > size:
        partial.unlink()
        have = 0
    free = shutil.disk_usage(partial.parent).free
    if free < size - have:
        raise ProviderError(
            f"{file.rfilename} needs {human_size(size - have)} more on the disk of {partial.parent}, which has "
            f"{human_size(free)} free. Make room, or set HF_HOME to a folder on another disk."
        )
    try:
        with partial.open("ab") as out, _progress_bars(shown=progress):
            http_get(
                url,
                out,
                resume_size=have,
                headers=build_hf_headers(token=token or False),
                expected_size=size,
                displayed_filename=PurePosixPath(file.rfilename).name,
            )
    except _network_errors() as error:
        here = partial.stat().st_size
        if here > size:
            partial.unlink()
        raise ProviderError(
            f"The download of {file.rfilename} broke off at {human_size(here)} of {human_size(size)}: {_brief(error)}. "
            "Run the same command again; it goes on from there."
        ) from error


def _check(partial: Path, file: RepoSibling) -> None:
    """Compare with the hub's checksum; a damaged file is removed."""
    expected = file.lfs.sha256 if file.lfs else None
    if expected is None:
        return
    with partial.open("rb") as content:
        actual = hashlib.file_digest(content, "sha256").hexdigest()
    if actual != expected:
        partial.unlink()
        raise ProviderError(
            f"{file.rfilename} arrived damaged: its SHA-256 is {actual[:12]}..., the hub says {expected[:12]}.... "
            "The file was removed; run the same command again."
        )


@contextmanager
def _progress_bars(*, shown: bool) -> Iterator[None]:
    """huggingface-hub's bars go to standard error, and only to a terminal; switched off here where not wanted."""
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    if shown or are_progress_bars_disabled():
        yield
        return
    disable_progress_bars()
    try:
        yield
    finally:
        enable_progress_bars()


def _network_errors() -> tuple[type[Exception], ...]:
    """What huggingface-hub lets through when a transfer fails: its HTTP library's errors and OSError."""
    from huggingface_hub.errors import HfHubHTTPError

    http_error: Any = HfHubHTTPError.__mro__[1]  # HTTPError of httpx or, from version 2 on, of httpx2
    return (http_error, OSError)


def _brief(error: BaseException) -> str:
    """First line of an error's message, without its full stop."""
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__


@contextmanager
def _explained(name: HubName) -> Iterator[None]:
    """Turn huggingface-hub's errors into ours: what was wrong and what to do."""
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, HFValidationError, RepositoryNotFoundError

    page = f"{hub_endpoint()}/{name.repo}"
    try:
        yield
    except GatedRepoError as error:
        raise ProviderError(_gated(name.repo, page, error.response.status_code)) from error
    except HFValidationError as error:
        raise ModelNotFound(f"'{name.repo}' cannot be a repository's name: {_brief(error)}.") from error
    except RepositoryNotFoundError as error:
        raise ModelNotFound(
            f"There is no repository {name.repo} on {hub_endpoint()} that you may read. Check the spelling; if it is "
            "private, give a token: set HF_TOKEN, or run `hf auth login`."
        ) from error
    except _network_errors() as error:
        status = error.response.status_code if isinstance(error, HfHubHTTPError) else None
        if status in {401, 403}:
            raise ProviderError(
                f"{hub_endpoint()} refuses {name.repo} (HTTP {status}). Check that the token in HF_TOKEN is valid and "
                f"may read {page}."
            ) from error
        raise ProviderError(
            f"{hub_endpoint()} cannot be asked for {name.repo}: {_brief(error)}. Check the connection, and HF_ENDPOINT "
            "and HF_HUB_OFFLINE if they are set. `llamalab models` lists what is on this machine."
        ) from error


def _gated(repo: str, page: str, status: int) -> str:
    """What to do about a repository whose owner wants terms accepted: 401 without a token, 403 without the right."""
    if status == 403:
        return (
            f"{repo} is gated, and the account of your token may not read it yet. Ask for access at {page}; if you "
            "have, wait until it is granted (an e-mail says so). A fine-grained token also needs the permission to "
            "read gated repositories: see https://huggingface.co/settings/tokens."
        )
    return (
        f"{repo} is gated: its owner asks you to accept terms first. Do that at {page}, then give a token of your "
        "account: set HF_TOKEN, or run `hf auth login`."
    )
