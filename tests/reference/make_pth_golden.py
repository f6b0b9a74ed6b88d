"""Write tests/golden/pth: small files as `torch.save` makes them, and what is in them.

    python tests/reference/make_pth_golden.py

Needs PyTorch and llama-models: the shards are cut, and put together again, by Meta's own code. The values beside each
file (`NAME.npz`) are those that `torch.load` gives, bfloat16 as its bits.
"""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path

import numpy as np
import torch
from llama_models.checkpoint import reshard_mp

GOLDEN = Path(__file__).parent.parent / "golden" / "pth"


def main() -> None:
    GOLDEN.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    base = torch.randn(6, 8)
    save("types", {"bf16": torch.randn(3, 5).bfloat16(), "f16": torch.randn(5).half(), "f32": torch.randn(2, 2, 3)})
    views = {
        "whole": base,
        "same": base,
        "rows": base[2:4],
        "columns": base[:, 3:5],
        "turned": base.t(),
        "one": base[1, 2],
    }
    save("views", {**views, "wide": torch.randn(3).bfloat16().expand(2, 3)})
    save("module", torch.nn.Linear(4, 3).state_dict())
    save("parameters", OrderedDict(weight=torch.nn.Parameter(torch.randn(2, 3))))
    save("big_endian", {"f32": base, "bf16": base.bfloat16()}, swap=True)
    torch.save({"w": base}, GOLDEN / "old.pth", _use_new_zipfile_serialization=False)
    torch.save({"w": base, "step": 3}, GOLDEN / "training.pth")
    torch.save(torch.nn.Linear(2, 2), GOLDEN / "class.pth")
    torch.save({"w": base.to(torch.float8_e4m3fn)}, GOLDEN / "float8.pth")
    shards()


def shards(dim: int = 8, ffn: int = 12, vocab: int = 10, kv: int = 4) -> None:
    """One layer in two shards, as Llama 3 is cut."""
    shapes = {
        "tok_embeddings.weight": (vocab, dim),
        "layers.0.attention.wq.weight": (dim, dim),
        "layers.0.attention.wk.weight": (kv, dim),
        "layers.0.attention.wv.weight": (kv, dim),
        "layers.0.attention.wo.weight": (dim, dim),
        "layers.0.feed_forward.w1.weight": (ffn, dim),
        "layers.0.feed_forward.w2.weight": (dim, ffn),
        "layers.0.feed_forward.w3.weight": (ffn, dim),
        "layers.0.attention_norm.weight": (dim,),
        "layers.0.ffn_norm.weight": (dim,),
        "norm.weight": (dim,),
        "output.weight": (vocab, dim),
    }
    whole = {name: torch.randn(shape).bfloat16() for name, shape in shapes.items()}
    parts = [reshard_mp([whole], size=2, rank=rank) for rank in range(2)]
    joined = reshard_mp(parts, size=1, rank=0)
    assert all(torch.equal(joined[name], whole[name]) for name in shapes)
    for rank, part in enumerate(parts):
        torch.save({name: part[name] for name in shapes}, GOLDEN / f"consolidated.{rank:02d}.pth")
    np.savez(GOLDEN / "joined.npz", **{name: bits(joined[name]) for name in shapes})


def save(name: str, tensors: dict[str, torch.Tensor], *, swap: bool = False) -> None:
    path = GOLDEN / f"{name}.pth"
    torch.save(tensors, path)
    if swap:
        turn_around(path)
    loaded = torch.load(path, weights_only=True)
    np.savez(path.with_suffix(".npz"), **{key: bits(value.detach()) for key, value in loaded.items()})


def bits(tensor: torch.Tensor) -> np.ndarray:
    """As NumPy has it; bfloat16, which it has not, as 16 bits."""
    return tensor.view(torch.int16).numpy().view(np.uint16) if tensor.dtype == torch.bfloat16 else tensor.numpy()


def turn_around(path: Path) -> None:
    """As a machine of the other byte order would have written it; `torch.load` reads the mark `byteorder`."""
    reader = torch._C.PyTorchFileReader(str(path))
    records = {name: reader.get_record(name) for name in reader.get_all_records()}
    tensors = torch.load(path, weights_only=True)
    keys = dict(zip(tensors, sorted(name for name in records if name.startswith("data/")), strict=True))
    for name, key in keys.items():
        records[key] = np.frombuffer(records[key], f"u{tensors[name].itemsize}").byteswap().tobytes()
    records["byteorder"] = b"big"
    writer = torch._C.PyTorchFileWriter(str(path))
    for name, content in records.items():
        if name not in {"version", ".data/serialization_id"}:
            writer.write_record(name, content, len(content))
    writer.write_end_of_file()


if __name__ == "__main__":
    main()
