"""NVRTC by its C interface: compiles CUDA sources on machines without a GPU or a driver."""

import ctypes
import re
from functools import cache
from importlib import metadata
from typing import NamedTuple

_PACKAGE = "nvidia-cuda-nvrtc"


class Compiled(NamedTuple):
    """What the compiler says of a kernel."""

    registers: int
    spilled: int  # bytes that are stored or loaded
    stack: int  # bytes


@cache
def nvrtc() -> ctypes.CDLL | None:
    """The library of the wheel, or None where that is not installed."""
    try:
        files = metadata.files(_PACKAGE) or []
    except metadata.PackageNotFoundError:
        return None
    found = [file for file in files if re.fullmatch(r"libnvrtc\.so\.\d+", file.name)]
    return ctypes.CDLL(str(found[0].locate())) if found else None


def compiled(source: str, options: tuple[str, ...]) -> dict[str, Compiled]:
    """Compile a source; return its kernels by name, or raise with the compiler's log."""
    library, program = nvrtc(), ctypes.c_void_p()
    assert library is not None
    _check(library.nvrtcCreateProgram(ctypes.byref(program), source.encode(), b"kernel.cu", 0, None, None))
    # as CuPy does, and with what ptxas has to say of each kernel
    words = [option.encode() for option in (*options, "-std=c++17", "--ptxas-options=-v")]
    status = library.nvrtcCompileProgram(program, len(words), (ctypes.c_char_p * len(words))(*words))
    size = ctypes.c_size_t()
    _check(library.nvrtcGetProgramLogSize(program, ctypes.byref(size)))
    log = ctypes.create_string_buffer(size.value)
    _check(library.nvrtcGetProgramLog(program, log))
    _check(library.nvrtcDestroyProgram(ctypes.byref(program)))
    text = log.value.decode()
    assert status == 0, text
    assert "warning" not in text, text
    return _kernels(text)


def _kernels(log: str) -> dict[str, Compiled]:
    """Read what ptxas prints for each kernel."""
    pattern = (
        r"Compiling entry function '(?P<name>\w+)'.*?(?P<stack>\d+) bytes stack frame, "
        r"(?P<stores>\d+) bytes spill stores, (?P<loads>\d+) bytes spill loads.*?Used (?P<registers>\d+) registers"
    )
    return {
        m["name"]: Compiled(int(m["registers"]), int(m["stores"]) + int(m["loads"]), int(m["stack"]))
        for m in re.finditer(pattern, log, re.DOTALL)
    }


def _check(status: int) -> None:
    assert status == 0, f"NVRTC's status is {status}"
