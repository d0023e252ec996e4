"""Decoding: one or a few new queries against the keys and values of a long text, beside PyTorch.

    python benchmarks/decoding.py            # a table, and benchmarks/results/decoding-<CPU>-<BLAS kernel>.json

Contestants take turns of one call, in an order by lot; figures are medians over rounds. Keys are read once and used
hardly more: what counts is how fast they come, so the bytes of keys and values a second are shown, too.
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from cpu import describe_machine, interleaved, name_of

import cqs
from cqs.machine import available_cpus

SHAPES = (  # heads, key heads, queries, keys, width
    (8, 8, 1, 16384, 64),
    (8, 8, 1, 65536, 128),
    (32, 8, 1, 65536, 128),
    (32, 8, 4, 65536, 128),
    (1, 1, 1, 1048576, 64),
    (8, 1, 1, 262144, 128),
)
DTYPES = ("float32", "bfloat16")


def main() -> None:
    """Run the benchmark and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=25)
    options = parser.parse_args()
    torch.set_num_threads(available_cpus())
    machine = describe_machine()
    print(", ".join(f"{name}: {value}" for name, value in machine.items()))
    print("milliseconds; in brackets GB/s of keys and values, and as multiples of torch's speed\n")
    rows = []
    for shape in SHAPES:
        for dtype in DTYPES:
            seconds = measured(shape, dtype, options.rounds)
            rows.append({"shape": shape, "dtype": dtype, "seconds": seconds})
            _, G, _, S, D = shape
            n_bytes = 2 * G * S * D * (4 if dtype == "float32" else 2)
            cells = (
                f"{who} {took * 1e3:.2f} ({n_bytes / took / 1e9:.1f}, {seconds['torch'] / took:.2f})"
                for who, took in seconds.items()
            )
            print(f"{f'{shape}, {dtype}':36}" + "  ".join(cells), flush=True)
    path = Path(__file__).parent / "results" / f"{name_of('decoding', machine)}.json"
    path.write_text(json.dumps({"machine": machine, "rows": rows}, indent=1) + "\n")


def measured(shape: tuple[int, int, int, int, int], dtype: str, rounds: int) -> dict[str, float]:
    """Return the median seconds of each contestant."""
    H, G, T, S, D = shape
    rng = np.random.default_rng(0)
    tensors = [
        torch.from_numpy(rng.standard_normal(size, dtype=np.float32)).to(getattr(torch, dtype))
        for size in ((H, T, D), (G, S, D), (G, S, D))
    ]
    batch = [x[None] for x in tensors]

    def by_torch() -> object:
        return torch.nn.functional.scaled_dot_product_attention(*batch, enable_gqa=H != G)

    contestants: dict[str, Callable[[], object]] = {
        "torch": by_torch,
        "cqs": lambda: cqs.attention(*tensors),
        "cqs, one task": lambda: cqs.attention(*tensors, workers=1),
    }
    return interleaved(contestants, rounds, pause=0, calls=1)  # as a model does, which neither rests nor repeats


if __name__ == "__main__":
    main()
