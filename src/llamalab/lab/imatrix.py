"""Importance matrices as llama.cpp's `llama-imatrix` writes them: how much each input of a matrix matters.

Source: llama.cpp's GGUF format of importance matrices: for each matrix NAME a tensor NAME.in_sum2, the sums of squares
of its inputs [matrices, columns], and NAME.counts, over how many inputs; several matrices where there are experts.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from llamalab.checkpoints.gguf_file import read_gguf_file
from llamalab.checkpoints.stored import FLOAT_TYPES, read_values
from llamalab.errors import ModelFileError

_SUMS, _COUNTS = ".in_sum2", ".counts"


def read_imatrix(path: Path) -> dict[str, np.ndarray[Any, np.dtype[np.float32]]]:
    """Mean square of each input by the name of its matrix, float32, one after the other where there are experts.

    A matrix that saw no input in the calibration text counts every column alike.

    Raises:
        ModelNotFound: no such file.
        ModelFileError: no GGUF, no importance matrix, or a damaged one.
    """
    try:
        file = read_gguf_file(path)
    except ModelFileError as error:
        if path.is_file() and "is not a GGUF file" in str(error):
            raise ModelFileError(
                f"{path} is no importance matrix in GGUF format. Older files (.dat) can be converted by "
                "llama.cpp's llama-imatrix --in-file OLD.dat -o NEW.gguf."
            ) from None
        raise
    found = {}
    for name, sums in file.tensors.items():
        if not name.endswith(_SUMS):
            continue
        matrix = name.removesuffix(_SUMS)
        counts = file.tensors.get(matrix + _COUNTS)
        if counts is None or {sums.dtype, counts.dtype} - set(FLOAT_TYPES):
            raise ModelFileError(f"{path} is damaged: {matrix} has sums without counts, or not as floats.")
        columns = sums.shape[-1]
        totals = read_values(sums).astype(np.float64).reshape(-1, columns)
        inputs = read_values(counts).astype(np.float64).reshape(-1, 1)
        if len(totals) != len(inputs):
            raise ModelFileError(f"{path} is damaged: {matrix} has {len(totals)} rows of sums, {len(inputs)} counts.")
        means = np.where(inputs > 0, totals / np.where(inputs > 0, inputs, 1), 1).astype(np.float32)
        if not (np.isfinite(means).all() and (means >= 0).all()):
            raise ModelFileError(f"{path} is damaged: {matrix} has a mean square that is negative or not finite.")
        found[matrix] = means.reshape(-1)
    if not found:
        raise ModelFileError(f"{path} holds no importance matrix: it has no tensor NAME{_SUMS}.")
    return found
