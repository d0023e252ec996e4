"""Graphs of the true cuDNN, built for a described H200: no GPU is needed, only the libraries, and a `libcuda.so.1`.

Where there is no driver, `libcuda.so.1` may be any library that has the symbols, each of which returns an error: cuDNN
looks them up, and for a described device needs none. In CI without `nvidia-cudnn-frontend` these tests are skipped;
`test_cudnn_kernel.py` runs the same construction on a fake. With cuDNN 9.28 and frontend 1.32 all of them pass.
"""

import functools
import itertools
import json
from typing import Any

import pytest

from cqs.kernels.by_coverage import Shape
from cqs.kernels.cudnn_graphs import Layout, Spec, build_graph

# what `cudnn.create_device_properties(0).serialize()` gives, filled in from the data sheet
H200 = {
    "deviceVer": 900,
    "smVersion": 900,
    "driverVer": 13000,
    "maxGridSize": [2147483647, 65535, 65535],
    "maxBlockSize": [1024, 1024, 64],
    "regsPerBlock": 65536,
    "multiProcessorCount": 132,
    "smCountOrigin": 0,
    "warpSize": 32,
    "maxSharedMemoryPerBlock": 49152,
    "maxSharedMemoryPerBlockOptin": 232448,
    "oversizedSharedMemoryPerBlock": 0,
    "reservedSharedMemoryPerBlock": 1024,
    "maxRegistersPerSM": 65536,
    "maxCtasPerSM": 32,
    "maxThreadsPerBlock": 1024,
    "maxThreadsPerSM": 2048,
    "pciDeviceId": 0,
    "isTccDriver": 0,
    "supportCoopLaunch": 1,
    "smClockRateKHz": 1980000,
    "memClockRateKHz": 3201000,
    "memoryBusWidth": 6144,
    "l2CacheSize": 62914560,
    "deviceName": "NVIDIA H200",
    "totalGlobalMem": 150000000000,
    "cudaDeviceId": 0,
}


@functools.cache
def described_device() -> tuple[Any, dict[str, Any]]:
    """Return the frontend, and what makes its graphs be for an H200; skip where that cannot be."""
    cupy = pytest.importorskip("cupy", exc_type=ImportError)
    cupy.cuda.nvrtc.getVersion()
    cudnn = pytest.importorskip("cudnn", exc_type=ImportError)
    try:
        device = cudnn.create_device_properties(json.dumps(H200))
    except RuntimeError as error:
        pytest.skip(f"cuDNN knows no device: {error}")
    return cudnn, {"device_property": device, "sm_version": 90}


def spec(
    shape: Shape = Shape.FULL,
    n: int = 1000,
    s: int = 1000,
    widths: tuple[int, int] = (128, 128),
    heads: tuple[int, int] = (8, 2),
    batch: int = 1,
    dtype: str = "bfloat16",
    order: str = "BHTD",
    room: int = 0,
) -> Spec:
    """Describe a call; `room` are rows of the result around those that are written."""
    (H, G), (D, E) = heads, widths

    def layout(*dims: int) -> Layout:
        _, heads, tokens, width = dims
        if order == "BTHD":
            return Layout(dims, (tokens * heads * width, width, heads * width, 1))
        return Layout(dims, (heads * tokens * width, tokens * width, width, 1))

    out = Layout((batch, H, n, E), (H * (n + room) * E, (n + room) * E, E, 1))
    return Spec(dtype, layout(batch, H, n, D), layout(batch, G, s, D), layout(batch, G, s, E), out, 0.088, shape)


SPECS = {
    **{
        f"{dtype}, {shape.name}": spec(shape, dtype=dtype)
        for dtype, shape in itertools.product(("float16", "bfloat16"), Shape)
    },
    **{f"more keys, {shape.name}": spec(shape, s=1500) for shape in Shape},
    **{f"one more key, {shape.name}": spec(shape, 777, 778) for shape in Shape},
    **{f"two queries, {shape.name}": spec(shape, 2, 5) for shape in Shape},
    **{
        f"widths {D}, {E}, {shape.name}": spec(shape, 300, 400, widths=(D, E))
        for shape in Shape
        for D, E in ((8, 8), (32, 32), (64, 64), (72, 40), (64, 128), (128, 64), (192, 128), (8, 256), (256, 256))
    },
    "one query": spec(n=1),
    "one query, one key": spec(n=1, s=1),
    "fewer keys": spec(s=3),
    "no shared heads": spec(heads=(8, 8)),
    "one key head": spec(heads=(8, 1), batch=3),
    "tokens first": spec(Shape.CAUSAL, order="BTHD"),
    "rows of a larger result": spec(Shape.BAND, 300, 400, room=9000),
    "a million tokens": spec(Shape.CAUSAL, 1 << 20, 1 << 20),
}


@pytest.mark.parametrize("name", SPECS)
def test_cudnn_builds_every_graph_that_the_kernel_asks_for(name: str) -> None:
    cudnn, where = described_device()
    graph = build_graph(cudnn, SPECS[name], **where)
    assert graph.get_workspace_size() <= 1 << 20
