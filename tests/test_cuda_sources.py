"""The CUDA sources of the package compile for the GPUs that matter, and their kernels keep to the registers."""

import re
from importlib import resources

import pytest
from cuda_compiler import compiled, nvrtc

from cqs.cuda import SOURCES, cuda_source

_CASES = [(file, option) for file, options in SOURCES.items() for option in options]


def test_every_source_is_listed_with_its_options() -> None:
    files = resources.files("cqs.cuda").iterdir()
    assert sorted(SOURCES) == sorted(file.name for file in files if file.name.endswith(".cu"))


@pytest.mark.parametrize("architecture", ["sm_80", "sm_90a"])
@pytest.mark.parametrize(("file", "option"), _CASES)
def test_a_source_compiles_and_spills_nothing(file: str, option: str, architecture: str) -> None:
    if nvrtc() is None:
        pytest.skip("NVRTC is not installed: pip install nvidia-cuda-nvrtc")
    source = cuda_source(file)
    kernels = compiled(source, (f"-arch={architecture}", option))
    assert sorted(kernels) == sorted(re.findall(r'extern "C" __global__ void (\w+)', source))
    for name, kernel in kernels.items():
        print(f"{name} {option} {architecture}: {kernel.registers} registers")
        assert (kernel.spilled, kernel.stack) == (0, 0), f"{name} of {file} {option} for {architecture}: {kernel}"
