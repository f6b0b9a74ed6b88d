"""lm-evaluation-harness with transformers in float32, in a process of its own, started by scoring.py.

The shape comes as JSON on standard input; the seconds of each request go to standard output. It imports lm-eval, torch
and transformers and nothing of llamalab.
"""

from __future__ import annotations

import json
import sys
import time


def main() -> None:
    """Score random ids, as a task's requests are scored after tokenising."""
    shape = json.load(sys.stdin)
    import numpy as np
    import torch
    import transformers
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM
    from tokenizers import Tokenizer, models

    torch.set_num_threads(shape["threads"])
    transformers.logging.set_verbosity_error()
    config = transformers.LlamaConfig(
        vocab_size=shape["vocab_size"],
        hidden_size=shape["dim"],
        intermediate_size=shape["ffn_dim"],
        num_hidden_layers=shape["n_layers"],
        num_attention_heads=shape["n_heads"],
        num_key_value_heads=shape["n_kv_heads"],
        head_dim=shape["head_dim"],
        tie_word_embeddings=True,
        max_position_embeddings=2048,
    )
    model = transformers.LlamaForCausalLM(config).eval()
    words = {f"w{i}": i for i in range(shape["vocab_size"])}
    core = Tokenizer(models.WordLevel(words, unk_token="w0"))
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=core, unk_token="w0", eos_token="w1", pad_token="w1", bos_token="w1"
    )
    harness = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=1, device="cpu")
    random = np.random.default_rng(0)
    seconds = []
    for _ in range(shape["rounds"] + 1):
        context = random.integers(2, shape["vocab_size"], shape["prompt"]).tolist()
        answer = random.integers(2, shape["vocab_size"], shape["response"]).tolist()
        begin = time.perf_counter()
        harness._loglikelihood_tokens([(("", ""), context, answer)], disable_tqdm=True)
        seconds.append(time.perf_counter() - begin)
    del Instance
    print(json.dumps({"seconds": seconds[1:]}))


if __name__ == "__main__":
    main()
