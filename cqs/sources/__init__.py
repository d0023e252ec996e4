"""What queries, keys and values are read from, and what the result is written to: arrays and files."""

from cqs.sources.arrays import ArrayInput, ArraySink, allocate_out, check_out, refuse_overlap
from cqs.sources.npy import NpyInput
from cqs.sources.npy_sink import NpySink
from cqs.sources.opening import NOWHERE, Target, like_of, open_input, open_inputs, open_output
from cqs.sources.sink import Sink, byte_parts, steps
from cqs.sources.slices import SliceInput, SliceSink
from cqs.sources.source import ArraySource, Input, InputSource, ShapeInput, Source
from cqs.sources.zarr_sink import ZarrFileSink, ZarrSink
from cqs.sources.zarrs import ZarrInput

__all__ = [
    "NOWHERE",
    "ArrayInput",
    "ArraySink",
    "ArraySource",
    "Input",
    "InputSource",
    "NpyInput",
    "NpySink",
    "ShapeInput",
    "Sink",
    "SliceInput",
    "SliceSink",
    "Source",
    "Target",
    "ZarrFileSink",
    "ZarrInput",
    "ZarrSink",
    "allocate_out",
    "byte_parts",
    "check_out",
    "like_of",
    "open_input",
    "open_inputs",
    "open_output",
    "refuse_overlap",
    "steps",
]
