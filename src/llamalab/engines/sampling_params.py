"""What of `SamplingParams` means something; looked at before anything native is told."""

from __future__ import annotations

import math
from numbers import Integral, Real

from llamalab.engine import SamplingParams
from llamalab.errors import ConfigError

LARGEST_SEED = 2**32 - 2
"""2**32 - 1 is llama.cpp's sign for a random one."""


def penalised(params: SamplingParams) -> bool:
    """Whether any penalty is on."""
    off = params.repeat_penalty == 1 and params.frequency_penalty == 0 and params.presence_penalty == 0
    return not off and params.penalty_last_n != 0


def check_sampling(params: SamplingParams) -> None:
    """Refuse values that mean nothing (llama.cpp would take some of them, or end the process).

    Raises:
        ConfigError: names the field, its value and what it may be.
    """
    _whole("max_tokens", params.max_tokens, least=0, none=True)
    _whole("top_k", params.top_k, least=0)
    _whole("penalty_last_n", params.penalty_last_n, least=-1)
    _whole("seed", params.seed, least=0, most=LARGEST_SEED, none=True)
    _number("temperature", params.temperature, 0, math.inf)
    _number("top_p", params.top_p, 0, 1, positive=True)
    _number("min_p", params.min_p, 0, 1)
    _number("repeat_penalty", params.repeat_penalty, 0, math.inf, positive=True)
    _number("frequency_penalty", params.frequency_penalty, -math.inf, math.inf)
    _number("presence_penalty", params.presence_penalty, -math.inf, math.inf)
    check_stop(params.stop)


def check_stop(stop: object) -> None:
    """Refuse what is no list of stop strings; a single string would be taken for its letters.

    Raises:
        ConfigError: says what was given.
    """
    if not isinstance(stop, list | tuple) or not all(isinstance(each, str) and each for each in stop):
        raise ConfigError(f"stop must be a list of strings that are not empty, not {stop!r}.")


def _whole(name: str, value: object, *, least: int, most: int = 2**31 - 1, none: bool = False) -> None:
    if none and value is None:
        return
    if isinstance(value, bool) or not isinstance(value, Integral) or not least <= int(value) <= most:
        raise ConfigError(f"{name} must be a whole number from {least} to {most}, not {value!r}.")


def _number(name: str, value: object, least: float, most: float, *, positive: bool = False) -> None:
    valid = isinstance(value, Real) and not isinstance(value, bool)
    valid = valid and not (positive and value == 0)
    if valid and math.isfinite(float(value)) and least <= float(value) <= most:  # type: ignore[arg-type]
        return
    bounds = "above 0" if positive else f"at least {least:g}" if least > -math.inf else "finite"
    raise ConfigError(
        f"{name} must be a number, {bounds}{f' and at most {most:g}' if most < math.inf else ''}, not {value!r}."
    )
