"""Speed on the CPU: cqs for several worker counts, against torch's attention, the plain formula, and SGEMM.

    python benchmarks/cpu.py                 # a table, and benchmarks/results/cpu-<CPU>-<BLAS kernel>.json
    OPENBLAS_CORETYPE=SkylakeX python benchmarks/cpu.py
    python benchmarks/cpu.py --quick         # one shape, few repeats
    python benchmarks/cpu.py --dtype bfloat16

Every contestant has its turn in each round, so that a machine whose speed drifts slows all of them, in an order by lot,
so that none always follows the same one, and after a pause, because the threads of OpenBLAS and OpenMP spin for a while
when a product is done and would hold up whoever is next. A turn is two calls: the first finds CPUs that slept and
caches of others; the second is what is compared, since in a model layer follows layer. Both are kept, as medians over
rounds. GFLOP/s count 4 H N^2 D operations, half for causal.
"""

import argparse
import json
import platform
import random
import re
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import ml_dtypes
import numpy as np

import cqs
from cqs.backend import blas_libraries
from cqs.kernels.numba_modules import compiled, missing
from cqs.machine import available_cpus

SHAPES = [(8, 8192, 64), (8, 4096, 128), (8, 2048, 64), (1, 16384, 64)]
WORKERS = [1, 7, 13, 31, 57]
PAUSE = 0.2  # seconds

Key = TypeVar("Key")


def main() -> None:
    """Run the benchmark and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--dtype", choices=["float32", "float16", "bfloat16"], default="float32")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    shapes, rounds = ([(8, 2048, 64)], 3) if options.quick else (SHAPES, options.rounds)
    machine = describe_machine()
    rows = [row for shape in shapes for row in measure_shape(*shape, rounds, options.dtype)]
    result = {"machine": machine, "call_at_n_128_ms": 1e3 * small_call(), "rows": rows}
    is_aimed = options.dtype == "float32"
    result["targets"] = targets(rows, result["call_at_n_128_ms"], machine["is_avx512"]) if is_aimed else []
    report(result)
    benchmark = "cpu" if is_aimed else f"cpu-{options.dtype}"
    path = options.out or Path(__file__).parent / "results" / f"{name_of(benchmark, machine)}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n")


def name_of(benchmark: str, machine: dict[str, Any]) -> str:
    """Return what the results of a machine are filed under, such as cpu-amd-epyc-haswell."""
    model = re.sub(r"\(r\)|\(tm\)|\bprocessor\b|\bcpu\b|@.*", "", machine["cpu"].lower())
    amx = ["amx"] if machine["amx"] else []
    return "-".join([benchmark, *re.findall(r"[a-z0-9]+", model), machine["blas_kernel"].lower(), *amx])


def describe_machine() -> dict[str, Any]:
    """Return what a reader needs to compare figures."""
    np.ones((2, 2)) @ np.ones((2, 2))
    x = np.zeros((1, 1, 1), np.float32)
    blas, loops = blas_libraries()[0], None if missing() else compiled("loops")
    model = [line for line in _lines("/proc/cpuinfo") if line.startswith("model name")]
    return {
        "cpu": model[0].partition(":")[2].strip() if model else platform.processor(),
        "threads": available_cpus(),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "blas": f"{blas.name} {blas.version}",
        "blas_kernel": blas.architecture,
        "is_avx512": blas.architecture in ("SkylakeX", "Cooperlake", "Sapphirerapids"),
        "amx": loops is not None and loops.has_amx(),
        "torch": _torch().__version__ if _torch() else None,
        "kernel": cqs.plan(x, x, x).setting.kernel,
    }


def measure_shape(H: int, N: int, D: int, rounds: int, dtype: str) -> list[dict[str, Any]]:
    """Time every contestant on one shape, full and causal; NumPy by itself in float32 only."""
    rng, own = np.random.default_rng(0), getattr(ml_dtypes, dtype, dtype)
    q, k, v = (rng.standard_normal((H, N, D), dtype=np.float32).astype(own) for _ in range(3))
    square = rng.standard_normal((3072, 3072), dtype=np.float32)
    contestants: dict[tuple[str, bool], tuple[Callable[[], object], float]] = {
        ("sgemm", False): (lambda: square @ square, 2 * 3072**3)
    }
    for is_causal in (False, True):
        flops = 4 * H * N * N * D / (2 if is_causal else 1)
        for W in WORKERS:
            run = lambda W=W, c=is_causal: cqs.attention(q, k, v, workers=W, is_causal=c)  # noqa: E731
            contestants[f"cqs W={W}", is_causal] = run, flops
        if _torch():
            contestants["torch", is_causal] = torch_attention(q, k, v, is_causal), flops
        if dtype != "float32":
            continue
        run = lambda c=is_causal: cqs.attention(q, k, v, workers=1, is_causal=c, kernel="numpy")  # noqa: E731
        contestants["cqs W=1 by numpy", is_causal] = run, flops
        contestants["plain NumPy", is_causal] = (lambda c=is_causal: plain(q, k, v, c)), flops
    medians = medians_of_turns({key: run for key, (run, _) in contestants.items()}, rounds)
    rows = []
    for (name, is_causal), (_, flops) in contestants.items():
        after_pause, seconds = medians[name, is_causal]
        rows.append(
            {
                "H": H,
                "N": N,
                "D": D,
                "name": name,
                "is_causal": is_causal,
                "seconds": seconds,
                "gflops": flops / seconds / 1e9,
                "tokens_per_s": N / seconds,
                "seconds_after_a_pause": after_pause,
            }
        )
    return rows


def interleaved(
    contestants: dict[Key, Callable[[], object]], rounds: int, pause: float = PAUSE, calls: int = 2
) -> dict[Key, float]:
    """Return the median seconds of each contestant's last call in a turn."""
    return {key: found[-1] for key, found in medians_of_turns(contestants, rounds, pause, calls).items()}


def medians_of_turns(
    contestants: dict[Key, Callable[[], object]], rounds: int, pause: float = PAUSE, calls: int = 2
) -> dict[Key, list[float]]:
    """Give each a turn of some calls in each round, in an order by lot; return the median seconds of each of these.

    The first round does not count.
    """
    times: dict[Key, list[list[float]]] = {key: [[] for _ in range(calls)] for key in contestants}
    lot = random.Random(0)
    for _ in range(rounds + 1):
        for key in lot.sample(list(contestants), len(contestants)):
            time.sleep(pause)
            for found in times[key]:
                start = time.perf_counter()
                contestants[key]()
                found.append(time.perf_counter() - start)
    return {key: [statistics.median(found[1:]) for found in turns] for key, turns in times.items()}


def plain(q: np.ndarray, k: np.ndarray, v: np.ndarray, is_causal: bool) -> np.ndarray:
    """Compute the formula, one head at a time."""
    N, D = q.shape[-2:]
    out = np.empty_like(q)
    for h in range(len(q)):
        scores = q[h] @ k[h].T * np.float32(D**-0.5)
        if is_causal:
            scores[np.arange(N)[:, None] < np.arange(N)] = -np.inf
        scores -= scores.max(axis=-1, keepdims=True)
        np.exp(scores, out=scores)
        out[h] = (scores @ v[h]) / scores.sum(axis=-1, keepdims=True)
    return out


def torch_attention(q: np.ndarray, k: np.ndarray, v: np.ndarray, is_causal: bool) -> Callable[[], object]:
    """Return torch's attention over the same numbers, on as many threads."""
    torch = _torch()
    torch.set_num_threads(available_cpus())
    tensors = [torch.from_numpy(x[None].astype(np.float32)).to(getattr(torch, q.dtype.name)) for x in (q, k, v)]
    return lambda: torch.nn.functional.scaled_dot_product_attention(*tensors, is_causal=is_causal)


def small_call() -> float:
    """Return the median time of a call at (8, 128, 64)."""
    q = np.random.default_rng(0).standard_normal((8, 128, 64), dtype=np.float32)
    times = []
    for _ in range(200):
        start = time.perf_counter()
        cqs.attention(q, q, q)
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def targets(rows: list[dict[str, Any]], small_ms: float, is_avx512: bool) -> list[dict[str, Any]]:
    """Compare ratios within the run with what was aimed for."""
    seconds = {(r["H"], r["N"], r["D"], r["name"], r["is_causal"]): r["seconds"] for r in rows}
    gflops = {(r["H"], r["N"], r["D"], r["name"], r["is_causal"]): r["gflops"] for r in rows}
    found = [{"what": "call at (8, 128, 64), ms", "got": small_ms, "aim": 1.0, "met": small_ms < 1.0}]

    def add(what: str, got: float, aim: float, at_least: bool) -> None:
        found.append({"what": what, "got": got, "aim": aim, "met": got >= aim if at_least else got <= aim})

    for H, N, D in dict.fromkeys((r["H"], r["N"], r["D"]) for r in rows):
        where = f"({H}, {N}, {D})"
        own = seconds[H, N, D, "cqs W=1", False]
        if (H, N, D, "torch", False) in seconds:
            aim = {64: (0.95, 1.6), 128: (1.1, 2.0)}[D][is_avx512]
            add(f"{where} times torch", seconds[H, N, D, "torch", False] / own, aim, at_least=True)
        rate = gflops[H, N, D, "cqs W=1", False] / gflops[H, N, D, "sgemm", False]
        add(f"{where} of SGEMM", rate, {64: 0.65, 128: 0.75}[D], at_least=True)
        for W in WORKERS:
            full, causal = (seconds[H, N, D, f"cqs W={W}", c] for c in (False, True))
            add(f"{where} W={W}: causal of full", causal / full, 0.6, at_least=False)
            if W > 1 and (N >= 8192 or N == 2048):
                add(f"{where} W={W} of W=1", full / own, 1.10 if N >= 8192 else 1.3, at_least=False)
    return found


def report(result: dict[str, Any]) -> None:
    """Print tables."""
    print(", ".join(f"{name}: {value}" for name, value in result["machine"].items()))
    print(f"\n{'H':>3} {'N':>6} {'D':>4}  {'':16} {'full':>18} {'causal':>18} {'full, after a pause':>20}")
    by = {(r["H"], r["N"], r["D"], r["name"], r["is_causal"]): r for r in result["rows"]}
    for (H, N, D, name, is_causal), row in by.items():
        if not is_causal:
            both = [row, by.get((H, N, D, name, True))]
            cells = [f"{r['seconds']:8.3f} s {r['gflops']:4.0f} G/s" if r else "" for r in both]
            slow = f"{row['seconds_after_a_pause']:.3f} s"
            print(f"{H:3} {N:6} {D:4}  {name:16} {cells[0]:>18} {cells[1]:>18} {slow:>20}")
    print(f"\n{'aim':40} {'got':>7} {'wanted':>7}")
    for t in result["targets"]:
        print(f"{t['what']:40} {t['got']:7.2f} {t['aim']:7.2f} {'' if t['met'] else '  missed'}")


def _lines(path: str) -> list[str]:
    return Path(path).read_text().splitlines() if Path(path).exists() else []


def _torch() -> Any:
    try:
        import torch
    except ImportError:
        return None
    return torch


if __name__ == "__main__":
    main()
