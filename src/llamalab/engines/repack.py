"""Whether llama.cpp rearranges the weights for its CPU kernels, which takes a copy of them.

It does by default, and for most types and processors that is faster. The one exception that was measured: on Intel
processors with AVX-512, matrices in Q4_K and Q2_K are read faster as they lie in the file once many rows are multiplied
at a time, as scoring does. [Llama 3.2 1B's shape in Q4_K_M, two cores of an Intel Xeon, llama-cpp-python 0.3.36,
rearranged against not: 304 rows 3.7 and 2.5 s, 64 rows 0.64 and 0.59 s, 1 row 68 and 68 ms; but 8 texts of one row
each 195 and 266 ms. 304 rows of four layers: Q2_K 0.59 and 0.52 s, Q5_K_M 0.47 and 0.50, Q4_0 0.88 and 1.40,
IQ4_NL 0.81 and 1.40, Q8_0 1.10 and 1.25.]

The values differ in their last bits, so scores of both forms have different fingerprints.
"""

from __future__ import annotations

from llamalab.engines.context import on_gpu
from llamalab.engines.gguf_header import Header
from llamalab.engines.machine import instruction_sets, vendor
from llamalab.engines.options import Options

_Q4_0, _Q2_K, _Q4_K, _IQ4_NL = 2, 10, 12, 20  # ggml's numbers


def repacks(header: Header, options: Options, *, scoring: bool) -> bool:
    """Whether weights are to be rearranged: as the options say, or as is faster for generation or for scoring.

    It looks at the file and the processor only: never at the clock, so that scores are the same tomorrow.
    """
    if options.repack != "auto":
        return options.repack
    if not scoring or on_gpu(options) or vendor() != "GenuineIntel" or "avx512_vnni" not in instruction_sets():
        return True
    held = header.tensor_bytes
    return held.get(_Q4_K, 0) + held.get(_Q2_K, 0) <= held.get(_Q4_0, 0) + held.get(_IQ4_NL, 0)
