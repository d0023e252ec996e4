"""Runs the CUDA sources themselves on the CPU, where g++ is installed: see `cuda_on_cpu.hpp`."""

import ctypes
import re
import shutil
import subprocess
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from cqs.cuda import cuda_source

HAS_COMPILER = shutil.which("g++") is not None


@cache
def library(file: str, option: str) -> ctypes.CDLL:
    """Compile a source as C++, with a function `launch_NAME` for each kernel."""
    source = cuda_source(file)
    names = re.findall(r'extern "C" __global__ void (\w+)', source)
    launchers = [
        f'extern "C" void launch_{name}(int grid, int threads, void** arguments)'
        f" {{ on_cpu::launch({name}, grid, threads, arguments); }}"
        for name in names
    ]
    header = Path(__file__).with_name("cuda_on_cpu.hpp")
    text = "\n".join([f'#include "{header}"', source, *launchers])
    command = ["g++", "-std=c++17", "-O1", "-shared", "-fPIC", "-ffp-contract=off", option, "kernel.cpp", "-o", "it.so"]
    with TemporaryDirectory(prefix="cqs-cuda-") as folder:  # what is loaded does not need its file
        (Path(folder) / "kernel.cpp").write_text(text, encoding="utf-8")
        subprocess.run(command, cwd=folder, check=True)
        return ctypes.CDLL(str(Path(folder) / "it.so"))


def launch(file: str, option: str, name: str, n_blocks: int, n_threads: int, arguments: tuple[Any, ...]) -> None:
    """Run a kernel; arrays are passed by the address of their first element, None as null, numbers as they are."""
    boxes = [_boxed(argument) for argument in arguments]
    addresses = (ctypes.c_void_p * len(boxes))(*(box.ctypes.data for box in boxes))
    getattr(library(file, option), f"launch_{name}")(n_blocks, n_threads, addresses)


def _boxed(argument: Any) -> np.ndarray:
    """Put a parameter where it can be pointed to."""
    if argument is None:
        return np.zeros(1, np.uintp)
    if isinstance(argument, np.ndarray):
        return np.array([argument.ctypes.data], np.uintp)
    return np.array([argument])
