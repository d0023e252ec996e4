"""torch tensors that say they are on a CUDA device, over memory of the fake CuPy's: torch sees a CPU.

Import it only where torch is.
"""

import sys
from typing import Any

import numpy as np
import pytest
import torch
from fake_cupy.machine import now


class FakeCudaTensor(torch.Tensor):
    """A tensor over a fake device's memory. Views of it keep its device and what holds its memory."""

    owner: Any

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = super().__torch_function__(func, types, args, kwargs)
        if isinstance(found, FakeCudaTensor) and not hasattr(found, "owner"):
            found.owner = next(x.owner for x in args if isinstance(x, FakeCudaTensor))
        return found

    @property
    def is_cuda(self) -> bool:
        return True

    @property
    def device(self) -> torch.device:
        return torch.device("cuda", self.owner.device.id)

    def __dlpack_device__(self) -> tuple[int, int]:
        return 2, self.owner.device.id

    def __dlpack__(self, *, stream: Any = None, **_: Any) -> Any:
        assert self.device.index == now().device, "the consumer makes the device current"
        assert isinstance(stream, int), "the consumer says which of its streams is to wait"
        if self.requires_grad:
            raise BufferError("Can't export tensors that require gradient, use tensor.detach()")
        return self.as_subclass(torch.Tensor).__dlpack__()


def tensor_over(array: Any) -> FakeCudaTensor:
    """View an array of the fake CuPy as a tensor."""
    view = array._view
    is_bfloat16 = view.dtype.name == "bfloat16"
    tensor = torch.from_numpy(view.view(np.int16) if is_bfloat16 else view)
    fake = (tensor.view(torch.bfloat16) if is_bfloat16 else tensor).as_subclass(FakeCudaTensor)
    fake.owner = array
    return fake


def install(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Let torch take arrays of the fake CuPy by DLPack; return the list of those that it took."""
    taken: list[Any] = []

    def from_dlpack(array: Any) -> FakeCudaTensor:
        assert isinstance(array, sys.modules["cupy"].ndarray)
        assert array.__dlpack_device__()[0] == 2
        assert array.device.id == now().device, "CuPy exports in the order of the current device's stream"
        assert array.dtype.name != "bfloat16", "which CuPy without ml_dtypes of its own cannot export"
        taken.append(array)
        return tensor_over(array)

    monkeypatch.setattr(torch.utils.dlpack, "from_dlpack", from_dlpack)
    return taken
