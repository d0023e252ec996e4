"""Bad input is refused before anything is allocated, with argument, rule, value and remedy."""

import tracemalloc
from typing import Any

import array_api_strict
import numpy as np
import pytest

import cqs
from cqs.errors import BackendError, CQSError, DTypeError, OptionError, QuorumError, ShapeError, TileError

N = 64


def arrays(*, shapes: tuple[Any, ...] = ((2, N, 8), (2, N, 8), (2, N, 8)), dtype: str = "float32") -> list[np.ndarray]:
    return [np.zeros(shape, dtype) for shape in shapes]


def refused(error: type[CQSError], *words: str, args: Any = None, **options: Any) -> None:
    args = arrays() if args is None else args
    with pytest.raises(error):  # once before measuring: the first use of a library imports parts of it
        cqs.attention(*args, **options)
    tracemalloc.start()
    try:
        with pytest.raises(error) as caught:
            cqs.attention(*args, **options)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    message = str(caught.value)
    for word in words:
        assert word in message, message
    assert " must " in message
    assert ", got " in message or "; got " in message, message
    assert ";" in message, message
    assert peak < 200_000


@pytest.mark.parametrize(
    ("shapes", "words"),
    [
        (((N, 8), (2, N, 8), (2, N, 8)), ("`q`", "(64, 8)", "x[None]")),
        (((2, N, 8), (8,), (2, N, 8)), ("`k`", "(8,)")),
        (((3, 2, N, 8), (2, N, 8), (2, N, 8)), ("`k`", "batch", "(3,)")),
        (((3, 2, N, 8), (3, 2, N, 8), (4, 2, N, 8)), ("`v`", "batch")),
        (((2, N, 8), (2, N, 9), (2, N, 9)), ("`k`", "width", "8")),
        (((2, N, 8), (2, N, 8), (2, N + 1, 8)), ("`v`", "tokens", "65")),
        (((4, N, 8), (2, N, 8), (4, N, 8)), ("`v`", "heads")),
        (((3, N, 8), (2, N, 8), (2, N, 8)), ("`q`", "multiple", "3 heads")),
        (((2, N, 0), (2, N, 0), (2, N, 8)), ("`q`", "width")),
        (((2, N, 8), (2, N, 8), (2, N, 0)), ("`v`", "width")),
        (((0, N, 8), (0, N, 8), (0, N, 8)), ("`q`", "head")),
    ],
)
def test_shapes_that_do_not_fit(shapes: Any, words: tuple[str, ...]) -> None:
    refused(ShapeError, *words, args=arrays(shapes=shapes))


@pytest.mark.parametrize("dtype", ["int64", "complex64", "bool", "longdouble", ">f4"])
def test_types_that_attention_is_not_defined_for(dtype: str) -> None:
    refused(DTypeError, "`q`", "float32", "convert", args=arrays(dtype=dtype))


@pytest.mark.parametrize("axis", [500.0, -3, None, "500"])
def test_shapes_that_are_none(axis: Any) -> None:
    with pytest.raises(ShapeError, match=r"`q` must have axes whose lengths are whole numbers .*, got shape \(8, "):
        cqs.plan((8, axis, 64), (8, 500, 64), (8, 500, 64))


def test_mixed_types() -> None:
    q, k, v = arrays()
    refused(DTypeError, "`v`", "float32", "float64", args=(q, k, v.astype("float64")))


def test_mixed_libraries_and_non_arrays() -> None:
    q, k, v = arrays()
    refused(BackendError, "`k`", "library", "array_api_strict", args=(q, array_api_strict.asarray(k), v))
    refused(BackendError, "`q`", "list", args=([[1.0]], k, v))
    refused(BackendError, "`v`", "None", "array", args=(q, k, None))


def test_mixed_devices() -> None:
    q, k, _ = (array_api_strict.asarray(x) for x in arrays())
    elsewhere = array_api_strict.asarray(np.zeros((2, N, 8), "float32"), device=array_api_strict.Device("device1"))
    refused(BackendError, "`v`", "device", "device1", args=(q, k, elsewhere))


def test_tensors_that_record_gradients() -> None:
    torch = pytest.importorskip("torch")
    x = torch.zeros(1, 4, 4, requires_grad=True)
    refused(BackendError, "`k`", "gradients", "detach", args=(x.detach(), x, x))


@pytest.mark.parametrize("workers", [0, -3, 2.5, "7", True])
def test_worker_counts_that_are_none(workers: Any) -> None:
    refused(OptionError, "`workers`", "at least 1", repr(workers), workers=workers)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"kernel": "cudnn"}, ("`kernel`", "numpy", "'cudnn'")),
        ({"strategy": "rings"}, ("`strategy`", "tiles", "'rings'")),
        ({"scale": float("nan")}, ("`scale`", "finite", "nan")),
        ({"scale": "big"}, ("`scale`", "finite", "big")),
        ({"mask": [[True]]}, ("`mask`", "cqs.masks", "list")),
        ({"mask": cqs.masks.Causal(), "is_causal": True}, ("`mask`", "is_causal", "not both")),
        ({"engine": "dask"}, ("`engine`", "Executor", "dask")),
        ({"memory": 1.5}, ("`memory`", "number of bytes", "1.5")),
        ({"memory": float("nan")}, ("`memory`", "number of bytes", "nan")),
        ({"bias": [[0.0] * N] * N}, ("`bias`", "got [[0.0, 0.0", " ... ", "0.0]]; a number for all scores")),
        ({"progress": "yes"}, ("`progress`", "True", "yes")),
        ({"causal": True}, ("`causal`", "got True; it is called `is_causal` here. Options are workers, memory, ")),
        ({"is_casual": True}, ("`is_casual`", "got True; is `is_causal` meant? Options are")),
        ({"dropout_p": 0.1}, ("`dropout_p`", "got 0.1; leave it out, as attention here is exact. Options are")),
        ({"attn_mask": np.ones((N, N), bool)}, ("`attn_mask`", "; it is called `mask` here. ")),
        ({"attn_mask": np.ones((N, N))}, ("`attn_mask`", "; numbers that are added to scores are called `bias` here.")),
        ({"frobnicate": 1}, ("`frobnicate`", "got 1; Options are workers", "kernel")),
        ({"return_lse": "yes"}, ("`return_lse`", "True or False", "'yes'")),
        ({"on_event": 3}, ("`on_event`", "function", "3", "events.append")),
    ],
)
def test_options_that_do_not_exist_or_fit(options: dict[str, Any], words: tuple[str, ...]) -> None:
    refused(OptionError, *words, **options)


def test_more_workers_than_there_are_covers_for() -> None:
    for more in ({}, {"memory": "1 GiB"}):
        with pytest.raises(
            QuorumError, match=r"`workers` must be at most 10000000 .* got 1000000000; take at most 10000000"
        ):
            cqs.plan(*[(2, N, 8)] * 3, workers=10**9, **more)


def test_a_scheduler_refuses_its_options_when_it_is_made() -> None:
    for options, name in (
        ({"workers": 0}, "workers"),
        ({"memory": "x"}, "memory"),
        ({"strategy": "rings"}, "strategy"),
    ):
        with pytest.raises(OptionError, match=f"`{name}` must be .*, got .*; "):
            cqs.Scheduler(**options)


def test_tensors_without_numbers_can_be_planned_but_not_computed() -> None:
    torch = pytest.importorskip("torch")
    x = torch.empty(2, N, 8, device="meta")
    refused(BackendError, "`q`", "meta", "cqs.plan", args=(x, x, x))
    assert cqs.plan(x, x, x, workers=7).problem == cqs.plan(*[(2, N, 8)] * 3, workers=7).problem


def test_steps_taken_one_by_one_refuse_what_does_not_belong_there() -> None:
    q, k, v = arrays()
    plan, source, kernel = cqs.plan(q, k, v, workers=3), cqs.ArraySource(q, k, v), cqs.kernels.KERNELS["reference"]
    worker, tiler = cqs.Worker(plan.problem, source, kernel.attend), cqs.Tiler(plan, np.empty_like(q))
    partial = worker.run(plan.task(0)).partials[0]
    shorter = cqs.Partial(partial.out[:, :-1], partial.lse[:, :-1])
    for take, error, message in (
        (
            lambda: cqs.Worker(plan.problem, source, kernel),
            OptionError,
            "`attend` must be a function, got Kernel; .*attend`",
        ),
        (
            lambda: cqs.Worker(plan.problem, q, kernel.attend),
            OptionError,
            "`source` must have .*, got ndarray; .*ArraySource",
        ),
        (lambda: cqs.Worker(plan, source, kernel.attend), OptionError, "`problem` must be .*, got Plan; as in"),
        (lambda: cqs.Worker(plan.problem, source, kernel.attend, emit=3), OptionError, "`emit` must be a function"),
        (lambda: worker.run(0), OptionError, r"`task` must be a `Task`, got int; .* `plan.task\(0\)`"),
        (
            lambda: cqs.Scheduler().plan(q),
            OptionError,
            r"`problem` must be an `AttentionProblem`, got ndarray; make one",
        ),
        (lambda: cqs.ArraySource(q, [1.0], v), BackendError, "`k` must be an array .*, got list;"),
        (lambda: cqs.masks.And(cqs.masks.Causal, q), OptionError, r"`mask` must be .*, got the class Causal; call it"),
        (lambda: cqs.masks.Not(3), OptionError, "`mask` must be a mask from .*, got int;"),
        (lambda: cqs.scores.ALiBi.standard(0), OptionError, "`n_heads` must be a whole number of at least 1, got 0;"),
        (
            lambda: cqs.default_workers("many"),
            OptionError,
            "`n_tokens` must be a whole number of at least 0, got 'many'",
        ),
        (
            lambda: cqs.kernels.KERNELS["foo"],
            OptionError,
            "`kernel` must be auto or one of numba, numpy, .*, got 'foo';",
        ),
        (
            lambda: cqs.Tiler(plan.problem, np.empty_like(q)),
            OptionError,
            "`plan` must be a `Plan`, got AttentionProblem;",
        ),
        (
            lambda: tiler.add(None),
            TileError,
            "`result` must be a `TaskResult`, got NoneType; give what `Worker.run` returns",
        ),
        (lambda: tiler.add(partial), TileError, "`result` must be a `TaskResult`, got Partial;"),
        (lambda: cqs.merge(1, 2), OptionError, "`a` must be a `Partial`, got int;"),
        (lambda: cqs.merge(partial, shorter), ShapeError, "`b` must have the shapes of `a`, .* got shapes .*; merge"),
    ):
        with pytest.raises(error, match=message):
            take()
    assert "foo" not in cqs.kernels.KERNELS
    assert cqs.kernels.KERNELS.get("foo") is None


def test_steps_refuse_what_their_plan_was_not_made_for() -> None:
    q, k, v = arrays()
    plan, kernel = cqs.plan(q, k, v, workers=3), cqs.kernels.KERNELS["reference"]
    worker = cqs.Worker(plan.problem, cqs.ArraySource(q, k, v), kernel.attend)
    partial = worker.run(plan.task(0)).partials[0]
    longer = cqs.ArraySource(*(np.concatenate([x, x], axis=-2) for x in (q, k, v)))
    capped = cqs.plan(q, k, v, workers=3, softcap=2.0)
    with_sinks = cqs.plan(q, k, v, workers=3, sink_logits=np.zeros(q.shape[0], q.dtype))
    for take, error, message in (
        (
            lambda: cqs.Worker(plan.problem, longer, kernel.attend),
            ShapeError,
            r"`q` must be \(.*\) of float32, as the problem says, got \(.*\) of float32; a plan is for inputs of",
        ),
        (
            lambda: cqs.Worker(plan.problem, cqs.ArraySource(q, k, v.astype(np.float64)), kernel.attend),
            ShapeError,
            "`v` must be .* of float32, as the problem says, got .* of float64",
        ),
        (
            lambda: cqs.Tiler(capped, np.empty_like(q)).add(worker.run(capped.task(1))),
            TileError,
            "task 1 was computed without a change of scores, and planned with; give `Worker` the `scores`",
        ),
        (
            lambda: cqs.Tiler(with_sinks, np.empty_like(q)),
            OptionError,
            "`sink_logits` must be given, got none; the plan was made with them",
        ),
        (
            lambda: cqs.Tiler(plan, np.empty_like(q), np.zeros((q.shape[0], 1), q.dtype)),
            OptionError,
            "`sink_logits` must be left out, got some; the plan was made without them",
        ),
        (
            lambda: cqs.merge(cqs.Partial(partial.out, partial.lse[:, :-1]), partial),
            ShapeError,
            "`a` must have a log-sum-exp for each row, got shapes",
        ),
    ):
        with pytest.raises(error, match=message):
            take()


def test_a_problem_is_made_of_arrays() -> None:
    q, k, _ = arrays()
    with pytest.raises(BackendError, match="`v` must have a shape and a dtype, got NoneType; give an array"):
        cqs.AttentionProblem.of(q, k, None)


def test_quorums_for_cross_attention() -> None:
    args = arrays(shapes=((2, N, 8), (2, N + 1, 8), (2, N + 1, 8)))
    refused(OptionError, "`strategy`", "64 and 65", "tiles", args=args, strategy="cqs")


def test_a_kernel_for_another_library() -> None:
    refused(
        OptionError, "`kernel`", "numpy", "auto", args=[array_api_strict.asarray(x) for x in arrays()], kernel="numpy"
    )


def test_outputs_that_cannot_be_written_to() -> None:
    q, k, v = arrays()
    fixed = np.zeros((2, N, 8), "float32")
    fixed.flags.writeable = False
    shared = np.zeros((2, 2 * N, 8), "float32")
    refused(ShapeError, "`out`", "(2, 64, 8)", "(2, 64, 9)", out=np.zeros((2, N, 9), "float32"))
    refused(DTypeError, "`out`", "float32", "float64", out=np.zeros((2, N, 8)))
    refused(DTypeError, "`out`", "float16", args=[x.astype("float16") for x in (q, k, v)], out=np.zeros((2, N, 8)))
    refused(OptionError, "`out`", "read-only", out=fixed)
    refused(OptionError, "`out`", "`q`", "memory", args=(q, k, v), out=q)
    refused(OptionError, "`out`", "`v`", "memory", args=(q, k, shared[:, N // 2 : -N // 2]), out=shared[:, :N])
    refused(BackendError, "`out`", "library", out=array_api_strict.zeros((2, N, 8), dtype=array_api_strict.float32))


def test_an_output_over_a_bias_or_a_mask_is_refused() -> None:
    q, k, v = arrays()
    out = np.zeros(q.shape, q.dtype)
    bias = np.lib.stride_tricks.as_strided(out, (N, N), (0, out.itemsize))
    dense = np.lib.stride_tricks.as_strided(out.view(bool), (N, N), (0, 1))
    refused(OptionError, "`out`", "share no memory with `bias`", args=(q, k, v), out=out, bias=bias)
    for mask in (dense, ~cqs.masks.Dense(dense) & cqs.masks.Causal(3)):
        refused(OptionError, "`out`", "share no memory with `mask`", args=(q, k, v), out=out, mask=mask)


def test_an_output_between_the_elements_of_an_input_is_no_overlap() -> None:
    both = np.zeros((2, N, 16), "float32")
    q, k, _ = arrays()
    cqs.attention(q, k, both[..., ::2], out=both[..., 1::2])


def test_overlap_is_seen_in_torch_tensors() -> None:
    torch = pytest.importorskip("torch")
    for dtype in (torch.float32, torch.bfloat16):
        x = torch.zeros(2, 2 * N, 8, dtype=dtype)
        q = torch.zeros(2, N, 8, dtype=dtype)
        refused(OptionError, "`out`", "`k`", args=(q, x[:, N:], q), out=x[:, N // 2 : -N // 2])


def test_a_refused_call_leaves_its_arrays_alone() -> None:
    q, k, v = (x + 1 for x in arrays())
    out = np.full((2, N, 8), 7, "float32")
    with pytest.raises(OptionError):
        cqs.attention(q, k, v, out=out, workers=0)
    assert (out == 7).all()
    assert all((x == 1).all() for x in (q, k, v))


def test_plan_refuses_what_attention_refuses() -> None:
    with pytest.raises(ShapeError, match="multiple"):
        cqs.plan((3, N, 8), (2, N, 8), (2, N, 8))
    with pytest.raises(DTypeError, match="int8"):
        cqs.plan((2, N, 8), (2, N, 8), (2, N, 8), dtype="int8")
    with pytest.raises(OptionError, match="is_causal"):
        cqs.plan((2, N, 8), (2, N, 8), (2, N, 8), causal=True)  # type: ignore[arg-type]
