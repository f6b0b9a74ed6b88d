"""Chat templates that can be asked for by name."""

from __future__ import annotations

from collections.abc import Mapping

_ALTERNATE = (
    "{% if (message.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('after the system message, user and assistant must take turns, the user first') }}"
    "{% endif %}"
)
_PHI3 = (
    "{% for message in messages %}{{ '<|' ~ message.role ~ '|>\n' ~ message.content ~ '<|end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)

BUILT_IN: Mapping[str, str] = {
    "llama3": (
        "{{ bos_token }}{% for message in messages %}"
        "{{ '<|start_header_id|>' ~ ('ipython' if message.role == 'tool' else message.role) ~ '<|end_header_id|>\n\n'"
        " ~ message.content | trim ~ '<|eot_id|>' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
    ),
    "llama2": (
        "{% set first = 1 if messages[0].role == 'system' else 0 %}"
        "{% for message in messages[first:] %}" + _ALTERNATE + "{% if message.role == 'user' %}"
        "{% set system = '<<SYS>>\n' ~ messages[0].content ~ '\n<</SYS>>\n\n' if first and loop.first else '' %}"
        "{{ bos_token ~ '[INST] ' ~ (system ~ message.content) | trim ~ ' [/INST]' }}"
        "{% else %}{{ ' ' ~ message.content | trim ~ ' ' ~ eos_token }}{% endif %}{% endfor %}"
    ),
    "chatml": (
        "{% for message in messages %}"
        "{{ '<|im_start|>' ~ message.role ~ '\n' ~ message.content ~ '<|im_end|>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    ),
    "mistral": (
        "{{ bos_token }}{% set first = 1 if messages[0].role == 'system' else 0 %}"
        "{% for message in messages[first:] %}" + _ALTERNATE + "{% if message.role == 'user' %}"
        "{% set system = messages[0].content ~ '\n\n' if first and loop.first else '' %}"
        "{{ '[INST] ' ~ system ~ message.content ~ ' [/INST]' }}"
        "{% else %}{{ ' ' ~ message.content ~ eos_token }}{% endif %}{% endfor %}"
    ),
    "gemma": (
        "{{ bos_token }}{% set first = 1 if messages[0].role == 'system' else 0 %}"
        "{% for message in messages[first:] %}"
        + _ALTERNATE
        + "{% set system = messages[0].content ~ '\n\n' if first and loop.first else '' %}"
        "{{ '<start_of_turn>' ~ ('model' if message.role == 'assistant' else message.role) ~ '\n'"
        " ~ system ~ message.content | trim ~ '<end_of_turn>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
    ),
    "phi3": _PHI3,
    "pico": _PHI3,
    "plain": (
        "{% for message in messages %}"
        "{% if message.role == 'system' %}{{ message.content ~ '\n\n' }}"
        "{% else %}{{ message.role | capitalize ~ ': ' ~ message.content ~ '\n' }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}Assistant:{% endif %}"
    ),
}
"""Templates that can be asked for by name."""
