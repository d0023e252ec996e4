"""CUDA kernels of our own: their sources, how they are compiled and launched, and what needs no other layer."""

from cqs.cuda.compiling import SOURCES, cuda_source, launch
from cqs.cuda.merging import merge_rows
from cqs.cuda.scanning import scan_values
from cqs.cuda.strides import stacks, step_of, steps_of

__all__ = [
    "SOURCES",
    "cuda_source",
    "launch",
    "merge_rows",
    "scan_values",
    "stacks",
    "step_of",
    "steps_of",
]
