from __future__ import annotations

import json

import pytest

from llamalab.chat import chat_model
from llamalab.rlm import compact, grammar
from llamalab.rlm.bounds import fitting
from llamalab.rlm.compact import COMPACT_PROMPT
from tests.rlm.scripted import Scripted, ask, ops_of, settings, text

SCHEMAS = [
    compact.command_schema(variables=["a"]),
    grammar.turn_schema(variables=["a"]),
    grammar.turn_schema(("final",)),
]


@pytest.mark.parametrize("schema", SCHEMAS)
@pytest.mark.parametrize("tokens", [300, 500, 1000, 1700, 3000, 5000, 9000, 20_000])
def test_no_sentence_of_what_fits_is_longer_and_every_operation_stays(schema: dict[str, object], tokens: int) -> None:
    found = fitting(schema, tokens)
    longest = grammar.longest_sentence(schema)
    assert ops_of(found) == ops_of(schema)
    assert (found == schema) == (longest <= tokens)
    assert grammar.longest_sentence(found) <= tokens


def test_a_schema_that_cannot_be_shortened_stays() -> None:
    typed = grammar.turn_schema(("final",), answer={"type": "string"})
    assert fitting(typed, 300) == typed


def test_a_model_with_no_idea_is_never_cut_off_in_a_command() -> None:
    """Pico does not know the full protocol: what it says there is held by the schema alone."""
    model = chat_model("pico")
    try:
        said = []

        def says(messages: object, schema: object) -> str:
            reply = model.chat(
                [{"role": "system", "content": COMPACT_PROMPT}, {"role": "user", "content": f"turn {len(said)}"}],
                root.params[-1],
                schema=schema,  # type: ignore[arg-type]
            )
            said.append(reply.text)
            return reply.text

        root = Scripted(says, n_ctx=4000)
        answer = ask(root, context=text("one line\n" * 50), config=settings(max_iterations=4))
    finally:
        model.close()
    assert answer.malformed == 0
    for each in said:
        assert json.loads(each)["op"]
