"""Downloading from a hub: served on the loopback interface, with the hub's layout."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from llamalab.checkpoints.hub_cache import hub_cache
from llamalab.checkpoints.locate import local_models, locate
from llamalab.errors import ModelNotFound, ProviderError
from tests.checkpoints.hub_server import COMMIT, Hub, serve

REPO = "acme/tiny-GGUF"
Q4 = b"GGUF" + b"4" * 4000
Q8 = b"GGUF" + b"8" * 8000
SPLIT = {f"big/x-Q6_K-0000{n}-of-00003.gguf": b"GGUF" + bytes([n]) * (1000 * n) for n in (1, 2, 3)}


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("HF_TOKEN_PATH", str(tmp_path / "no-token"))
    monkeypatch.setenv("OLLAMA_MODELS", str(tmp_path / "no-ollama"))
    monkeypatch.setenv("LLAMA_MODELS_CONFIG_DIR", str(tmp_path / "no-llama"))
    monkeypatch.setenv("LLAMA_STACK_CONFIG_DIR", str(tmp_path / "no-llama"))
    files = {
        "tiny-Q4_K_M.gguf": Q4,
        "tiny-Q8_0.gguf": Q8,
        "mmproj-tiny-F16.gguf": b"GGUF vision",
        "tiny.imatrix.gguf": b"GGUF importance",
        "README.md": b"# tiny",
        **SPLIT,
    }
    with serve(Hub(repos={REPO: files})) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.address)
        yield hub


def test_one_quantisation_is_downloaded_and_nothing_else(hub: Hub) -> None:
    path = locate(f"hub:{REPO}:q8_0")
    assert path.name == "tiny-Q8_0.gguf"
    assert path.read_bytes() == Q8
    assert [path for path, _ in hub.fetched()] == [f"/cdn/{REPO}/tiny-Q8_0.gguf"]


def test_file_lands_in_the_hubs_own_cache_layout(hub: Hub) -> None:
    """huggingface-hub itself finds the file offline."""
    from huggingface_hub import try_to_load_from_cache

    path = locate(f"hub:{REPO}:Q8_0")
    assert try_to_load_from_cache(REPO, "tiny-Q8_0.gguf", cache_dir=hub_cache()) == str(path)
    assert (hub_cache() / "models--acme--tiny-GGUF" / "blobs" / hashlib.sha256(Q8).hexdigest()).read_bytes() == Q8


def test_without_a_quantisation_q4_k_m_is_taken(hub: Hub) -> None:
    assert locate(f"hub:{REPO}").read_bytes() == Q4


def test_a_file_name_works_as_well(hub: Hub) -> None:
    assert locate(f"hub:{REPO}:tiny-Q8_0.gguf").read_bytes() == Q8


def test_all_parts_of_a_split_model_are_downloaded_and_the_first_returned(hub: Hub) -> None:
    path = locate(f"hub:{REPO}:Q6_K")
    assert path.name == "x-Q6_K-00001-of-00003.gguf"
    assert {f"big/{part.name}": part.read_bytes() for part in path.parent.glob("*.gguf")} == SPLIT


def test_what_is_in_the_cache_is_used_without_the_network(hub: Hub) -> None:
    first = locate(f"hub:{REPO}")
    asked = len(hub.requests)
    assert locate(f"hub:{REPO}") == locate(f"hub:{REPO}:Q4_K_M") == locate(REPO) == locate("tiny-Q4_K_M.gguf") == first
    assert len(hub.requests) == asked


def test_a_second_quantisation_is_still_asked_for_when_none_is_named(hub: Hub) -> None:
    """A cached Q8_0 does not stand in for the default Q4_K_M while the hub can be reached."""
    locate(f"hub:{REPO}:Q8_0")
    assert locate(f"hub:{REPO}").read_bytes() == Q4


def test_cached_model_stands_in_when_the_hub_cannot_be_reached(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    locate(f"hub:{REPO}:Q8_0")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert locate(f"hub:{REPO}").read_bytes() == Q8


def test_offline_uses_the_cache_and_says_so_where_it_has_nothing(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    locate(f"hub:{REPO}:Q8_0")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    asked = len(hub.requests)
    assert locate(f"hub:{REPO}").read_bytes() == Q8
    with pytest.raises(ProviderError, match="HF_HUB_OFFLINE is set"):
        locate(f"hub:{REPO}:Q4_K_M")
    assert len(hub.requests) == asked


def test_unreachable_hub_is_one_clear_error(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(ProviderError, match=r"http://127\.0\.0\.1:9 cannot be asked for acme/tiny-GGUF"):
        locate(f"hub:{REPO}:Q4_K_M")


def test_dropped_connection_is_tried_again_within_the_call(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.file_download.time.sleep", lambda _: None)
    hub.break_after, hub.breaks = 3000, 1
    assert locate(f"hub:{REPO}:Q8_0").read_bytes() == Q8
    assert len(hub.fetched()) == 2


def test_killed_download_resumes_in_the_next_process(hub: Hub) -> None:
    """What a killed process had written is not fetched again."""
    content = os.urandom(1 << 20) * 12
    hub.repos[REPO]["large-Q5_K_M.gguf"] = content
    hub.stall_after = 11 << 20
    code = f"from llamalab.checkpoints.locate import locate; locate('hub:{REPO}:Q5_K_M', progress=False)"
    child = subprocess.Popen([sys.executable, "-c", code])
    partial = hub_cache() / "models--acme--tiny-GGUF" / "blobs" / f"{hashlib.sha256(content).hexdigest()}.incomplete"
    give_up = time.monotonic() + 60
    while not (partial.exists() and partial.stat().st_size) and time.monotonic() < give_up and child.poll() is None:
        time.sleep(0.02)
    child.send_signal(signal.SIGKILL)
    child.wait()
    have = partial.stat().st_size
    assert have > 0
    hub.stall_after = None
    assert locate(f"hub:{REPO}:Q5_K_M").read_bytes() == content
    assert hub.fetched()[-1][1] == f"bytes={have}-"
    assert not partial.exists()


def test_broken_download_says_how_far_it_came(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.file_download.time.sleep", lambda _: None)
    hub.break_after, hub.breaks = 0, 1000
    with pytest.raises(ProviderError, match=r"broke off at 0 B of 8\.0 kB.*Run the same command again"):
        locate(f"hub:{REPO}:Q8_0")


def test_damaged_content_is_noticed_and_removed(hub: Hub) -> None:
    hub.lie_about = "tiny-Q8_0.gguf"
    with pytest.raises(ProviderError, match="arrived damaged"):
        locate(f"hub:{REPO}:Q8_0")
    assert [model.name for model in local_models() if model.source == "hub"] == []
    assert not list(hub_cache().rglob("*.incomplete"))


def test_token_goes_to_the_hub_and_not_to_the_host_of_the_files(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.gated.add(REPO)
    monkeypatch.setenv("HF_TOKEN", hub.token)
    assert locate(f"hub:{REPO}:Q8_0").read_bytes() == Q8
    told = {path.split("/")[1]: "authorization" in headers for _, path, headers in hub.requests}
    assert told == {"api": True, "acme": True, "cdn": False}


def test_gated_repository_says_where_to_accept_its_terms(hub: Hub) -> None:
    hub.gated.add(REPO)
    with pytest.raises(ProviderError, match=rf"gated.*{hub.address}/{REPO}.*HF_TOKEN"):
        locate(f"hub:{REPO}:Q8_0")


def test_gated_repository_that_the_account_may_not_read_yet(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.closed.add(REPO)
    monkeypatch.setenv("HF_TOKEN", hub.token)
    with pytest.raises(ProviderError, match=rf"may not read it yet.*{hub.address}/{REPO}.*fine-grained"):
        locate(f"hub:{REPO}:Q8_0")


def test_unknown_repository(hub: Hub) -> None:
    with pytest.raises(ModelNotFound, match=f"no repository acme/nothing on {hub.address}"):
        locate("hub:acme/nothing:Q8_0")


def test_missing_quantisation_lists_what_there_is_with_sizes(hub: Hub) -> None:
    with pytest.raises(ModelNotFound) as caught:
        locate(f"hub:{REPO}:Q2_K")
    message = str(caught.value)
    assert "nothing called Q2_K" in message
    assert "Q4_K_M (4.0 kB)" in message
    assert "Q6_K (6.0 kB)" in message
    assert "mmproj" not in message
    assert hub.fetched() == []


def test_several_models_and_no_default_is_an_error_that_lists_them(hub: Hub) -> None:
    del hub.repos[REPO]["tiny-Q4_K_M.gguf"]
    with pytest.raises(ModelNotFound, match=r"several models and none in Q4_K_M.*Q6_K.*Q8_0"):
        locate(f"hub:{REPO}")


def test_the_only_model_needs_no_name(hub: Hub) -> None:
    hub.repos["acme/one"] = {"one-IQ2_XXS.gguf": b"GGUF one"}
    assert locate("hub:acme/one").read_bytes() == b"GGUF one"


def test_repository_without_a_whole_model(hub: Hub) -> None:
    hub.repos["acme/other"] = {"model.safetensors": b"x", "tokenizer.json": b"{}"}
    with pytest.raises(ModelNotFound, match=r"has no GGUF model, and no whole checkpoint.*config\.json"):
        locate("hub:acme/other")
    with pytest.raises(ModelNotFound, match="has no GGUF model"):
        locate("hub:acme/other:Q8_0")
    assert hub.fetched() == []


WHOLE = {
    "config.json": b"{}",
    "tokenizer.json": b"{ }",
    "model.safetensors": b"weights",
    "generation_config.json": b"{  }",
}
PARTS = {f"model-0000{n}-of-00002.safetensors": bytes([n]) * 100 for n in (1, 2)}
INDEX = json.dumps({"weight_map": {f"w{n}": f"model-0000{n}-of-00002.safetensors" for n in (1, 2)}}).encode()
SPLIT_IN_TWO = {"config.json": b"{}", "tokenizer.model": b"t", "model.safetensors.index.json": INDEX, **PARTS}
META = {"params.json": b"{}", "tokenizer.model": b"t", "consolidated.00.pth": b"zip", "consolidated.01.pth": b"zip2"}
WITHIN = {f"original/{name}": content for name, content in META.items()} | {"tokenizer_config.json": b"{}"}
BESIDE = {
    "README.md": b"#",
    "pytorch_model.bin": b"x",
    "consolidated.safetensors": b"x",
    "model.fp16.safetensors": b"x",
}


@pytest.mark.parametrize(
    ("needed", "beside"),
    [
        (WHOLE, BESIDE | WITHIN),
        (SPLIT_IN_TWO, BESIDE | WITHIN),
        (META, {"README.md": b"#", "checklist.chk": b"x"}),
        (WITHIN, {"README.md": b"#", "config.json": b"{}"}),
    ],
    ids=["whole", "split", "meta", "original"],
)
def test_a_checkpoint_is_downloaded_as_a_folder(needed: dict[str, bytes], beside: dict[str, bytes], hub: Hub) -> None:
    """Weights, settings and tokeniser; nothing twice and nothing else."""
    beside = {
        name: content for name, content in beside.items() if name not in needed and name != "tokenizer_config.json"
    }
    hub.repos["acme/folder"] = needed | beside
    folder = locate("hub:acme/folder")
    found = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert found == needed
    asked = len(hub.requests)
    assert locate("hub:acme/folder") == locate("acme/folder") == locate("hub:acme/folder", download=False) == folder
    assert len(hub.requests) == asked
    (listed,) = [model for model in local_models() if model.source == "hub"]
    assert (listed.name, listed.path, listed.quantisation) == ("acme/folder", folder, None)
    assert listed.size_bytes >= sum(len(content) for name, content in needed.items() if "00" in name)


def test_a_folder_that_was_cut_off_is_completed(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.file_download.time.sleep", lambda _: None)
    hub.repos["acme/folder"] = dict(SPLIT_IN_TWO)
    first, second = PARTS
    hub.repos["acme/folder"][second] = PARTS[second] * 100
    hub.break_after, hub.breaks_of = 50, second
    hub.breaks = 1000
    with pytest.raises(ProviderError, match=rf"{second} broke off"):
        locate("hub:acme/folder")
    assert [model for model in local_models() if model.source == "hub"] == []
    hub.breaks = 0
    before = len(hub.fetched())
    folder = locate("hub:acme/folder")
    assert sorted(path.name for path in folder.iterdir()) == sorted(SPLIT_IN_TWO)
    assert f"/cdn/acme/folder/{first}" not in [path for path, _ in hub.fetched()[before:]]


def test_an_index_that_names_what_is_not_there(hub: Hub) -> None:
    hub.repos["acme/folder"] = {name: content for name, content in SPLIT_IN_TWO.items() if "00002-of" not in name}
    with pytest.raises(ModelNotFound, match=r"its index names model-00002-of-00002\.safetensors"):
        locate("hub:acme/folder")


def test_a_gated_checkpoint_says_where_to_accept_its_terms(hub: Hub) -> None:
    hub.repos["meta-llama/Llama-3.2-1B"] = WHOLE
    hub.gated.add("meta-llama/Llama-3.2-1B")
    with pytest.raises(ProviderError, match=rf"gated.*{hub.address}/meta-llama/Llama-3\.2-1B.*HF_TOKEN"):
        locate("hub:meta-llama/Llama-3.2-1B")


@pytest.mark.parametrize("name", ["hub:", "hub:justaname", "hub:a/b/c", "hub:a b/c", "hub:a/../b", "hub:acme/x..y"])
def test_impossible_repository_names(hub: Hub, name: str) -> None:
    with pytest.raises(ModelNotFound):
        locate(name)


def test_downloading_can_be_switched_off(hub: Hub) -> None:
    with pytest.raises(ModelNotFound, match="downloading is switched off"):
        locate(f"hub:{REPO}:Q8_0", download=False)
    assert hub.requests == []


def test_downloaded_models_are_listed_with_size_and_quantisation(hub: Hub) -> None:
    locate(f"hub:{REPO}:Q8_0")
    locate(f"hub:{REPO}:Q6_K")
    listed = {m.name: (m.size_bytes, m.quantisation) for m in local_models() if m.source == "hub"}
    assert listed == {f"{REPO}:Q8_0": (len(Q8), "Q8_0"), f"{REPO}:Q6_K": (sum(map(len, SPLIT.values())), "Q6_K")}


def test_newest_commit_of_a_file_counts(hub: Hub) -> None:
    """Two commits of one file in the cache are one model: the one that `main` points to."""
    new = locate(f"hub:{REPO}:Q8_0")
    old = new.parent.parent / ("f" * 40) / new.name
    old.parent.mkdir()
    old.write_bytes(b"GGUF old")
    os.utime(old.parent, (2e9, 2e9))
    assert new.parent.name == COMMIT
    assert locate(f"{REPO}:Q8_0") == new


def test_no_progress_bar_in_a_pipe(hub: Hub) -> None:
    code = f"from llamalab.checkpoints.locate import locate; print(locate('hub:{REPO}:Q8_0').name)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("tiny-Q8_0.gguf\n", "")
