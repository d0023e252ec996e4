"""Calls as users write them, which a type checker must accept: mypy reads this file, and nothing runs it."""

import numpy as np

import cqs
from cqs.masks import Causal, Documents, KeyLengths, SlidingWindow
from cqs.scores import ALiBi
from cqs.testing import assert_exact
from cqs.verify import verify_rows


def calls(wants_lse: bool) -> None:
    """Give options in the forms that the documentation names."""
    x = np.zeros((2, 8, 4), np.float32)
    out = cqs.attention(x, x, x, mask=np.ones((8, 8), bool), bias=ALiBi([0.5, 0.25]), out="out.npy")
    out, lse = cqs.attention(x, x, x, mask=Documents([3, 5]) & ~Causal([3, 5]), return_lse=True)
    cqs.attention("q.npy", "k.npy", "v.npy", mask=KeyLengths([4, 2]) | SlidingWindow(3), return_lse=wants_lse)
    cqs.plan((2, 8, 4), (2, 8, 4), (2, 8, 4), mask=np.ones((8, 8), bool), memory="1 GiB")
    assert_exact(out, x, x, x, mask=np.ones((8, 8), bool), lse=lse)
    verify_rows(out, x, x, x, mask=np.ones((8, 8), bool), bias=ALiBi((0.5, 0.25)))
