"""What cuDNN makes NaN of because of hidden keys is computed again: on fakes, and with `-m gpu` on a GPU."""

from types import ModuleType
from typing import Any

import cuda_emulation
import cuda_on_cpu
import numpy as np
import pytest
from fake_cupy import Machine, cupy, fake_gpu  # noqa: F401
from test_cudnn_kernel import Case, computed, cudnn, true_cupy  # noqa: F401

from cqs.masks import Causal, Documents, SlidingWindow
from cqs.testing import assert_exact


@pytest.fixture(params=[kind for kind in ("numpy", "cuda") if kind == "numpy" or cuda_on_cpu.HAS_COMPILER])
def repairs(request: pytest.FixtureRequest, fake_gpu: Machine) -> None:  # noqa: F811
    """The kernel that computes rows again, in NumPy and as it is, run on the CPU."""
    if request.param == "cuda":
        fake_gpu.kernels.update(cuda_emulation.ON_CPU)


CUT = {
    "causal": Case(heads=(4, 2), mask=Causal()),
    "causal, more keys": Case(queries=20, keys=50, mask=Causal(10), dtype="bfloat16", widths=(16, 24)),
    "later": Case(mask=~Causal(3), batch=(2,)),
    "band": Case(queries=70, keys=70, mask=SlidingWindow(9), widths=(24, 136)),
    "window, chunks": Case(queries=60, keys=60, mask=SlidingWindow(25), chunks=(30, 30), dtype="bfloat16"),
    "documents, causal": Case(mask=Documents((9, 14, 17)) & Causal()),
}


def check_poisoned_keys(cupy: Any, case: Case, poison: float) -> None:  # noqa: F811
    q, k, v = case.arrays()
    k[..., 17, :] = k[..., 0, 20, 3] = poison
    mask = case.mask.bind(case.batch, case.heads[0], case.queries, case.keys)
    out, lse = computed(cupy, case, *(cupy.asarray(x) for x in (q, k, v)))
    with np.errstate(all="ignore"):
        assert_exact(out.astype(q.dtype), q, k, v, scale=case.widths[0] ** -0.5, mask=mask, lse=lse)


def check_poisoned_values(cupy: Any, case: Case, poison: float) -> None:  # noqa: F811
    q, k, v = case.arrays()
    poisoned = v.copy()
    poisoned[..., 17, 3] = poison
    mask = case.mask.bind(case.batch, case.heads[0], case.queries, case.keys)
    sees = mask.block(range(case.queries), range(case.keys))[:, 17]
    assert 0 < sees.sum() < case.queries
    clean, _ = computed(cupy, case, *(cupy.asarray(x) for x in (q, k, v)))
    out, lse = computed(cupy, case, *(cupy.asarray(x) for x in (q, k, poisoned)))
    np.testing.assert_array_equal(out[..., sees, 3], np.float32(poison))
    touched = np.zeros(out.shape, dtype=bool)
    touched[..., sees, 3] = True
    mended = np.where(touched, clean, out).astype(q.dtype)
    assert_exact(mended, q, k, v, scale=case.widths[0] ** -0.5, mask=mask, lse=lse)


_CHECKS = {"keys": check_poisoned_keys, "values": check_poisoned_values}
_POISON = [np.nan, np.inf, -np.inf]


@pytest.mark.thinned(3)
@pytest.mark.parametrize("poison", _POISON)
@pytest.mark.parametrize("name", CUT)
@pytest.mark.parametrize("what", _CHECKS)
@pytest.mark.usefixtures("repairs", "cudnn")
def test_what_is_not_finite_reaches_only_rows_that_see_it(
    cupy: ModuleType,  # noqa: F811
    what: str,
    name: str,
    poison: float,
) -> None:
    _CHECKS[what](cupy, CUT[name], poison)


@pytest.mark.gpu
@pytest.mark.parametrize("poison", _POISON)
@pytest.mark.parametrize("name", CUT)
@pytest.mark.parametrize("what", _CHECKS)
def test_what_is_not_finite_reaches_only_rows_that_see_it_on_a_gpu(what: str, name: str, poison: float) -> None:
    _CHECKS[what](true_cupy(), CUT[name], poison)
