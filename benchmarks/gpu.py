"""Speed on a GPU: cqs with its kernels, against torch's attention with each of its backends, and against stream-cqsa.

    python benchmarks/gpu.py                      # tables, and benchmarks/results/gpu.json, in less than 8 minutes
    python benchmarks/gpu.py --parts resident     # or host, float; with --longest 16384 for a quick look

(resident) bfloat16 arrays on the device, 16 heads; (host) float16 arrays in the memory of the machine, causal, under
budgets of device memory, with its rate as a share of that of resident arrays, and how much of the copying was hidden;
(float) float32 and float64. Contestants take turns; times are medians, of the device's own clock where arrays are on
it. A contestant that fails or has no kernel for a case is named with its error. TFLOP/s count 4 H N^2 D operations,
half for causal. No case is begun that would probably not be done after `--seconds`, and what was left out is listed;
results are written after every case. Sequences of the resident part can be cut evenly for all W: else every size of a
group, and every sum of sizes, wants a graph of its own, and building these takes longer than all else.
"""

import argparse
import gc
import json
import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

import cqs
from cqs.backend import CudaDevice, import_cupy
from cqs.errors import CQSError
from cqs.events import DeviceBusy
from cqs.trace import hidden_share

WORKERS = (1, 7, 31, 133)
BUDGETS = (2, 8, 32)  # GiB
PARTS = ("resident", "host", "float")
_EVEN = 4123  # tokens: the least multiple of 7, 31 and 133
_TYPICAL_FLOPS, _LONG, _CONTESTANTS = 3e14, 20, 5  # to foretell how long a case takes; seconds; of long sequences
_MOST_DRAWN = 1 << 24  # random numbers
_NO_TORCH = "torch with CUDA is not installed"


@dataclass(frozen=True)
class Case:
    """One problem; every contestant computes it."""

    part: str
    n_heads: int
    n_tokens: int
    width: int
    dtype: str
    is_causal: bool

    @property
    def flops(self) -> float:
        """Operations of the two matrix products."""
        return 4 * self.n_heads * self.n_tokens**2 * self.width / (2 if self.is_causal else 1)

    @property
    def least_seconds(self) -> float:
        """About how long it takes to measure, without what shorter sequences take as well."""
        seconds = self.flops / _TYPICAL_FLOPS
        return _CONTESTANTS * seconds * (1 if seconds > _LONG else 2)

    def numbers(self, seed: int) -> Any:
        """Draw an array; of long ones the same again and again, as drawing takes longer than what is timed."""
        shape = (self.n_heads, self.n_tokens, self.width)
        dtype: Any = self.dtype
        if self.dtype == "bfloat16":
            import ml_dtypes

            dtype = ml_dtypes.bfloat16
        few = np.random.default_rng(seed).standard_normal(min(math.prod(shape), _MOST_DRAWN), dtype=np.float32)
        return np.resize(few.astype(dtype), shape)


def cases(parts: list[str], longest: int, shortest: int = 4096) -> Iterator[Case]:
    """Yield the cases, the short ones of every part first."""
    for n in (2**i for i in range(shortest.bit_length() - 1, 23)):
        if n > longest:
            return
        for width in (64, 128):
            for is_causal in (False, True):
                if "resident" in parts and n <= 131072:
                    yield Case("resident", 16, n * _EVEN // 4096 if n >= 4096 else n, width, "bfloat16", is_causal)
        if "float" in parts and n <= 32768:
            yield Case("float", 16, n, 64, "float32", False)
            yield Case("float", 16, n, 64, "float64", False)
        if "host" in parts and n >= 4 * shortest:
            yield Case("host", 8, n, 64, "float16", True)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--shortest", type=int, default=4096)
    parser.add_argument("--longest", type=int, default=4 << 20)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=450)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "gpu.json")
    options = parser.parse_args(arguments)
    try:
        machine = describe_machine()
    except CQSError as error:
        parser.exit(2, f"{error}\n")
    rows: list[dict[str, Any]] = []
    result: dict[str, Any] = {"machine": machine, "rows": rows, "left_out": [], "targets": []}
    options.out.parent.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    # not the null stream, which torch cannot be told to work on; events on it would not see what torch does
    with import_cupy().cuda.Stream(non_blocking=True):
        for case in cases(options.parts, options.longest, options.shortest):
            if time.perf_counter() - start + case.least_seconds > options.seconds:
                result["left_out"].append(asdict(case))
                continue
            rows += measure(case, options.rounds)
            report_case(case, rows)
            result["targets"] = targets(rows)
            options.out.write_text(json.dumps(result, indent=1) + "\n")
    report(result)
    options.out.write_text(json.dumps(result, indent=1) + "\n")


def describe_machine() -> dict[str, Any]:
    """Return what a reader needs to compare figures."""
    cupy, device = import_cupy(), CudaDevice(0)
    runtime = cupy.cuda.runtime
    torch = _torch()
    return {
        "gpu": device.name,
        "free_gib": round(device.free_bytes() / 2**30, 1),
        "driver": runtime.driverGetVersion(),
        "cuda": runtime.runtimeGetVersion(),
        "cupy": cupy.__version__,
        "torch": torch and torch.__version__,
        "torch_cudnn": torch and torch.backends.cudnn.version(),
        "cqs": cqs.__version__,
    }


def measure(case: Case, rounds: int) -> list[dict[str, Any]]:
    """Time every contestant on one case, in turns; one warm-up, and one round where a round takes seconds."""
    give_back_memory()
    contestants, times = found(case), {}
    errors: dict[str, str] = {}

    def run(name: str) -> float:
        """Time one; that it cannot do it is not the end of the others."""
        try:
            return timed(contestants[name])
        except Exception as error:
            errors[name] = f"{type(error).__name__}: {str(error)[:200]}"
            return math.nan

    for name in contestants:  # the first time, kernels are compiled; of what takes long, that is a hundredth
        seconds = run(name)
        if seconds > _LONG:
            times[name] = [seconds]
    for n in range(rounds):
        for name in contestants:
            is_enough = sum(seconds[0] for seconds in times.values()) > 5 if n else name in times
            if name not in errors and not is_enough:
                times.setdefault(name, []).append(run(name))
    rows = []
    for name, contestant in contestants.items():
        row = asdict(case) | {"name": name}
        if name in errors:
            rows.append(row | {"error": errors[name]})
        else:
            seconds = statistics.median(times[name])
            rows.append(row | {"seconds": seconds, "tflops": case.flops / seconds / 1e12} | contestant.note())
    return rows


def found(case: Case) -> dict[str, "Contestant"]:
    """Return the contestants by name; one that is missing, or has no room for its inputs, fails when it is run."""
    contestants: dict[str, Contestant] = {}
    try:
        contestants.update(on_host(case) if case.part == "host" else on_device(case))
    except Exception as error:
        contestants["others"] = missing(f"no inputs for them: {type(error).__name__}: {str(error)[:200]}")
    return contestants


def missing(why: str) -> "Contestant":
    """Return one that only says why it is not there."""

    def run() -> object:
        raise LookupError(why)

    return Contestant(run)


def give_back_memory() -> None:
    """Empty the pools of CuPy and torch, which cannot use what the other keeps."""
    gc.collect()
    import_cupy().get_default_memory_pool().free_all_blocks()
    torch = _torch()
    if torch is not None:
        torch.cuda.empty_cache()


@dataclass
class Contestant:
    """Something to time: on the device's clock, or on the wall's."""

    run: Callable[[], object]
    is_on_device: bool = True
    note: Callable[[], dict[str, Any]] = dict


def timed(contestant: Contestant) -> float:
    """Return the seconds of one run."""
    cuda = import_cupy().cuda
    cuda.runtime.deviceSynchronize()
    if not contestant.is_on_device:
        start = time.perf_counter()
        contestant.run()
        return time.perf_counter() - start
    first, last = cuda.Event(), cuda.Event()
    stream = cuda.get_current_stream()
    first.record(stream)
    contestant.run()
    last.record(stream)
    last.synchronize()
    return float(cuda.get_elapsed_time(first, last)) / 1e3


def on_device(case: Case) -> Iterator[tuple[str, Contestant]]:
    """Yield contestants for arrays that are on the device: torch and cqs get the same memory."""
    cupy = import_cupy()
    q, k, v = (cupy.asarray(case.numbers(seed)) for seed in range(3))
    for W in WORKERS:
        yield f"cqs W={W}", Contestant(lambda W=W: cqs.attention(q, k, v, workers=W, is_causal=case.is_causal))
    torch = _torch()
    if torch is None:
        yield "torch", missing(_NO_TORCH)
        return
    from torch.nn.attention import SDPBackend, sdpa_kernel

    from cqs.backend import cupy_as_tensor

    tensors = [cupy_as_tensor(x)[None] for x in (q, k, v)]
    for backend in (SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION):

        def run(backend: Any = backend) -> object:
            stream = torch.cuda.ExternalStream(cupy.cuda.get_current_stream().ptr)
            with torch.cuda.stream(stream), sdpa_kernel(backend):
                return torch.nn.functional.scaled_dot_product_attention(*tensors, is_causal=case.is_causal)

        yield f"torch {backend.name.removesuffix('_ATTENTION').lower()}", Contestant(run)
    if case.n_tokens <= 8192:  # it makes the T x S array

        def plain() -> object:
            stream = torch.cuda.ExternalStream(cupy.cuda.get_current_stream().ptr)
            with torch.cuda.stream(stream), sdpa_kernel(SDPBackend.MATH):
                return torch.nn.functional.scaled_dot_product_attention(*tensors, is_causal=case.is_causal)

        yield "torch math", Contestant(plain)


def on_host(case: Case) -> Iterator[tuple[str, Contestant]]:
    """Yield contestants for arrays in the memory of the machine, and cqs for arrays on the device to compare with."""
    q, k, v = map(case.numbers, range(3))
    cupy = import_cupy()

    @cache
    def resident() -> list[Any]:
        return [cupy.asarray(x) for x in (q, k, v)]  # in the warm-up

    yield "cqs resident", Contestant(lambda: cqs.attention(*resident(), workers=1, is_causal=case.is_causal))
    for gib in BUDGETS:
        busy: list[DeviceBusy] = []
        options: dict[str, Any] = {"memory": f"{gib}GiB", "is_causal": case.is_causal, "backend": "cupy"}

        def run(options: dict[str, Any] = options, busy: list[DeviceBusy] = busy) -> object:
            busy.clear()
            return cqs.attention(q, k, v, on_event=lambda e: isinstance(e, DeviceBusy) and busy.append(e), **options)

        def note(options: dict[str, Any] = options, busy: list[DeviceBusy] = busy) -> dict[str, Any]:
            plan, hidden = cqs.plan(q, k, v, **options), hidden_share(busy)  # of the last run
            moved = {"read_bytes": plan.traffic.read, "hidden": hidden}
            return {"strategy": plan.strategy, "workers": plan.workers} | moved

        yield f"cqs {gib} GiB", Contestant(run, is_on_device=False, note=note)
    try:
        stream_cqsa = _stream_cqsa()
    except ImportError as error:
        yield "stream-cqsa", missing(str(error))
    else:
        yield "stream-cqsa", Contestant(lambda: stream_cqsa(q, k, v, case.is_causal), is_on_device=False)


def targets(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Compare ratios within the run with what is aimed for."""
    found: list[dict[str, Any]] = []

    def add(what: str, got: float, aim: float, at_least: bool) -> None:
        found.append({"what": what, "got": got, "aim": aim, "met": got >= aim if at_least else got <= aim})

    fields = ("part", "n_heads", "n_tokens", "width", "dtype", "is_causal")
    by_case: dict[tuple[Any, ...], dict[str, float]] = {}
    for row in rows:
        if "seconds" in row:
            by_case.setdefault(tuple(row[name] for name in fields), {})[row["name"]] = row["seconds"]
    for (part, _, n, width, dtype, is_causal), seconds in by_case.items():
        where = f"{part} N={n} D={width} {dtype}{' causal' if is_causal else ''}"
        own, peers = seconds.get("cqs W=1"), [s for name, s in seconds.items() if name.startswith("torch")]
        if own and peers and (part == "float" or n >= 16384):
            add(f"{where}: times torch's best", min(peers) / own, 1.0 if part == "float" else 0.95, at_least=True)
        if own and n >= 16384:
            for W in WORKERS[1:]:
                if f"cqs W={W}" in seconds:
                    add(f"{where}: W={W} of W=1", seconds[f"cqs W={W}"] / own, 1.05, at_least=False)
        for gib in BUDGETS:
            if "cqs resident" in seconds and f"cqs {gib} GiB" in seconds:
                share = seconds["cqs resident"] / seconds[f"cqs {gib} GiB"]
                add(f"{where}: {gib} GiB, of the resident rate", share, 0.9, at_least=True)
                if "stream-cqsa" in seconds:
                    ratio = seconds["stream-cqsa"] / seconds[f"cqs {gib} GiB"]
                    add(f"{where}: {gib} GiB, times stream-cqsa", ratio, 1.0, at_least=True)
    return found


def report_case(case: Case, rows: list[dict[str, Any]]) -> None:
    """Print the rows of one case."""
    print(f"\n{case.part}: H={case.n_heads} N={case.n_tokens} D={case.width} {case.dtype}", end="")
    print(" causal" if case.is_causal else "", flush=True)
    for row in rows:
        if all(row[name] == value for name, value in asdict(case).items()):
            got = f"{1e3 * row['seconds']:10.2f} ms {row['tflops']:7.1f} TFLOP/s" if "seconds" in row else row["error"]
            hidden = row.get("hidden")
            share = "" if hidden is None else f", {hidden:.0%} of copying hidden behind computing"
            print(f"  {row['name']:18} {got}{share}", flush=True)


def report(result: dict[str, Any]) -> None:
    """Print the aims, and what was left out."""
    print("\n" + ", ".join(f"{name}: {value}" for name, value in result["machine"].items()))
    print(f"\n{'aim':64} {'got':>7} {'wanted':>7}")
    for t in result["targets"]:
        print(f"{t['what']:64} {t['got']:7.2f} {t['aim']:7.2f} {'' if t['met'] else '  missed'}")
    for case in result["left_out"]:
        print(f"left out for lack of time: {case}")


def _torch() -> Any:
    try:
        import torch
    except ImportError:
        return None
    return torch if torch.cuda.is_available() else None


def _stream_cqsa() -> Callable[[np.ndarray, np.ndarray, np.ndarray, bool], object]:
    """Return stream-cqsa's attention for arrays on the host."""
    torch = _torch()
    if torch is None:
        raise ImportError(_NO_TORCH)
    import stream_cqsa

    def run(q: np.ndarray, k: np.ndarray, v: np.ndarray, is_causal: bool) -> object:
        # what fits is computed on the device and may be left there
        return stream_cqsa.attention(*(torch.from_numpy(x[None]) for x in (q, k, v)), is_causal=is_causal).cpu()

    return run


if __name__ == "__main__":
    main()
