"""What is loaded and compiled the first time that a kernel runs, so that a time that is taken is that of attention."""

from contextlib import nullcontext

import numpy as np

from cqs.cli.terminal import status
from cqs.kernels import KERNELS, KeyChunk
from cqs.schedule import Plan

__all__ = ["load_kernel"]


def load_kernel(plan: Plan, is_quiet: bool = False) -> None:
    """Run the kernel of a plan once, if it is one for NumPy arrays; on a terminal, say so if it may be compiled."""
    if plan.setting.has_own_threads:
        x = np.ones((1, 1, 4), np.float32)
        is_told = plan.setting.kernel == "numba" and not is_quiet
        with status("loading the kernel; Numba compiles it the first time") if is_told else nullcontext():
            KERNELS[plan.setting.kernel].attend(x, [KeyChunk(x, x)], scale=1.0)
