"""`cqs doctor`: what cqs finds on this machine, and what would make it faster."""

import os
import platform
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib import metadata
from importlib.util import find_spec

import numpy as np

import cqs
from cqs.backend import BlasLibrary, blas_libraries
from cqs.cli.doctor_gpu import GpuFacts, gpu_facts, gpu_rows
from cqs.cli.options import Arguments, Parsers, add_command, add_common
from cqs.cli.terminal import print_json, print_table, print_text, print_verdict
from cqs.machine import available_cpus
from cqs.schedule import default_workers

__all__ = ["Facts", "add_parser", "advice", "command"]

_LONG = 1 << 20  # tokens; enough that the default number of workers follows from the CPUs
_AVX512 = {"X86_V4", "AVX512_SKX", "AVX512_CLX", "AVX512_CNL", "AVX512_ICL", "AVX512_SPR"}  # NumPy's names
_AVX2_KERNELS = {"haswell", "zen"}  # OpenBLAS's names

# module -> (distributions it may come from, what it is for, how to get it)
_OPTIONAL: dict[str, tuple[tuple[str, ...], str, str]] = {
    "ml_dtypes": (("ml_dtypes",), "bfloat16 in NumPy", "pip install 'cqs-attention[bfloat16]'"),
    "numba": (("numba",), "the compiled kernel, twice as fast", "pip install 'cqs-attention[numba]'"),
    "torch": (("torch",), "torch tensors", "pip install 'cqs-attention[torch]'"),
    "jax": (("jax",), "JAX's arrays, and `cqs.jax`", "pip install 'cqs-attention[jax]'"),
    "cupy": (("cupy", "cupy-cuda13x", "cupy-cuda12x"), "GPUs", "pip install 'cqs-attention[cuda13]', or [cuda12]"),
    "zarr": (("zarr",), "Zarr arrays as inputs and outputs", "pip install 'cqs-attention[zarr]'"),
    "h5py": (("h5py",), "HDF5 datasets as inputs and outputs", "pip install h5py"),
    "matplotlib": (("matplotlib",), "pictures", "pip install 'cqs-attention[plot]'"),
    "array_api_strict": (("array-api-strict",), "tests of other libraries", "pip install array-api-strict"),
}


@dataclass(frozen=True, slots=True)
class Facts:
    """What was found.

    Parameters
    ----------
    cqs, numpy, python, system : str
        Versions.
    blas : tuple of BlasLibrary
        Those that are loaded.
    simd : tuple of str
        The CPU's instruction sets, by NumPy's names.
    openblas_coretype : str or None
        The environment variable of that name.
    cpus, workers : int
        CPUs this process may use, and the tasks that a long sequence is cut into by default.
    packages : mapping of str to (str or None)
        Version of each optional package, None if it is not installed.
    gpu : GpuFacts or None
        GPUs; None if CuPy is not installed.
    has_amx : bool
        Whether the CPU has AMX; False without the compiled kernel.
    """

    cqs: str
    numpy: str
    python: str
    system: str
    blas: tuple[BlasLibrary, ...]
    simd: tuple[str, ...]
    openblas_coretype: str | None
    cpus: int
    workers: int
    packages: Mapping[str, str | None]
    gpu: GpuFacts | None = None
    has_amx: bool = False


def add_parser(parsers: Parsers) -> None:
    """Add the command to the parser."""
    parser = add_command(parsers, "doctor", "[options]", "show what cqs finds on this machine, and what would help")
    add_common(parser, "json")
    parser.set_defaults(command=command)


def command(args: Arguments) -> int:
    """Run the command."""
    facts = _facts()
    remedies = advice(facts)
    if args.json:
        print_json(asdict(facts) | {"advice": remedies})
        return 0
    print_table("cqs doctor", _rows(facts))
    print_text("")
    print_verdict("\n".join(remedies) or "Nothing to improve.", good=not remedies)
    return 0


def advice(facts: Facts) -> list[str]:
    """Return what would make cqs faster here, most useful first. A pure function of the facts.

    The compiled kernel multiplies by itself, the others by BLAS. OpenBLAS picks its matrix kernels by the CPU's model,
    and takes those for AVX2 on some that have AVX-512, which halves the speed of attention.
    """
    found = []
    if facts.packages.get("numba", "") is None:
        remedy = _OPTIONAL["numba"][2]
        found.append(f"Numba is not installed: {remedy} makes attention twice as fast, but for float64.")
    slow = [lib.architecture for lib in facts.blas if lib.architecture.lower() in _AVX2_KERNELS]
    if slow and _AVX512 & set(facts.simd):
        now = f"OPENBLAS_CORETYPE={facts.openblas_coretype}"
        what = f"This CPU has AVX-512, but OpenBLAS uses its AVX2 kernels ({slow[0]})"
        if not facts.openblas_coretype:
            found.append(f"{what}: set the environment variable OPENBLAS_CORETYPE=SkylakeX before Python starts.")
        elif facts.openblas_coretype.lower() != "skylakex":
            found.append(f"{what}, because {now} is set: make it OPENBLAS_CORETYPE=SkylakeX.")
        else:
            found.append(f"{what} although {now} is set: it was built without the others; reinstall NumPy from PyPI.")
    if not facts.blas:
        found.append("No known BLAS library is loaded, so its threads cannot be limited: NumPy from PyPI has OpenBLAS.")
    return found


def _rows(facts: Facts) -> list[tuple[str, str]]:
    rows = [
        ("cqs", facts.cqs),
        ("Python", f"{facts.python}, {facts.system}"),
        ("NumPy", facts.numpy),
        *(("BLAS", _describe(lib)) for lib in facts.blas),
        ("CPUs", f"{facts.cpus} available, {_units(facts)}"),
        ("workers", f"{facts.workers} by default, for long sequences"),
    ]
    for name, version in facts.packages.items():
        _, purpose, remedy = _OPTIONAL[name]
        rows.append((name, f"{version}, for {purpose}" if version else f"not installed ({remedy}), for {purpose}"))
    return rows if facts.gpu is None else [*rows, *gpu_rows(facts.gpu)]


def _units(facts: Facts) -> str:
    if not _AVX512 & set(facts.simd):
        return "without AVX-512"
    return "with AVX-512" + (" and AMX, by which the compiled kernel multiplies on Linux" if facts.has_amx else "")


def _describe(lib: BlasLibrary) -> str:
    kernels = f", kernels for {lib.architecture}" if lib.architecture else ""
    return f"{lib.name} {lib.version}{kernels}, {lib.n_threads} thread{'s' if lib.n_threads > 1 else ''}"


def _facts() -> Facts:
    cpus = available_cpus()
    return Facts(
        cqs=cqs.__version__,
        numpy=np.__version__,
        python=platform.python_version(),
        system=f"{platform.system()} {platform.machine()}",
        blas=blas_libraries(),
        simd=_simd(),
        openblas_coretype=os.environ.get("OPENBLAS_CORETYPE"),
        cpus=cpus,
        workers=default_workers(_LONG, cpus),
        packages={name: _version(name, distributions) for name, (distributions, *_) in _OPTIONAL.items()},
        gpu=gpu_facts(),
        has_amx=_has_amx(),
    )


def _has_amx() -> bool:
    if find_spec("llvmlite") is None:  # which Numba compiles with
        return False
    from llvmlite import binding

    return bool(binding.get_host_cpu_features().get("amx-bf16"))


def _simd() -> tuple[str, ...]:
    config = np.show_config(mode="dicts") or {}
    extensions = config.get("SIMD Extensions", {})
    return (*extensions.get("baseline", ()), *extensions.get("found", ()))


def _version(module: str, distributions: tuple[str, ...]) -> str | None:
    """Return the version of a package without importing it."""
    if module not in sys.modules and find_spec(module) is None:
        return None
    for name in distributions:
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return "unknown version"
