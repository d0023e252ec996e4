"""Changed scores: the time of attention with a soft cap, biases, a function, and scores that differ much.

    python benchmarks/scores.py              # a table, and benchmarks/results/scores-<CPU>-<BLAS kernel>.json

Contestants are the kernel that cqs takes by itself, its NumPy kernel, and torch where it is installed and has the like
(a bias, scores that differ much). They take turns as in cpu.py; figures are medians over rounds.
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from cpu import describe_machine, interleaved, name_of

import cqs
from cqs.machine import available_cpus
from cqs.scores import ALiBi


def main() -> None:
    """Run the benchmark and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--heads", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    N, H = options.tokens, options.heads
    rng = np.random.default_rng(0)
    q, k, v = (rng.standard_normal((H, N, 64), dtype=np.float32) for _ in range(3))
    bias = rng.standard_normal((H, N, N), dtype=np.float32)
    cases: dict[str, dict[str, Any]] = {
        "as they are": {},
        "32 times as large": {"scale": 4.0},
        "softcap": {"softcap": 30.0},
        "ALiBi": {"bias": ALiBi.standard(H)},
        "bias, one for all heads": {"bias": bias[:1]},
        "bias, one for each head": {"bias": bias},
        "score_mod": {"score_mod": lambda score, b, h, q_idx, k_idx: score * 2},
    }
    contestants = {
        (name, who): run for name, case in cases.items() for who, run in contestants_of(case, q, k, v).items()
    }
    seconds = interleaved(contestants, options.rounds)
    rows = [{"scores": name, "who": who, "seconds": took} for (name, who), took in seconds.items()]
    machine = describe_machine()
    print(", ".join(f"{name}: {value}" for name, value in machine.items()))
    print(f"{H} heads, {N} tokens, width 64; seconds\n")
    print(f"{'scores':24}" + "".join(f"{who:>10}" for who in ("cqs", "numpy", "torch")))
    for name in cases:
        cells = (f"{seconds[name, who]:10.3f}" if (name, who) in seconds else "" for who in ("cqs", "numpy", "torch"))
        print(f"{name:24}" + "".join(cells))
    result = {"machine": machine, "heads": H, "tokens": N, "rows": rows}
    path = Path(__file__).parent / "results" / f"{name_of('scores', machine)}.json"
    path.write_text(json.dumps(result, indent=1) + "\n")


def contestants_of(
    case: dict[str, Any], q: np.ndarray, k: np.ndarray, v: np.ndarray
) -> dict[str, Callable[[], object]]:
    """Return who computes one case."""
    found: dict[str, Callable[[], object]] = {
        "cqs": lambda: cqs.attention(q, k, v, workers=1, **case),
        "numpy": lambda: cqs.attention(q, k, v, workers=1, kernel="numpy", **case),
    }
    try:
        import torch
    except ImportError:
        return found
    bias = case.get("bias")
    if case.keys() <= {"scale", "bias"} and not isinstance(bias, ALiBi):
        torch.set_num_threads(available_cpus())
        tensors = [torch.from_numpy(x[None]) for x in (q, k, v)]
        added = None if bias is None else torch.from_numpy(bias[None])
        attend = torch.nn.functional.scaled_dot_product_attention
        found["torch"] = lambda: attend(*tensors, attn_mask=added, scale=case.get("scale"))
    return found


if __name__ == "__main__":
    main()
