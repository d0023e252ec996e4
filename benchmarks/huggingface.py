"""Models of Hugging Face's transformers: time and memory of a forward pass by cqs, and by their own attention.

    python benchmarks/huggingface.py         # a table, and benchmarks/results/huggingface-<CPU>-<BLAS kernel>.json

Models have the shapes of attention of known ones, one layer, and random weights. Each run is a process of its own;
memory is how far its resident set grew during the pass. Needs `pip install transformers` and PyTorch.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

import torch
from cpu import describe_machine, name_of

import cqs
from cqs.machine import available_cpus

LENGTHS = (4096, 8192, 16384)
HEADS = {"hidden_size": 512, "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 64}
SIZES = {"vocab_size": 1000, "intermediate_size": 512, "num_hidden_layers": 1, "pad_token_id": 0, **HEADS}
MODELS = {  # what is particular about their attention
    "llama": {},
    "mistral": {"sliding_window": 2048},
    "gemma2": {"sliding_window": 2048, "attn_logit_softcapping": 50.0, "query_pre_attn_scalar": 64},
    "gpt_oss": {"sliding_window": 128, "num_local_experts": 2, "num_experts_per_tok": 1},
}
CONTESTANTS = {kind: ("eager", "cqs") if kind in ("gemma2", "gpt_oss") else ("eager", "sdpa", "cqs") for kind in MODELS}
MOST_BYTES = 16e9  # of the scores of a layer, of which the models' own code holds about three copies


def main() -> None:
    """Run the benchmark and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--one", nargs=3, help="run one and print it: model, implementation, tokens")
    options = parser.parse_args()
    if options.one:
        kind, how, n = options.one
        print(json.dumps(measured(kind, how, int(n))))
        return
    machine, rows = describe_machine(), []
    print(", ".join(f"{name}: {value}" for name, value in machine.items()))
    for kind in MODELS:
        for n in LENGTHS:
            for how in CONTESTANTS[kind]:
                if how == "eager" and 3 * 4 * HEADS["num_attention_heads"] * n**2 > MOST_BYTES:
                    continue
                command = [sys.executable, __file__, "--one", kind, how, str(n)]
                found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
                rows.append({"model": kind, "by": how, "tokens": n, **found})
                print(f"{kind:8} {n:6} {how:6} {found['seconds']:7.2f} s {found['bytes'] / 2**20:8.0f} MiB", flush=True)
    path = Path(__file__).parent / "results" / f"{name_of('huggingface', machine)}.json"
    path.write_text(json.dumps({"machine": machine, "rows": rows}, indent=1) + "\n")


def measured(kind: str, how: str, n_tokens: int) -> dict[str, float]:
    """Return seconds and bytes of a forward pass, the faster of two."""
    import transformers

    cqs.huggingface.register()
    torch.set_num_threads(available_cpus())
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(kind, **SIZES, max_position_embeddings=n_tokens, **MODELS[kind])
    model = transformers.AutoModel.from_config(config, attn_implementation=how).eval()
    tokens = torch.randint(3, 1000, (1, n_tokens))
    with torch.no_grad():
        model(tokens[:, :256])
        Path("/proc/self/clear_refs").write_text("5")  # forget the peak
        before, seconds = memory("VmRSS"), []
        for _ in range(2):
            start = time.perf_counter()
            model(tokens, use_cache=False)
            seconds.append(time.perf_counter() - start)
    return {"seconds": min(seconds), "bytes": memory("VmHWM") - before}


def memory(what: str) -> int:
    """Return a line of what Linux says of this process, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(what))


if __name__ == "__main__":
    main()
