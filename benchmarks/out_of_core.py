"""Inputs larger than memory: time and memory under a budget, from `.npy` and Zarr, against the same in memory.

    python benchmarks/out_of_core.py                  # a table, benchmarks/results/out_of_core.json, and a picture
    python benchmarks/out_of_core.py --tokens 32768   # quickly

One head of width 64, float32, causal. Every run is a process of its own. Its memory is how far its resident set grew
above what it was after a small call, which loads all modules; the files have been written, so they are in the system's
page cache, which is not counted. Times are ratios to the median of the runs in memory, which are spread among the
others. The last lines fit time and memory, at one budget, to powers of the number of tokens.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from cpu import describe_machine

D, MIB = 64, 1 << 20
BUDGETS = (16, 64, 256)
SWEEP_BUDGET = 64
LIMIT_TIME, LIMIT_RSS = 1.15, 64  # times the time in memory, at 64 MiB; MiB beyond the budget

CHILD = """
import json, sys, time
from pathlib import Path
import numpy as np
import cqs

def status(name):
    line = next(line for line in open("/proc/self/status") if line.startswith(name))
    return int(line.split()[1]) * 1024

folder, form, memory, strategy, out = sys.argv[1:]
small = np.zeros((1, 64, 64), np.float32)
names = [Path(folder) / f"{name}.{'npy' if form == 'memory' else form}" for name in "qkv"]
options = {"is_causal": True, "strategy": strategy}
if form == "memory":
    q, k, v = map(np.load, names)
    cqs.attention(small, small, small, **options)
else:
    for path, name in zip(names, "qkv"):
        (np.save(f"{out}-{name}.npy", small) if form == "npy" else None)
    q, k, v = map(str, names)
    options |= {"memory": int(memory), "out": out}
    warm = [f"{out}-{name}.npy" for name in "qkv"] if form == "npy" else [small] * 3
    cqs.attention(*warm, **(options | {"out": f"{out}-warm.npy"}))
    if form == "zarr":
        import zarr
        zarr.open_array(q, mode="r")[0, :1]
Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
before = status("VmRSS")
start = time.perf_counter()
result = cqs.attention(q, k, v, **options)
seconds = time.perf_counter() - start
rows = np.asarray(result[0, [0, 1, len(result[0]) // 2, -1]], np.float64).tolist()
print(json.dumps({"seconds": seconds, "grown": status("VmHWM") - before, "rows": rows}))
"""


def main() -> None:
    """Run the benchmark and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=262144)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "out_of_core.json")
    parser.add_argument("--picture", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=".") as name:
        folder = Path(name)
        rows = budgets(folder, options.tokens)
        largest = [row for row in rows if (row["form"], row["mib"]) == ("npy", SWEEP_BUDGET)]
        swept = sweep(folder, options.tokens) + [row | {"tokens": options.tokens} for row in largest]
    result = {"machine": describe_machine(), "tokens": options.tokens, "rows": rows, "sweep": swept}
    result["exponents"] = {strategy: exponents(swept, strategy) for strategy in ("cqs", "tiles")}
    report(result)
    options.out.write_text(json.dumps(result, indent=1) + "\n")
    if options.picture:
        draw(swept, options.picture)


def make_inputs(folder: Path, N: int) -> Path:
    """Write q, k and v of N tokens, as `.npy` and as Zarr."""
    import zarr

    folder = folder / str(N)
    folder.mkdir()
    rng = np.random.default_rng(0)
    for name in "qkv":
        array = rng.standard_normal((1, N, D), dtype=np.float32)
        np.save(folder / f"{name}.npy", array)
        zarr.create_array(folder / f"{name}.zarr", data=array, chunks=(1, min(2048, N), D), compressors=None)
    return folder


def run(folder: Path, form: str, mib: int, strategy: str) -> dict[str, Any]:
    """Run one call in a process of its own."""
    out = folder / "out.npy"
    command = [sys.executable, "-c", CHILD, str(folder), form, str(mib * MIB), strategy, str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr)
    found = json.loads(done.stdout)
    print(f"{form:7} {mib:4} MiB {strategy:5} {found['seconds']:7.1f} s, grown by {found['grown'] / MIB:6.1f} MiB")
    return {"form": form, "mib": mib, "strategy": strategy} | found


def budgets(folder: Path, N: int) -> list[dict[str, Any]]:
    """Run every form, budget and strategy, and the same in memory before, between and after."""
    folder = make_inputs(folder, N)
    rows = []
    for form in ("npy", "zarr"):
        rows.append(run(folder, "memory", 0, "auto"))
        rows += [run(folder, form, mib, strategy) for mib in BUDGETS for strategy in ("cqs", "tiles")]
    rows.append(run(folder, "memory", 0, "auto"))
    in_memory = statistics.median(row["seconds"] for row in rows if row["form"] == "memory")
    exact = rows[0]["rows"]
    for row in rows:
        row["ratio"] = row["seconds"] / in_memory
        row["largest_difference"] = float(abs(np.array(row.pop("rows")) - exact).max())
    return rows


def sweep(folder: Path, most: int) -> list[dict[str, Any]]:
    """Run both strategies under one budget for numbers of tokens that grow to half of the most."""
    rows = []
    for N in [most >> shift for shift in range(4, 0, -1)]:
        here = make_inputs(folder, N)
        for strategy in ("cqs", "tiles"):
            found = run(here, "npy", SWEEP_BUDGET, strategy)
            found.pop("rows")
            rows.append(found | {"tokens": N})
    return rows


def exponents(rows: list[dict[str, Any]], strategy: str) -> dict[str, float]:
    """Fit time and memory to powers of the number of tokens, over the larger half of them."""
    own = [row for row in rows if row["strategy"] == strategy][-3:]
    logs = {name: np.log([row[name] for row in own]) for name in ("tokens", "seconds", "grown")}
    return {name: float(np.polyfit(logs["tokens"], logs[name], 1)[0]) for name in ("seconds", "grown")}


def report(result: dict[str, Any]) -> None:
    """Print a table, and what was to be reached."""
    print(f"\nN = {result['tokens']:,}, one head of width {D}, float32, causal; {result['machine']['cpu']}")
    print(f"{'':7} {'budget':>9} {'':5} {'time':>8} {'ratio':>6} {'grown':>11}")
    for row in result["rows"]:
        budget = f"{row['mib']} MiB" if row["mib"] else "none"
        grown = f"{row['grown'] / MIB:.1f} MiB"
        figures = f"{row['seconds']:6.1f} s {row['ratio']:6.2f} {grown:>11}"
        print(f"{row['form']:7} {budget:>9} {row['strategy']:5} {figures}{missed(row)}")
    for strategy, found in result["exponents"].items():
        print(f"{strategy}: time ~ N^{found['seconds']:.2f}, memory ~ N^{found['grown']:.2f} at {SWEEP_BUDGET} MiB")


def missed(row: dict[str, Any]) -> str:
    """Say which limit a row misses."""
    if row["form"] == "memory":
        return ""
    slow = row["mib"] == 64 and row["ratio"] > LIMIT_TIME
    large = row["grown"] > (row["mib"] + LIMIT_RSS) * MIB
    return (
        f"{'  slower than ' + str(LIMIT_TIME) if slow else ''}{'  larger than the budget and 64 MiB' if large else ''}"
    )


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Draw time and memory against tokens."""
    import matplotlib as mpl

    mpl.use("agg")
    from matplotlib.figure import Figure

    from cqs import plot

    left, right = Figure(figsize=(9, 3.6), layout="constrained").subplots(1, 2)
    for draws, name, ax in ((plot.time_against_tokens, "seconds", left), (plot.memory_against_tokens, "grown", right)):
        series = {}
        for strategy in ("cqs", "tiles"):
            own = [row for row in rows if row["strategy"] == strategy]
            series[strategy] = [row["tokens"] for row in own], [row[name] for row in own]
        draws(series, ax=ax)
    right.axhline(SWEEP_BUDGET * MIB, color="black", lw=1.0, ls="--", label="budget")
    right.legend()
    left.figure.savefig(path)


if __name__ == "__main__":
    main()
