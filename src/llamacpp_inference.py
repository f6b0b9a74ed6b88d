"""The module of the course lab "llama.cpp", as `llamalab.lab.course` implements it."""

from llamalab.lab.course import *  # noqa: F403
from llamalab.lab.course import __all__ as __all__
