"""The gradient of sink logits."""

import numpy as np
import pytest
from problems import dout_for, odd_qkv

import cqs
from cqs.backward import sink_logits_backward
from cqs.errors import BackendError, DTypeError, ShapeError
from cqs.masks import Causal

Arrays = list[np.ndarray]


@pytest.fixture
def qkv() -> Arrays:
    return odd_qkv()  # (4, 331, 16), (2, 331, 16), (2, 331, 24)


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16"])
def test_sink_logits_have_a_gradient(qkv: Arrays, dtype: str) -> None:
    q, k, v = (x.astype(dtype) for x in qkv)
    logits, dout = np.array([0.0, 1.0, -2.0, 3.0]), dout_for(q, v)
    wide = np.empty(dout.shape, "float64" if dtype == "float64" else "float32")
    out, lse = cqs.attention(q, k, v, sink_logits=logits, out=wide, return_lse=True, is_causal=True)
    found = sink_logits_backward(dout, out, lse, logits)
    of_sinks = np.exp(logits[:, None] - lse.astype(np.float64))
    expected = -(of_sinks * (dout.astype(np.float64) * out).sum(-1)).sum(-1)
    np.testing.assert_allclose(found, expected, rtol=1e-10 if dtype == "float64" else 1e-4)
    of_one = -(np.exp(logits[0] - lse.astype(np.float64)) * (dout.astype(np.float64) * out).sum(-1)).sum()
    np.testing.assert_allclose(sink_logits_backward(dout, out, lse, logits[:1]), [of_one], rtol=1e-3)


def test_a_sink_that_has_no_weight_has_no_gradient(qkv: Arrays) -> None:
    sinks = np.array([-np.inf, 1.0, -np.inf, 0.0])
    out, lse = cqs.attention(*qkv, sink_logits=sinks, mask=Causal(-5), return_lse=True)
    found = sink_logits_backward(dout_for(qkv[0], qkv[2]), out, lse, sinks)
    assert (found[[0, 2]] == 0).all()
    assert (np.isfinite(found[[1, 3]]) & (found[[1, 3]] != 0)).all()


def test_sinks_that_do_not_belong_to_an_output_are_refused(qkv: Arrays) -> None:
    q, _, v = qkv
    out, lse, sinks = dout_for(q, v), np.zeros(q.shape[:2], np.float32), np.zeros(4, np.float32)
    for wrong, error, message in (
        ((out[:, 1:], out, lse, sinks), ShapeError, "`out` must have the shape of `dout`"),
        ((out, out, lse[:2], sinks), ShapeError, "`lse` must have shape"),
        ((out, out, lse, sinks[:3]), ShapeError, "`sink_logits` must broadcast to"),
        ((out, out, lse.astype(int), sinks), DTypeError, "`lse` must be float32 or float64"),
        ((out.astype(int), out, lse, sinks), DTypeError, "`dout` must have one of the types"),
        ((out, out, lse, None), BackendError, "sink_logits"),
    ):
        with pytest.raises(error, match=message):
            sink_logits_backward(*wrong)  # type: ignore[arg-type]
