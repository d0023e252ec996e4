"""A CuPy that computes with NumPy, so that code for GPUs runs in tests without one.

    def test_something(cupy, fake_gpu):          # or: fake = fake_cupy.install(monkeypatch, n_devices=2)
        with cupy.cuda.Device(1):
            ...
        assert fake_gpu.peak_bytes(1) <= budget
        fake_gpu.check()                          # done at the end by the fixture

It is stricter than a GPU. Memory is NaN before it is written and after it is freed; NumPy never sees the arrays;
another device's arrays are refused; and asynchronous copies run as late as streams and events allow, or at once with
`eager=True`. In both modes two operations on the same memory that no stream, event or wait of the host orders raise
`RaceError`, an AssertionError. Kernels written in CUDA C++ are emulated by functions that `kernel(name)` registers.

What it does not have: the numerics of a GPU (order of sums, its own exp), CUDA graphs, managed memory,
`ElementwiseKernel` and `ReductionKernel`, scratch memory of CuPy's own functions, true times, access by the host to
pinned memory (nobody sees when NumPy reads it), and other libraries (cuDNN).
"""

from fake_cupy.installing import cupy, fake_gpu, install
from fake_cupy.launches import kernel, view_at
from fake_cupy.machine import Machine
from fake_cupy.ordering import RaceError

__all__ = ["Machine", "RaceError", "cupy", "fake_gpu", "install", "kernel", "view_at"]
