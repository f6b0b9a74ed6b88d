"""A model that is not there: its header alone, with which memory can be estimated before anything is downloaded."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from llamalab.lab.shapes import Shape
from llamalab.lab.synth import planned_types, write_header
from llamalab.lab.synthetic_vocabulary import made_up_vocabulary


@contextmanager
def shape_file(shape: Shape, type: str) -> Iterator[Path]:
    """A file of that shape and type whose weights are a hole; it is removed at the end of the block.

    Args:
        shape: of the model.
        type: its quantisation, such as "Q4_K_M".

    Raises:
        ConfigError: no such type.
        ModelFileError: the temporary folder cannot hold it.
    """
    with tempfile.TemporaryDirectory(prefix="llamalab-memory-") as folder:
        path = Path(folder) / f"{shape.name}-{type.upper()}.gguf"
        vocabulary = made_up_vocabulary(shape.vocab_size)
        write_header(shape, path, planned_types(shape, type), vocabulary=vocabulary)
        yield path
