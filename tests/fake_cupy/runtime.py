# ruff: noqa: N802, N816 (the names are those of CUDA)
"""`cupy.cuda.runtime`: the functions of CUDA's runtime that take addresses and handles."""

from types import SimpleNamespace
from typing import Any

from fake_cupy.devices import CAPABILITY
from fake_cupy.machine import CUDARuntimeError, now
from fake_cupy.memory import memset as _memset

__all__ = ["CUDARuntimeError"]

is_hip = False
memcpyHostToHost, memcpyHostToDevice, memcpyDeviceToHost, memcpyDeviceToDevice, memcpyDefault = range(5)
memoryTypeUnregistered, memoryTypeHost, memoryTypeDevice, memoryTypeManaged = range(4)
streamDefault, streamNonBlocking = 0, 1
streamLegacy, streamPerThread = 1, 2
eventDefault, eventBlockingSync, eventDisableTiming, eventInterprocess = 0, 1, 2, 4
hostAllocDefault, hostAllocPortable, hostAllocMapped, hostAllocWriteCombined = 0, 1, 2, 4
errorInvalidValue = cudaErrorInvalidValue = 1
errorMemoryAllocation = cudaErrorMemoryAllocation = 2
errorInvalidResourceHandle = cudaErrorInvalidResourceHandle = 400
CUDA_R_32F, CUDA_R_64F, CUDA_R_16F, CUDA_R_16BF = 0, 1, 2, 14
deviceAttributeComputeCapabilityMajor = cudaDevAttrComputeCapabilityMajor = 75
deviceAttributeComputeCapabilityMinor = cudaDevAttrComputeCapabilityMinor = 76
cudaDevAttrMultiProcessorCount, cudaDevAttrL2CacheSize, cudaDevAttrMaxSharedMemoryPerBlockOptin = 16, 38, 97
_ATTRIBUTES = {75: CAPABILITY[0], 76: CAPABILITY[1], 16: 4, 38: 50 << 20, 97: 227 << 10}


def getDeviceCount() -> int:
    """Return how many devices there are, and as CUDA does, raise if that is 0."""
    if now().driver < runtimeGetVersion():
        raise CUDARuntimeError(35)
    if now().n_devices == 0:
        raise CUDARuntimeError(100)
    return now().n_devices


def getDevice() -> int:
    return now().device


def setDevice(device: int) -> None:
    now().device = device


def driverGetVersion() -> int:
    return now().driver


def runtimeGetVersion() -> int:
    return 13000


def deviceGetAttribute(attribute: int, device: int) -> int:
    _check_number(device)
    return _ATTRIBUTES[attribute]


def getDeviceProperties(device: int) -> dict[str, Any]:
    _check_number(device)
    return {
        "name": b"Fake GPU",
        "major": CAPABILITY[0],
        "minor": CAPABILITY[1],
        "totalGlobalMem": now().memory,
        "multiProcessorCount": 4,
        "sharedMemPerBlock": 48 << 10,
        "sharedMemPerBlockOptin": 227 << 10,
        "sharedMemPerMultiprocessor": 228 << 10,
        "l2CacheSize": 50 << 20,
        "warpSize": 32,
        "maxThreadsPerBlock": 1024,
        "pciBusID": device,
        "pciDeviceID": 0,
        "pciDomainID": 0,
        "asyncEngineCount": 2,
        "uuid": bytes([device] * 16),
    }


def deviceCanAccessPeer(device: int, peer: int) -> int:
    return 0


def deviceSynchronize() -> None:
    machine = now()
    machine.synchronize([lane for lane in list(machine.lanes.values()) if lane.device == machine.device])


def memGetInfo() -> tuple[int, int]:
    machine = now()
    return machine.memory - machine.reserved[machine.device], machine.memory


def memcpy(dst: int, src: int, size: int, kind: int) -> None:
    machine = now()
    machine.copy(dst, src, size, kind, machine.lane(machine.device, 0), waits=True)


def memcpyAsync(dst: int, src: int, size: int, kind: int, stream: int) -> None:
    machine = now()
    machine.copy(dst, src, size, kind, machine.lane(machine.device, stream))


def memset(ptr: int, value: int, size: int) -> None:
    _memset(ptr, value, size, now().lane(now().device, 0))


def memsetAsync(ptr: int, value: int, size: int, stream: int) -> None:
    _memset(ptr, value, size, now().lane(now().device, stream))


def streamSynchronize(stream: int) -> None:
    now().synchronize([now().lane(now().device, stream)])


def pointerGetMemoryType(ptr: int) -> int:
    block = now().find(ptr)
    return memoryTypeUnregistered if block is None else memoryTypeHost if block.device is None else memoryTypeDevice


def pointerGetAttributes(ptr: int) -> SimpleNamespace:
    block = now().find(ptr)
    device = -2 if block is None or block.device is None else block.device
    return SimpleNamespace(device=device, devicePointer=ptr, hostPointer=0, type=pointerGetMemoryType(ptr))


def _check_number(device: int) -> None:
    if not 0 <= device < now().n_devices:
        raise CUDARuntimeError(101)
