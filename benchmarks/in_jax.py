"""Attention in JAX on the CPU: time and memory of `cqs.jax.attention` and of `jax.nn.dot_product_attention`.

    python benchmarks/in_jax.py         # a table, and benchmarks/results/in_jax-<CPU>-<BLAS kernel>.json

Both are compiled by `jax.jit`, forward alone and with gradients of q, k and v, with float32 inputs of 8 heads of width
64 in the layout that each takes. Each run is a process of its own, which computes for a few tokens to warm up,
compiles, and then computes three times, of which the fastest counts; memory is how far its resident set grew meanwhile.
Needs `pip install jax`.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import jax
from cpu import describe_machine, name_of
from huggingface import memory

import cqs

LENGTHS = (1024, 2048, 4096, 8192)
OPTIONS = {
    "full": {},
    "causal": {"is_causal": True},
    "window": {"is_causal": True, "window": 512},  # each query sees itself and 512 keys before
}
MOST_BYTES = 20e9  # of what JAX's attention is expected to take


def main() -> None:
    """Run the benchmark and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--one", nargs=4, help="run one and print it: by whom, mask, what, tokens")
    options = parser.parse_args()
    if options.one:
        by, mask, what, n = options.one
        print(json.dumps(measured(by, mask, what, int(n))))
        return
    machine, rows = {**describe_machine(), "jax": jax.__version__}, []
    print(", ".join(f"{name}: {value}" for name, value in machine.items()))
    for what in ("forward", "gradients"):
        for mask in OPTIONS:
            for n in LENGTHS:
                for by in ("jax", "cqs"):
                    copies = 3 if what == "forward" else 6  # of all scores
                    if by == "jax" and copies * 4 * 8 * n**2 > MOST_BYTES:
                        continue
                    command = [sys.executable, __file__, "--one", by, mask, what, str(n)]
                    found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
                    rows.append({"by": by, "mask": mask, "what": what, "tokens": n, **found})
                    figures = f"{found['seconds']:8.3f} s {found['bytes'] / 2**20:7.0f} MiB"
                    print(f"{what:9} {mask:7} {n:6} {by:4} {figures}", flush=True)
    path = Path(__file__).parent / "results" / f"{name_of('in_jax', machine)}.json"
    path.write_text(json.dumps({"machine": machine, "rows": rows}, indent=1) + "\n")


def measured(by: str, mask: str, what: str, n_tokens: int) -> dict[str, float]:
    """Return seconds and bytes of one contestant."""

    def inputs_of(n_tokens: int) -> jax.Array:
        shape = (8, n_tokens, 64) if by == "cqs" else (1, n_tokens, 8, 64)
        return jax.block_until_ready(jax.random.normal(jax.random.key(0), (3, *shape)))

    inputs, run = inputs_of(n_tokens), jax.jit(function(by, mask, what))
    jax.block_until_ready(run(*inputs_of(256)))
    run = run.lower(*inputs).compile()
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak
    before, seconds = memory("VmRSS"), []
    for _ in range(3):
        start = time.perf_counter()
        jax.block_until_ready(run(*inputs))
        seconds.append(time.perf_counter() - start)
    return {"seconds": min(seconds), "bytes": memory("VmHWM") - before}


def function(by: str, mask: str, what: str) -> Callable[..., object]:
    """Return what is to be timed."""
    options = dict(OPTIONS[mask])
    window = options.pop("window", None)

    def attend(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        if by == "jax":
            return jax.nn.dot_product_attention(q, k, v, local_window_size=window and (window, 0), **options)
        if window is not None:
            return cqs.jax.attention(q, k, v, mask=cqs.masks.SlidingWindow(window))
        return cqs.jax.attention(q, k, v, **options)

    if what == "forward":
        return attend
    return jax.grad(lambda q, k, v: attend(q, k, v).sum(), argnums=(0, 1, 2))


if __name__ == "__main__":
    main()
