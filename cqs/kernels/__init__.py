"""Kernels: pure functions from queries and chunks of keys to a `Partial`. One signature, one law, one set of tests."""

from cqs.kernels.contract import Attend, KeyChunk, Request
from cqs.kernels.cudnn_graphs import missing as cudnn_missing
from cqs.kernels.per_head import attend_per_head
from cqs.kernels.region import Region
from cqs.kernels.registry import KERNELS, Kernel, choose_kernel

__all__ = [
    "KERNELS",
    "Attend",
    "Kernel",
    "KeyChunk",
    "Region",
    "Request",
    "attend_per_head",
    "choose_kernel",
    "cudnn_missing",
]
