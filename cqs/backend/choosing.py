"""Which devices a call computes on: what `backend` and `devices` mean for inputs of some library."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from cqs.backend.arrays import is_cupy, is_numpy
from cqs.backend.cuda import CudaDevice, cuda_number
from cqs.backend.device import Device
from cqs.errors import BackendError, OptionError
from cqs.types import Namespace

__all__ = ["BACKENDS", "chosen_devices", "numbered"]

_FITS: dict[str, Callable[[Namespace], bool]] = {"numpy": is_numpy, "cupy": is_cupy}
BACKENDS = tuple(_FITS)


def chosen_devices(backend: str | None, devices: Sequence[int | Device] | None, xp: Namespace) -> tuple[Device, ...]:
    """Return the devices that inputs are copied to; none if what is computed stays where the inputs are.

    Parameters
    ----------
    backend : {None, "numpy", "cupy"}
        As of `cqs.attention`.
    devices : sequence of int or Device, or None
        Likewise.
    xp : namespace
        Of the inputs, NumPy's for what is on disk.

    Raises
    ------
    BackendError, OptionError
        If there is no such backend or device, or it does not fit the inputs.
    """
    if backend not in (None, *BACKENDS):
        rule = f"be one of {', '.join(BACKENDS)}"
        raise BackendError.of("backend", rule, repr(backend), "leave it out to compute where the inputs are")
    library = xp.__name__.removeprefix("array_api_compat.")
    if backend == "numpy" and not is_numpy(xp):
        remedy = "leave `backend` out, or give NumPy arrays or files"
        raise BackendError.of("backend", f"fit the inputs, arrays of {library}", "'numpy'", remedy)
    if backend == "cupy" and not (is_numpy(xp) or is_cupy(xp)):
        remedy = "give NumPy or CuPy arrays, files, or torch tensors on a CUDA device"
        raise BackendError.of("backend", f"fit the inputs, arrays of {library}", "'cupy'", remedy)
    if devices is None:
        return (CudaDevice(0),) if backend == "cupy" and is_numpy(xp) else ()
    return _devices(backend, devices, xp)


def numbered(names: Iterable[str]) -> tuple[str, ...]:
    """Tell devices of one name apart, in plans and traces: by a number after it.

    >>> numbered(["numpy", "cuda:0", "numpy"])
    ('numpy 0', 'cuda:0', 'numpy 1')
    """
    given, came = tuple(names), Counter[str]()
    found = []
    for name in given:
        found.append(f"{name} {came[name]}" if given.count(name) > 1 else name)
        came[name] += 1
    return tuple(found)


def _devices(backend: str | None, devices: Any, xp: Namespace) -> tuple[Device, ...]:
    if not is_numpy(xp):
        remedy = "leave `devices` out, or give NumPy arrays or files, which are copied to them"
        raise OptionError.of("devices", "be left out for arrays that are on a device", repr(devices), remedy)
    if not isinstance(devices, Sequence) or isinstance(devices, str) or not devices:
        remedy = "as in devices=[0, 1]"
        raise OptionError.of("devices", "be a list of numbers of devices", repr(devices), remedy)
    classes = [device for device in devices if isinstance(device, type)]
    if classes:
        remedy = f"as in devices=[{classes[0].__name__}()]"
        raise OptionError.of("devices", "be numbers or devices, not classes of them", repr(devices), remedy)
    if backend != "cupy" and not all(isinstance(device, Device) for device in devices):
        raise OptionError.of("devices", "come with backend='cupy'", repr(devices), "add it, or leave `devices` out")
    named = [device if isinstance(device, Device) else cuda_number(device) for device in devices]
    places = [device.index if isinstance(device, CudaDevice) else device for device in named]
    if any(place in places[:i] for i, place in enumerate(places)):
        raise OptionError.of("devices", "name each device once", repr(devices), "leave out what is doubled")
    chosen = tuple(CudaDevice(device) if isinstance(device, int) else device for device in named)
    if len({device.xp.__name__ for device in chosen}) > 1:
        rule = "be of one array library, since all of them run one kernel"
        raise OptionError.of("devices", rule, " and ".join(device.name for device in chosen), "leave out the others")
    for device in chosen:
        if backend is not None and not _FITS[backend](device.xp):
            remedy = "leave `backend` out: devices say by themselves what computes"
            raise BackendError.of("backend", f"fit the devices, of which one is {device.name}", repr(backend), remedy)
    return chosen
