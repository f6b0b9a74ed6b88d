"""Every error a user can meet, one class per cause that a user can act on.

A message says what was wrong, where (file, line, field), and what to do. The command line prints it as
one paragraph without a traceback and exits with the class's `exit_code`: 2 for bad input, 1 for a run
that failed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from llamalab.engine import Usage


class LlamalabError(Exception):
    """Anything llamalab refuses or cannot finish."""

    exit_code = 2


class ModelFileError(LlamalabError):
    """A model file that is missing, damaged, or of a kind that cannot be run."""


class ModelNotFound(ModelFileError):
    """No model under that name or path."""


class ConfigError(LlamalabError):
    """A setting or option with a wrong name or value."""


class InputError(LlamalabError):
    """Input text, ids or messages that cannot be used."""


class TokenBoundaryError(LlamalabError):
    """Prompt and response meet inside a token, so there are no tokens that are the response's alone."""


class SchemaError(LlamalabError):
    """A JSON schema or grammar that cannot be compiled."""


class TemplateMissing(LlamalabError):
    """A chat template that is absent where one is needed, unknown, or that does not render."""


class EmptyResponse(InputError):
    """A response without a single token to score."""


class ContextOverflow(LlamalabError):
    """More tokens than the context holds.

    Attributes:
        needed: tokens asked for.
        available: tokens the context holds.
    """

    def __init__(self, message: str, *, needed: int, available: int) -> None:
        super().__init__(message)
        self.needed = needed
        self.available = available


class OutOfMemory(LlamalabError):
    """The model, its context or its buffers do not fit in memory."""


class ProviderError(LlamalabError):
    """A model provider or download source that does not exist, cannot be reached or refuses.

    Attributes:
        status: the HTTP status it refused with; None where there was none.
    """

    def __init__(self, message: str, *, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


class ProviderUnavailable(ProviderError):
    """A provider that does not answer now: down, busy, too slow, broken off, or with something that is no answer.

    The same request may yet succeed, there or elsewhere.

    Attributes:
        retry_after: seconds that the provider asks to wait; None where it does not say.
        sent: the request had been sent, so the provider may charge for it.
        usage: what it charges, where it said so.
    """

    exit_code = 1

    def __init__(
        self,
        message: str,
        *,
        status: int | None = None,
        retry_after: float | None = None,
        sent: bool = True,
        usage: Usage | None = None,
    ) -> None:
        super().__init__(message, status=status)
        self.retry_after = retry_after
        self.sent = sent
        self.usage = usage


class BudgetExceeded(LlamalabError):
    """A run would need more than its budget allows.

    Attributes:
        limit: which one: "max_tokens", "max_cost", "max_seconds", "max_sub_calls", "max_iterations" or "max_depth".
    """

    exit_code = 1

    def __init__(self, message: str, *, limit: str) -> None:
        super().__init__(message)
        self.limit = limit


class StoreError(LlamalabError):
    """A store of results that is damaged, of another kind, or cannot be read or written."""


class EngineError(LlamalabError):
    """The runtime failed while working: its own fault, not the input's."""

    exit_code = 1


class NonFinite(EngineError):
    """A log probability that is no number, or minus infinity where no sampler cuts the distribution."""
