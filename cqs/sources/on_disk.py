"""What inputs and outputs on disk have in common: they stand for an array of another library."""

from typing import Any

import numpy as np

__all__ = ["OnDisk"]


class OnDisk:
    """Something with an `array` that has `shape` and `dtype`, as those of Zarr and h5py."""

    __slots__ = ()

    array: Any

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape."""
        return tuple(self.array.shape)

    @property
    def dtype(self) -> np.dtype[Any]:
        """Its type."""
        dtype: np.dtype[Any] = np.dtype(self.array.dtype)
        return dtype
