"""Difference covers: how small, and how long they take to find and to prove.

    python benchmarks/covers.py              # a table, and benchmarks/results/covers.json
    python benchmarks/covers.py --all 20000  # every W from 201: the worst of each range, and what is above its aim

Sizes do not depend on the machine; times do, and are of a first call, with nothing remembered.
"""

import argparse
import json
import subprocess
import sys
import time
from collections import Counter
from math import sqrt
from pathlib import Path

from cqs.quorum import difference_cover

MODULI = [31, 100, 128, 160, 200, 256, 300, 500, 757, 1000, 1024, 2000, 4000, 4096, 8192, 10_000, 10_303, 16_384]
MODULI += [20_000, 32_768, 50_000, 65_536, 100_000, 131_072, 200_000, 262_144, 500_000, 524_288, 995_007, 1_000_000]
# up to which W, and the aim for m / sqrt(W)
AIMS = [(1000, 1.27), (4000, 1.24), (20_000, 1.225), (10**7, 1.20)]


def main() -> None:
    """Run the benchmark and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--all", type=int, metavar="W", help="go through every modulus from 201 to W")
    parser.add_argument("--one", type=int, metavar="W", help="measure one modulus, and print it as JSON")
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(options.one)))
    elif options.all:
        report_all(options.all)
    else:
        report_table()


def measure(W: int) -> dict[str, object]:
    """Find and prove one cover."""
    start = time.perf_counter()
    cover = difference_cover(W)
    found = time.perf_counter()
    cover.certificate.verify()
    values = {"W": W, "bound": cover.lower_bound, "m": cover.size, "ratio": cover.size / sqrt(W)}
    values |= {"find_s": found - start, "prove_s": time.perf_counter() - found}
    return values | {"construction": str(cover.construction), "minimality": cover.minimality.label}


def report_table() -> None:
    """Measure each modulus in a process of its own."""
    print(f"{'W':>8} {'bound':>6} {'m':>5} {'m/sqrt(W)':>9} {'find':>8} {'prove':>8}  construction; minimality")
    rows = []
    for W in MODULI:
        out = subprocess.run([sys.executable, __file__, "--one", str(W)], capture_output=True, text=True, check=True)
        row = json.loads(out.stdout)
        rows.append(row)
        times = f"{row['find_s']:7.3f}s {row['prove_s']:7.3f}s"
        said = f"{row['construction']}; {row['minimality']}"
        print(f"{W:8} {row['bound']:6} {row['m']:5} {row['ratio']:9.4f} {times}  {said}", flush=True)
    path = Path(__file__).parent / "results" / "covers.json"
    path.write_text(json.dumps(rows, indent=1) + "\n")


def report_all(most: int) -> None:
    """Go through every modulus from 201."""
    worst: dict[float, tuple[float, int]] = {}
    above: list[str] = []
    kinds: Counter[str] = Counter()
    for W in range(201, most + 1):
        cover = difference_cover(W)
        aim = next(ratio for up_to, ratio in AIMS if up_to >= W)
        ratio = cover.size / sqrt(W)
        worst[aim] = max(worst.get(aim, (0.0, 0)), (ratio, W))
        kinds[cover.construction.kind] += 1
        if ratio > aim:
            above.append(f"{W} ({cover.size})")
    for aim, (ratio, W) in worst.items():
        print(f"aim {aim}: the worst is {ratio:.4f} at W = {W}")
    print(f"above their aim, {len(above)} of {most - 200}: {', '.join(above)}")
    print(", ".join(f"{kind} {n}" for kind, n in kinds.most_common()))


if __name__ == "__main__":
    main()
