"""A laboratory for local language models.

    import llamalab

    with contextlib.closing(llamalab.chat_model("pico")) as model:
        print(model.chat([{"role": "user", "content": "Repeat after me: blue harbor"}]).text)

`load` gives an `Engine` (token ids in, token ids and log probabilities out), `chat_model` a `ChatModel` (messages in,
text out), `TeacherForcing` the log probability of a response, `locate` the file behind a model's name, `rlm.ask` an
answer over texts of any length. Importing this package loads no runtime: that happens on first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from llamalab import rlm as rlm
    from llamalab.chat import chat_model as chat_model
    from llamalab.checkpoints.locate import locate as locate
    from llamalab.engine import (
        ChatInfo,
        ChatModel,
        Delta,
        Engine,
        GenerateRequest,
        Generation,
        ModelInfo,
        Reply,
        SamplingParams,
        Token,
        TokenLogprob,
    )
    from llamalab.engines import load as load
    from llamalab.errors import (
        BudgetExceeded,
        ConfigError,
        ContextOverflow,
        EmptyResponse,
        EngineError,
        InputError,
        LlamalabError,
        ModelFileError,
        ModelNotFound,
        NonFinite,
        OutOfMemory,
        ProviderError,
        ProviderUnavailable,
        SchemaError,
        StoreError,
        TemplateMissing,
        TokenBoundaryError,
    )
    from llamalab.scored import Decoding as Decoding
    from llamalab.scored import Scored as Scored
    from llamalab.scored import ScoreRequest as ScoreRequest
    from llamalab.scoring.teacher_forcing import RobustTeacherForcing as RobustTeacherForcing
    from llamalab.scoring.teacher_forcing import TeacherForcing as TeacherForcing

_HOME = {
    "chat_model": "llamalab.chat",
    "load": "llamalab.engines",
    "locate": "llamalab.checkpoints.locate",
    "RobustTeacherForcing": "llamalab.scoring.teacher_forcing",
    "TeacherForcing": "llamalab.scoring.teacher_forcing",
    "ChatInfo": "llamalab.engine",
    "ChatModel": "llamalab.engine",
    "Decoding": "llamalab.scored",
    "Delta": "llamalab.engine",
    "Engine": "llamalab.engine",
    "GenerateRequest": "llamalab.engine",
    "Generation": "llamalab.engine",
    "ModelInfo": "llamalab.engine",
    "Reply": "llamalab.engine",
    "SamplingParams": "llamalab.engine",
    "ScoreRequest": "llamalab.scored",
    "Scored": "llamalab.scored",
    "Token": "llamalab.engine",
    "TokenLogprob": "llamalab.engine",
    "BudgetExceeded": "llamalab.errors",
    "ConfigError": "llamalab.errors",
    "ContextOverflow": "llamalab.errors",
    "EmptyResponse": "llamalab.errors",
    "EngineError": "llamalab.errors",
    "InputError": "llamalab.errors",
    "LlamalabError": "llamalab.errors",
    "ModelFileError": "llamalab.errors",
    "ModelNotFound": "llamalab.errors",
    "NonFinite": "llamalab.errors",
    "OutOfMemory": "llamalab.errors",
    "ProviderError": "llamalab.errors",
    "ProviderUnavailable": "llamalab.errors",
    "SchemaError": "llamalab.errors",
    "StoreError": "llamalab.errors",
    "TemplateMissing": "llamalab.errors",
    "TokenBoundaryError": "llamalab.errors",
    "rlm": "llamalab.rlm",
}

__all__ = [
    "BudgetExceeded",
    "ChatInfo",
    "ChatModel",
    "ConfigError",
    "ContextOverflow",
    "Decoding",
    "Delta",
    "EmptyResponse",
    "Engine",
    "EngineError",
    "GenerateRequest",
    "Generation",
    "InputError",
    "LlamalabError",
    "ModelFileError",
    "ModelInfo",
    "ModelNotFound",
    "NonFinite",
    "OutOfMemory",
    "ProviderError",
    "ProviderUnavailable",
    "Reply",
    "RobustTeacherForcing",
    "SamplingParams",
    "SchemaError",
    "ScoreRequest",
    "Scored",
    "StoreError",
    "TeacherForcing",
    "TemplateMissing",
    "Token",
    "TokenBoundaryError",
    "TokenLogprob",
    "chat_model",
    "load",
    "locate",
    "rlm",
]


def __getattr__(name: str) -> Any:
    """Import a public name from its module on first use."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = importlib.import_module(_HOME[name])
    value = module if module.__name__ == f"{__name__}.{name}" else getattr(module, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
