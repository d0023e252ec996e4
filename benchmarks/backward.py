"""The backward pass: the time of gradients, beside PyTorch's and beside that of attention itself.

    python benchmarks/backward.py            # a table, and benchmarks/results/backward-<CPU>-<BLAS kernel>.json
    python benchmarks/backward.py --bias     # with a bias for each pair, whose gradient is asked for, too

Contestants take turns as in cpu.py; figures are medians over rounds. PyTorch's time is that of `backward`
alone, whose forward pass has kept what it needs, as is `cqs.attention_backward`'s.
"""

import argparse
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from cpu import describe_machine, interleaved, name_of

import cqs
from cqs.machine import available_cpus

SHAPES = ((8, 4096, 64), (8, 2048, 128), (8, 2048, 64), (1, 16384, 64))
WORKERS = (1, 7, 31)


def main() -> None:
    """Run the benchmark and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--bias", action="store_true", help="with a bias for each pair, and its gradient")
    options = parser.parse_args()
    torch.set_num_threads(available_cpus())
    machine = describe_machine()
    print(", ".join(f"{name}: {value}" for name, value in machine.items()))
    print("seconds; and as multiples of torch's speed\n")
    rows = []
    for shape in SHAPES:
        for is_causal in (False,) if options.bias else (False, True):  # PyTorch takes a bias or is_causal
            seconds = measured(shape, is_causal, options.rounds, options.bias)
            rows.append({"shape": shape, "is_causal": is_causal, "seconds": seconds})
            name = f"{shape}{', causal' if is_causal else ''}"
            cells = (f"{who} {took:.3f} ({seconds['torch'] / took:.2f})" for who, took in seconds.items())
            print(f"{name:26}" + "  ".join(cells))
    name = name_of("backward-bias" if options.bias else "backward", machine)
    path = Path(__file__).parent / "results" / f"{name}.json"
    path.write_text(json.dumps({"machine": machine, "rows": rows}, indent=1) + "\n")


def measured(shape: tuple[int, int, int], is_causal: bool, rounds: int, has_bias: bool) -> dict[str, float]:
    """Return the median seconds of each contestant."""
    rng = np.random.default_rng(0)
    q, k, v, dout = (rng.standard_normal(shape, dtype=np.float32) for _ in range(4))
    H, N, _ = shape
    bias = rng.standard_normal((H, N, N), dtype=np.float32) if has_bias else None
    options = {"is_causal": is_causal, "bias": bias}
    out, lse = cqs.attention(q, k, v, **options, return_lse=True)
    tensors = [torch.from_numpy(x[None]).requires_grad_() for x in (q, k, v, bias) if x is not None]
    added = tensors[3] if has_bias else None
    result = torch.nn.functional.scaled_dot_product_attention(*tensors[:3], attn_mask=added, is_causal=is_causal)
    upstream = torch.from_numpy(dout[None])
    backward = partial(cqs.attention_backward, dout, q, k, v, out, lse, **options, return_dbias=has_bias)
    contestants: dict[str, Callable[[], object]] = {
        "torch": lambda: torch.autograd.grad(result, tensors, upstream, retain_graph=True),
        "attention alone": lambda: cqs.attention(q, k, v, **options, workers=7),
        "array code, W = 1": partial(backward, kernel="blockwise", workers=1),
        **{f"W = {W}": partial(backward, workers=W) for W in WORKERS},
    }
    return interleaved(contestants, rounds)


if __name__ == "__main__":
    main()
