"""`llamalab tokens`: counts, ids, pieces."""

from __future__ import annotations

import json

from tests.cli.conftest import Cli

TEXT = "hello world and the access code"


def test_ids_and_pieces_give_the_text_back(cli: Cli, model: str) -> None:
    document = json.loads(cli("tokens", model, TEXT, "--json").out)
    assert "".join(document["pieces"]) == TEXT
    assert document["n_tokens"] == len(document["ids"]) == len(document["pieces"]) < len(TEXT)
    assert cli("tokens", model, TEXT, "--ids").out.split() == [str(id) for id in document["ids"]]


def test_counts(cli: Cli, model: str) -> None:
    n_tokens = json.loads(cli("tokens", model, TEXT, "--json").out)["n_tokens"]
    assert cli("tokens", model, TEXT).out == f"{n_tokens}\n"
    assert cli("tokens", "-m", model, "-", stdin=TEXT + "\n").out == f"{n_tokens}\n"


def test_pieces_are_told_apart_in_a_pipe(cli: Cli, model: str) -> None:
    pieces = json.loads(cli("tokens", model, TEXT, "--json").out)["pieces"]
    assert cli("tokens", model, TEXT, "--show").out == "|".join(pieces) + "\n"


def test_text_of_a_control_token_is_text_unless_asked_for(cli: Cli, model: str) -> None:
    assert json.loads(cli("tokens", model, "<|end|>", "--json", "--special").out)["pieces"] == ["<|end|>"]
    assert json.loads(cli("tokens", model, "<|end|>", "--json").out)["n_tokens"] > 1


def test_characters_that_take_several_tokens(cli: Cli, model: str) -> None:
    document = json.loads(cli("tokens", model, "日", "--json").out)
    assert document["n_tokens"] == 3


def test_a_folder_gives_the_tokens_of_its_gguf_file(cli: Cli, model: str) -> None:
    """By Hugging Face's tokenizers and by llama.cpp; without weights either way."""
    assert cli("convert", model, "folder", "--to", "safetensors").code == 0
    for text in (TEXT, "日 <|end|>"):
        expected = cli("tokens", model, text, "--ids").out
        assert cli("tokens", "folder", text, "--ids").out == expected
        assert cli("tokens", f"jax:{model}", text, "--ids").out == expected
