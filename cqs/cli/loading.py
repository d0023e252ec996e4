"""What is loaded and compiled the first time that a kernel runs, so that a time that is taken is that of attention."""

import numpy as np

from cqs.kernels import KERNELS, KeyChunk
from cqs.schedule import Plan

__all__ = ["load_kernel"]


def load_kernel(plan: Plan) -> None:
    """Run the kernel of a plan once, if it is one for NumPy arrays."""
    if plan.setting.has_own_threads:
        x = np.ones((1, 1, 4), np.float32)
        KERNELS[plan.setting.kernel].attend(x, [KeyChunk(x, x)], scale=1.0)
