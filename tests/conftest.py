import multiprocessing
import os
import threading
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor

import numpy as np
import pytest
from hypothesis import HealthCheck, settings

import cqs
from cqs.backend import blas_libraries

_COMMON = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow, HealthCheck.data_too_large]}
settings.register_profile("default", max_examples=60, **_COMMON)
settings.register_profile("ci", max_examples=40, derandomize=True, **_COMMON)
settings.register_profile("long", max_examples=3000, **_COMMON)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci" if os.environ.get("CI") else "default"))


@pytest.fixture(scope="session")
def real_qkv() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The shipped activations of a trained model, (4, 4096, 32) float16."""
    from importlib import resources

    with resources.as_file(resources.files(cqs) / "data" / "text_qkv_4096.npz") as path, np.load(path) as arrays:
        return arrays["q"], arrays["k"], arrays["v"]


@pytest.fixture
def nothing_is_left_behind() -> Iterator[None]:
    """No thread outlives the test, and BLAS has the threads that it had."""
    threads, libraries = set(threading.enumerate()), blas_libraries()
    yield
    assert set(threading.enumerate()) <= threads
    assert blas_libraries()[: len(libraries)] == libraries


@pytest.fixture(scope="module")
def processes() -> Iterator[ProcessPoolExecutor]:
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as pool:
        list(pool.map(int, range(4)))  # its own threads start here, not in a test
        yield pool
