"""Arrays of JAX are attended to as they are; and JAX can trace, differentiate and map over `cqs.jax.attention`."""

import re
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import cqs
from cqs.errors import BackendError, CQSError, DTypeError, OptionError, ShapeError
from cqs.masks import Dense, KeyLengths, Predicate, SlidingWindow
from cqs.testing import assert_exact, assert_exact_gradients

jax = pytest.importorskip("jax")
jnp = jax.numpy

T, S, D, E = 70, 90, 16, 24
Arrays = dict[str, Any]


@pytest.fixture(scope="module")
def arrays() -> Arrays:
    """Inputs of 4 heads that share 2 of keys, in 2 batch entries."""
    shapes = {
        "q": (2, 4, T, D), "k": (2, 2, S, D), "v": (2, 2, S, E), "bias": (4, T, S), "sinks": (4,), "dout": (2, 4, T, E),
    }  # fmt: skip
    keys = jax.random.split(jax.random.key(0), len(shapes) + 1)
    found = {name: jax.random.normal(key, shape) for key, (name, shape) in zip(keys, shapes.items(), strict=False)}
    return {**found, "mask": jax.random.bernoulli(keys[-1], 0.5, (2, 1, T, S))}


def plain(q, k, v, *, bias=None, sinks=None, mask=None):
    """The formula, by JAX."""
    k, v = (jnp.repeat(x, q.shape[-3] // x.shape[-3], axis=-3) for x in (k, v))
    scores = jnp.einsum("...td,...sd->...ts", q, k) / np.sqrt(q.shape[-1])
    scores = scores if bias is None else scores + bias
    scores = scores if mask is None else jnp.where(mask, scores, -jnp.inf)
    if sinks is not None:
        column = jnp.broadcast_to(sinks[..., None, None], (*scores.shape[:-1], 1))
        scores = jnp.concatenate([scores, column], axis=-1)
    return jax.nn.softmax(scores, axis=-1)[..., : k.shape[-2]] @ v


def near(found, expected) -> None:
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), found, expected)


# arrays that are there


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"workers": 7},
        {"memory": "4 MiB"},
        {"kernel": "blockwise"},
        {"softcap": 3.0},
        {"mask": SlidingWindow(9, offset=20)},
    ],
    ids=lambda options: ", ".join(options) or "none",
)
def test_arrays_of_jax_are_attended_to(arrays: Arrays, options: dict[str, Any]) -> None:
    q, k, v = (arrays[name] for name in "qkv")
    out, lse = cqs.attention(q, k, v, return_lse=True, **options)
    assert isinstance(out, jax.Array)
    assert isinstance(lse, jax.Array)
    given = {name: x for name, x in options.items() if name in ("mask", "softcap")}
    assert_exact(np.asarray(out), *map(np.asarray, (q, k, v)), **given)


def test_other_arguments_of_jax_are_taken(arrays: Arrays) -> None:
    q, k, v, bias, sinks, mask = (arrays[name] for name in ("q", "k", "v", "bias", "sinks", "mask"))
    out = cqs.attention(q, k, v, bias=bias, sink_logits=sinks, mask=mask)
    near(out, plain(q, k, v, bias=bias, sinks=sinks, mask=mask))
    by_dense = cqs.attention(q, k, v, bias=bias, sink_logits=sinks, mask=Dense(mask))
    np.testing.assert_array_equal(by_dense, out)


def test_bfloat16_of_jax_stays_bfloat16(arrays: Arrays) -> None:
    q, k, v = (arrays[name].astype(jnp.bfloat16) for name in "qkv")
    out = cqs.attention(q, k, v)
    assert out.dtype == jnp.bfloat16
    assert_exact(np.asarray(out), *map(np.asarray, (q, k, v)))


def test_a_score_mod_may_be_a_function_of_jax(arrays: Arrays) -> None:
    q, k, v = (arrays[name] for name in "qkv")
    out = cqs.attention(q, k, v, score_mod=lambda s, b, h, i, j: jnp.tanh(s))
    expected = cqs.attention(q, k, v, score_mod=lambda s, b, h, i, j: np.tanh(s))
    near(out, expected)


def test_results_go_to_arrays_and_files_that_can_be_written(arrays: Arrays, tmp_path) -> None:
    q, k, v = (arrays[name] for name in "qkv")
    out = np.empty((2, 4, T, E), np.float32)
    assert cqs.attention(q, k, v, out=out) is out
    cqs.attention(q, k, v, out=tmp_path / "out.npy")
    np.testing.assert_array_equal(np.load(tmp_path / "out.npy"), out)
    with pytest.raises(OptionError, match="`out` must be something that can be written to"):
        cqs.attention(q, k, v, out=jnp.zeros_like(arrays["dout"]))


def test_gradients_and_maps_of_arrays_of_jax(arrays: Arrays) -> None:
    q, k, v, dout = (arrays[name] for name in ("q", "k", "v", "dout"))
    out, lse = cqs.attention(q, k, v, return_lse=True)
    gradients = cqs.attention_backward(dout, q, k, v, out, lse)
    assert all(isinstance(x, jax.Array) for x in gradients)
    assert_exact_gradients([np.asarray(x) for x in gradients], *map(np.asarray, (dout, q, k, v)))
    shares = cqs.attention_map(q, k, lse, rows=5, columns=5)
    assert isinstance(shares, jax.Array)
    near(shares.sum(axis=-1), jnp.ones(shares.shape[:-1]))


def test_a_traced_value_is_sent_to_what_can_be_traced(arrays: Arrays) -> None:
    q, k, v = (arrays[name] for name in "qkv")
    with pytest.raises(BackendError, match=r"`q` must hold numbers, got a value that JAX traces; .*`cqs\.jax\.att"):
        jax.jit(cqs.attention)(q, k, v)


# values that JAX traces


def given(arrays: Arrays, *names: str) -> list[Any]:
    return [arrays[name] for name in ("q", "k", "v", *names)]


@pytest.mark.parametrize("workers", [None, 7])
def test_it_can_be_compiled(arrays: Arrays, workers: int | None) -> None:
    run = jax.jit(lambda q, k, v: cqs.jax.attention(q, k, v, workers=workers))
    near(run(*given(arrays)), plain(*given(arrays)))


def test_mask_bias_and_sinks_may_be_traced(arrays: Arrays) -> None:
    @jax.jit
    def run(q, k, v, bias, sinks, mask):
        return cqs.jax.attention(q, k, v, bias=bias, sink_logits=sinks, mask=mask)

    q, k, v, bias, sinks, mask = given(arrays, "bias", "sinks", "mask")
    near(run(q, k, v, bias, sinks, mask), plain(q, k, v, bias=bias, sinks=sinks, mask=mask))


def test_a_mask_that_is_an_array_may_come_beside_another(arrays: Arrays) -> None:
    q, k, v, mask = given(arrays, "mask")
    causal = jnp.tril(jnp.ones((T, S), bool))

    def both(q, mask):
        return cqs.jax.attention(q, k, v, mask=mask, is_causal=True)

    mask = mask.at[..., 0].set(True)  # so that every row sees something
    near(jax.jit(both)(q, mask), plain(q, k, v, mask=mask & causal))

    def each(q, k, v, mask):
        return cqs.jax.attention(q, k, v, mask=mask, is_causal=True)

    near(jax.vmap(each)(q, k, v, mask), plain(q, k, v, mask=mask & causal))


@pytest.mark.parametrize("compiled", [lambda f: f, jax.jit, jax.checkpoint], ids=["plain", "jit", "checkpoint"])
def test_it_can_be_differentiated(arrays: Arrays, compiled: Callable[..., Any]) -> None:
    q, k, v, bias, sinks, mask, dout = given(arrays, "bias", "sinks", "mask", "dout")

    def gradients_of(attend: Callable[..., Any]) -> Any:
        def loss(q, k, v, sinks, bias):
            return (attend(q, k, v, sinks, bias) * dout).sum()

        return jax.grad(compiled(loss), argnums=(0, 1, 2, 3, 4))(q, k, v, sinks, bias)

    found = gradients_of(lambda q, k, v, s, b: cqs.jax.attention(q, k, v, bias=b, sink_logits=s, mask=mask))
    near(found, gradients_of(lambda q, k, v, s, b: plain(q, k, v, bias=b, sinks=s, mask=mask)))


@pytest.mark.parametrize("axes", [(1, T, S), (4, 1, S), (2, 4, T, S), (1, 1)], ids=str)
def test_a_bias_can_be_learned(arrays: Arrays, axes: tuple[int, ...]) -> None:
    q, k, v, dout = given(arrays, "dout")
    bias = jnp.asarray(np.random.default_rng(4).standard_normal(axes, dtype=np.float32))

    def loss(attend, q, bias):
        return (attend(q, k, v, bias=bias) * dout).sum()

    found = jax.grad(partial(loss, cqs.jax.attention), argnums=(0, 1))(q, bias)
    near(found, jax.grad(partial(loss, plain), argnums=(0, 1))(q, bias))
    if len(axes) == 3:  # each call that is mapped over has a gradient of its own of what they share
        each = [
            jax.vmap(jax.grad(lambda b, q, k, v, f=f: (f(q, k, v, bias=b) * dout[0]).sum()), (None, 0, 0, 0))
            for f in (cqs.jax.attention, plain)
        ]
        near(each[0](bias, q, k, v), each[1](bias, q, k, v))


def test_gradients_of_narrow_types_are_narrow(arrays: Arrays) -> None:
    q, k, v = (x.astype(jnp.bfloat16) for x in given(arrays))
    found = jax.grad(lambda *x: cqs.jax.attention(*x).astype(jnp.float32).sum(), argnums=(0, 1, 2))(q, k, v)
    assert [x.dtype for x in found] == [jnp.bfloat16] * 3
    dout = np.ones((2, 4, T, E), np.float32).astype(q.dtype)
    assert_exact_gradients([np.asarray(x) for x in found], dout, *map(np.asarray, (q, k, v)))


def test_an_output_that_nobody_needs_has_no_gradient(arrays: Arrays) -> None:
    def loss(q):
        used, unused = (cqs.jax.attention(x, *given(arrays)[1:]) for x in (q, 2 * q))
        return (used + 0 * jax.lax.stop_gradient(unused)).sum()

    near(jax.grad(loss)(arrays["q"]), jax.grad(lambda q: plain(q, *given(arrays)[1:]).sum())(arrays["q"]))


def test_it_can_be_mapped_over(arrays: Arrays) -> None:
    q, k, v, bias, sinks, mask = given(arrays, "bias", "sinks", "mask")

    def one(q, k, v, mask):
        return cqs.jax.attention(q, k, v, mask=mask, bias=bias, sink_logits=sinks)

    near(jax.vmap(one)(q, k, v, mask), plain(q, k, v, bias=bias, sinks=sinks, mask=mask))
    shared = jax.vmap(lambda q: cqs.jax.attention(q, k[0], v[0]))
    near(shared(q), plain(q, *(jnp.broadcast_to(x[:1], x.shape) for x in (k, v))))


def test_gradients_can_be_mapped_over_and_maps_differentiated(arrays: Arrays) -> None:
    q, k, v, sinks = given(arrays, "sinks")

    def gradients(attend: Callable[..., Any]) -> Any:
        one = jax.grad(lambda q, k, v, s: attend(q, k, v, s).sum(), argnums=(0, 1, 2, 3))
        each = jax.vmap(one, in_axes=(0, None, 0, None))(q, k[0], v, sinks)
        mapped = jax.vmap(attend, in_axes=(0, None, 0, None))
        return each, jax.grad(lambda k: mapped(q, k, v, sinks).sum())(k[0])

    found = jax.jit(lambda: gradients(lambda q, k, v, s: cqs.jax.attention(q, k, v, sink_logits=s)))()
    near(found, gradients(lambda q, k, v, s: plain(q, k, v, sinks=s)))


def test_masks_of_batch_entries_can_be_mapped_over(arrays: Arrays) -> None:
    mask = KeyLengths(np.array([50, S]))
    inputs = [jnp.stack([x, 0.5 * x]) for x in given(arrays)]
    found = jax.vmap(lambda q, k, v: cqs.jax.attention(q, k, v, mask=mask))(*inputs)
    sees = (jnp.arange(S) < jnp.array([50, S])[:, None])[:, None, None]
    near(found, plain(*inputs, mask=sees))


def test_functions_of_batch_entries_can_be_mapped_over(arrays: Arrays) -> None:
    q, k, v = given(arrays)
    mask = Predicate(lambda b, h, i, j: (j <= i + 20) if b == 0 else (j > i))
    alone = [cqs.jax.attention(*(x[n] for x in (q, k, v)), mask=mask) for n in range(2)]
    near(jax.vmap(lambda q, k, v: cqs.jax.attention(q, k, v, mask=mask))(q, k, v), jnp.stack(alone))


def test_arrays_of_numpy_are_as_they_were_when_it_was_traced(arrays: Arrays) -> None:
    mask, bias = np.array(arrays["mask"]), np.array(arrays["bias"])
    q, k, v = given(arrays)
    run = jax.jit(lambda q: cqs.jax.attention(q, k, v, mask=mask, bias=bias, sink_logits=np.zeros(4, np.float32)))
    before = run(q)
    mask[:], bias[:] = True, 0
    np.testing.assert_array_equal(run(q), before)


def test_calls_that_are_not_compiled_do_not_compile_again(arrays: Arrays) -> None:
    from cqs.jax import _differentiable

    q, k, v = given(arrays)
    for _ in range(3):
        misses = _differentiable.cache_info().misses
        jax.grad(lambda q: cqs.jax.attention(q, k, v, mask=SlidingWindow(31)).sum())(q)
    assert _differentiable.cache_info().misses == misses


def test_the_example_of_the_documentation_runs() -> None:
    page = (Path(__file__).parents[1] / "docs/how-to/jax.md").read_text()
    names: Arrays = {"jax": jax, "jnp": jnp, "cqs": cqs}
    keys = jax.random.split(jax.random.key(0), 4)
    names["params"] = {name: jax.random.normal(key, (16, 2, 8)) for name, key in zip("qkv", keys, strict=False)}
    names |= {"x": jax.random.normal(keys[3], (2, 40, 16)), "lengths": jnp.array([30, 40])}
    for example in re.findall(r"```py\n(.*?)```", page, re.DOTALL):
        exec(example.replace("100_000", "1_000"), names)
    assert names["out"].shape == (8, 1000, 64)
    assert set(names["gradients"]) == set("qkv")
    assert all(jnp.isfinite(x).all() for x in names["gradients"].values())


def test_it_is_called_layer_after_layer(arrays: Arrays) -> None:
    x, weights = arrays["k"], 0.2 * jax.random.normal(jax.random.key(1), (3, D, D))

    def loss(attend: Callable[..., Any]) -> Any:
        return jax.jit(jax.grad(lambda x: jax.lax.scan(lambda x, w: (attend(x @ w, x, x), None), x, weights)[0].sum()))

    near(loss(lambda q, k, v: cqs.jax.attention(q, k, v, workers=3))(x), loss(plain)(x))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"workers": 0}, OptionError, "`workers` must be a whole number of at least 1"),
        ({"memory": 1000}, CQSError, "`memory` must be at least"),
        ({"mask": np.ones((3, S), bool)}, ShapeError, "mask"),
        ({"mask": "a"}, CQSError, "mask"),
        ({"bias": "bias"}, OptionError, "`bias` must be an array"),
        ({"bias": np.zeros((T, S), bool)}, DTypeError, "`bias` must be numbers to add"),
        ({"bias": np.zeros((T, S), int)}, DTypeError, "`bias` must have one of the types"),
        ({"sink_logits": np.zeros(4, int)}, DTypeError, "`sink_logits` must have one of the types"),
        ({"is_causal": True, "mask": SlidingWindow(3)}, OptionError, "`mask` must be left out"),
        ({"causal": True}, OptionError, "it is called `is_causal` here"),
    ],
)
def test_options_are_refused_when_it_is_traced(
    arrays: Arrays, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        jax.jit(lambda q, k, v: cqs.jax.attention(q, k, v, **options))(*given(arrays))


def test_what_is_no_array_of_jax_is_refused_without_jax() -> None:
    program = """if 1:
        import sys
        import numpy as np, cqs
        try:
            cqs.jax.attention(*np.ones((3, 1, 4, 8), np.float32))
        except cqs.errors.BackendError as error:
            print(error, "jax" in sys.modules)
    """
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert said.startswith("`q` must be an array of JAX, got ndarray")
    assert said.split()[-1] == "False"  # so it says this, too, where there is none


def test_lengths_that_are_traced_are_refused(arrays: Arrays) -> None:
    q, k, v = given(arrays)
    with pytest.raises(OptionError, match=r"`lengths` must be numbers that are known, .* or a traced array of bool"):
        jax.jit(lambda n: cqs.jax.attention(q, k, v, mask=KeyLengths(n)))(jnp.array([50, S]))


def test_arrays_are_refused_when_it_is_traced(arrays: Arrays) -> None:
    q, k, v, bias, mask = given(arrays, "bias", "mask")
    attend = cqs.jax.attention
    with pytest.raises(BackendError, match="`k` must be an array of JAX"):
        attend(q, np.asarray(k), v)
    with pytest.raises(ShapeError, match="`k` must have the width of `q`"):
        attend(q, k[..., :3], v)
    with pytest.raises(DTypeError, match="`v` must have the data type of `q`"):
        attend(q, k, v.astype(jnp.float16))
    with pytest.raises(ShapeError, match="`mask` must broadcast to"):
        attend(q, k, v, mask=mask[:, :, :3])
    with pytest.raises(DTypeError, match="`mask` must be of type bool"):
        attend(q, k, v, mask=mask.astype(int))
    stopped = jax.grad(lambda b: attend(q, k, v, bias=jax.lax.stop_gradient(b)).sum())(bias)
    assert not stopped.any()
