"""Turn trained weights into the GGUF file that llamalab ships.

python -m training.export --out build/pico --to src/llamalab/models/pico.gguf --dtype Q8_0
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import get_args

import numpy as np

from llamalab.checkpoints.gguf import BPEVocabulary, TensorType, write_gguf
from llamalab.llama.weights import LayerWeights, XfmrWeights
from llamalab.templates.builtin import BUILT_IN
from training.tokenizer import SPECIALS, TOKENIZER
from training.train import CONFIG


def main() -> None:
    """Parse and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("build/pico"), help="where training wrote")
    parser.add_argument("--to", type=Path, required=True)
    parser.add_argument("--dtype", choices=get_args(TensorType), default="Q8_0")
    arguments = parser.parse_args()
    write_gguf(
        arguments.to,
        load_weights(arguments.out / "weights.npz"),
        CONFIG,
        load_vocabulary(TOKENIZER),
        name="pico",
        dtype=arguments.dtype,
        chat_template=BUILT_IN["pico"],
        sampling={"temp": 0.0},
        general={
            "author": "The llamalab developers",
            "license": "mit",
            "description": "Demonstration model of llamalab, trained on text made by chance",
        },
    )


def load_weights(path: Path) -> XfmrWeights:
    """The weights that training saved, by name."""
    with np.load(path) as saved:
        layers = tuple(
            LayerWeights(**{name: saved[f"layer_weights.{i}.{name}"] for name in LayerWeights._fields})
            for i in range(CONFIG.n_layers)
        )
        return XfmrWeights(saved["tok_embeddings"], saved["norm"], None, layers)


def load_vocabulary(path: Path) -> BPEVocabulary:
    """The tokeniser as GGUF holds it. GPT-2's cut of a text agrees with ours on every merge we learnt."""
    model = json.loads(path.read_text())["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].__getitem__)
    merges = [" ".join(merge) if isinstance(merge, list) else merge for merge in model["merges"]]
    ids = {token: i for i, token in enumerate(tokens)}
    return BPEVocabulary(
        tokens,
        merges,
        control=frozenset(ids[special] for special in SPECIALS),
        bos_id=None,
        eos_id=ids["<|end|>"],
        pad_id=ids["<|pad|>"],
        pre="gpt-2",
    )


if __name__ == "__main__":
    main()
