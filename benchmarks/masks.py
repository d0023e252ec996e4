"""Masks: the time of attention under a mask against attention without one, and against the visible area.

    python benchmarks/masks.py               # a table, and benchmarks/results/masks.json
    python benchmarks/masks.py --tokens 8192

Full attention is timed once, each mask `--rounds` times; GFLOP/s count what is visible.
"""

import argparse
import json
import statistics
import time
from pathlib import Path

import numpy as np

import cqs
from cqs.masks import Causal, Documents, Mask, NoMask, PrefixLM, Sinks, SlidingWindow


def main() -> None:
    """Run the benchmark and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=65_536)
    parser.add_argument("--heads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=None)
    options = parser.parse_args()
    N, H = options.tokens, options.heads
    rng = np.random.default_rng(0)
    q, k, v = (rng.standard_normal((H, N, 64), dtype=np.float32) for _ in range(3))
    cuts = np.sort(rng.choice(np.arange(1, N), 63, replace=False))
    lengths = np.diff(cuts, prepend=0, append=N).tolist()
    masks: dict[str, Mask] = {
        "full": NoMask(),
        "causal": Causal(),
        "window 1024": SlidingWindow(1024),
        "window 4096": SlidingWindow(4096),
        "window 1024, 4 sinks": SlidingWindow(1024) | Sinks(4),
        "prefix of a quarter": PrefixLM(N // 4),
        "64 documents": Documents(lengths),
        "64 documents, causal": Documents(lengths) & Causal(),
    }
    cqs.attention(q[:, :9], k[:, :9], v[:, :9])  # what is imported and compiled the first time
    rows = []
    print(f"{H} heads, {N} tokens, width 64")
    print(f"{'mask':24} {'visible':>8} {'seconds':>8} {'of full':>8} {'time/area':>9} {'GFLOP/s':>8}")
    for name, mask in masks.items():
        times = []
        for _ in range(options.rounds if name != "full" else 1):
            start = time.perf_counter()
            cqs.attention(q, k, v, mask=mask, workers=options.workers)
            times.append(time.perf_counter() - start)
        n_visible, seconds = mask.count(range(N), range(N)), statistics.median(times)
        rows.append({"mask": name, "visible": n_visible / N**2, "seconds": seconds})
        of_full = seconds / rows[0]["seconds"]
        gflops = 4 * H * 64 * n_visible / seconds / 1e9
        visible = n_visible / N**2
        print(
            f"{name:24} {visible:8.2%} {seconds:8.3f} {of_full:8.2%} {of_full / visible:9.2f} {gflops:8.0f}", flush=True
        )
    result = {"tokens": N, "heads": H, "rows": rows}
    path = Path(__file__).parent / "results" / "masks.json"
    path.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
