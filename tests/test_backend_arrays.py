"""Questions about arrays and errors of several libraries: where elements lie, and whether memory is used up."""

from typing import Any

import numpy as np
import pytest
from numpy.lib.stride_tricks import as_strided

import cqs
from cqs.backend import overlaps_itself
from cqs.errors import OptionError


def test_tensors_that_overlap_themselves_are_refused_as_outputs() -> None:
    torch = pytest.importorskip("torch")
    q = torch.ones(2, 300, 8)
    for out in (
        torch.empty(2408).as_strided((2, 300, 8), (8, 8, 1)),
        torch.empty(1, 300, 8).expand(2, 300, 8),
        torch.empty(2, 300, 1).expand(2, 300, 8),
    ):
        with pytest.raises(OptionError, match="`out` must have each element in a place of its own, got overlapping"):
            cqs.attention(q, q, q, out=out)


@pytest.mark.parametrize("library", ["numpy", "torch"])
def test_views_whose_elements_lie_apart_do_not_overlap_themselves(library: str) -> None:
    xp: Any = pytest.importorskip(library)
    x = xp.zeros((4, 6, 8))
    for view in (x, x.swapaxes(0, 2), x[1:, ::2, ::3], x[:1, :, :0], x[0, 0, 0]):
        assert not overlaps_itself(view)


def test_elements_that_overlap_in_part_do_overlap() -> None:
    assert overlaps_itself(as_strided(np.zeros(4, np.float32), (3,), (2,)))
