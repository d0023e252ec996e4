"""`cupy.cuda.Device`."""

from typing import Any

from fake_cupy.machine import now

CAPABILITY = (9, 0)


class Device:
    """One of the machine's devices; made current in this thread by `with` or `use`."""

    def __init__(self, device: Any = None) -> None:
        self.id = now().device if device is None else int(device)

    def __int__(self) -> int:
        return self.id

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Device) and self.id == other.id

    __hash__ = None  # type: ignore[assignment]  # as in CuPy

    def __repr__(self) -> str:
        return f"<CUDA Device {self.id}>"

    def __enter__(self) -> "Device":
        before = now().device
        now().device = self.id
        _stack().append(before)
        return self

    def __exit__(self, *args: object) -> None:
        now().device = _stack().pop()

    def use(self) -> "Device":
        now().device = self.id
        return self

    def synchronize(self) -> None:
        machine = now()
        machine.synchronize([lane for lane in list(machine.lanes.values()) if lane.device == self.id])

    @property
    def compute_capability(self) -> str:
        return f"{CAPABILITY[0]}{CAPABILITY[1]}"

    @property
    def mem_info(self) -> tuple[int, int]:
        machine = now()
        return machine.memory - machine.reserved[self.id], machine.memory

    @property
    def cublas_handle(self) -> int:
        return 0xB1A5_0000 + self.id

    @property
    def attributes(self) -> dict[str, int]:
        return {"MultiProcessorCount": 4, "MaxSharedMemoryPerBlockOptin": 227 << 10, "L2CacheSize": 50 << 20}


def _stack() -> list[int]:
    local = now()._local
    if not hasattr(local, "devices"):
        local.devices = []
    return local.devices
