# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 04 The Workers: partial results that stay finite
#
# **Question.** A worker sees some of the keys only. What should it send back, so that the whole can be made of the
# parts, and so that no number on the way overflows?

# %%
import matplotlib.pyplot as plt
import numpy as np

import cqs
from checks.workers import check_lse, check_overflow
from cqs import ArraySource, Partial, Worker, merge
from cqs.kernels import KERNELS
from cqs.testing import assert_exact

# %% [markdown]
# ## A small example by hand
#
# One query meets three keys. The scores are $\log 2$, $\log 3$ and $\log 5$, so the exponentials are 2, 3 and 5. The
# values are 10, 20 and 30. The output is
#
# $$ o = \frac{2 \cdot 10 + 3 \cdot 20 + 5 \cdot 30}{2 + 3 + 5} = 23. $$
#
# Now the first two keys go to one worker, and the third to another. Each can compute a numerator and a denominator.
# Worker one has 80 and 5, worker two has 150 and 5. Numerators add up, denominators add up, and 230/10 = 23.
#
# That is what workers send in Bian and Somani's paper *CQS-Attention*: $\sum_j e^{s_j} v_j$ and $\sum_j e^{s_j}$, of
# raw scores. It is correct, in exact arithmetic.

# %%
scores, values = np.log([2.0, 3.0, 5.0]), np.array([10.0, 20.0, 30.0])
parts = [slice(0, 2), slice(2, 3)]
numerators = [(np.exp(scores[part]) * values[part]).sum() for part in parts]
denominators = [np.exp(scores[part]).sum() for part in parts]
assert np.isclose(sum(numerators) / sum(denominators), 23)
numerators, denominators

# %% [markdown]
# ## What goes wrong at score 1000
#
# Floating-point numbers end. The exponential of 1000 is beyond all of them, and infinity over infinity is not a
# number. At −1000 all the exponentials are 0, and so is the sum. The right answer is 20 in both cases, the mean,
# since equal scores give equal weights.

# %%
for score in (0.0, 1000.0, -1000.0):
    equal = np.full(3, score)
    with np.errstate(all="ignore"):
        raw = (np.exp(equal) * values).sum() / np.exp(equal).sum()
    q, k, v = np.array([[[score]]]), np.ones((1, 3, 1)), values[None, :, None]
    print(f"score {score:6}: raw exponentials give {raw}, cqs gives {cqs.attention(q, k, v, scale=1.0)[0, 0, 0]}")
    assert np.isclose(cqs.attention(q, k, v, scale=1.0)[0, 0, 0], 20)

# %% [markdown]
# 1000 is not the threshold. In each type it is the logarithm of the largest number, and in float16 that is a small
# score indeed:

# %%
for dtype in (np.float16, np.float32, np.float64):
    print(f"{np.dtype(dtype).name}: exp overflows above {np.log(float(np.finfo(dtype).max)):.2f}")

# %% [markdown]
# ## The remedy: a mean and a logarithm
#
# Send the *output* o of the part, which is a mean of values and so never larger than they are. And send the
# *log-sum-exp* $\ell = \log \sum_j e^{s_j}$, which is about as large as the largest score. Neither can overflow if
# the inputs do not.
#
# To compute $\ell$, let t be the largest score, and use $\ell = t + \log \sum_j e^{s_j - t}$. Now every exponent is
# at most 0, and one of them is 0. The sum is at least 1.
#
# Two parts are put together by the weights $e^{\ell_a - \ell}$ and $e^{\ell_b - \ell}$, with
# $\ell = \log(e^{\ell_a} + e^{\ell_b})$. This is `cqs.merge`. For the example, $\ell_a = \ell_b = \log 5$, $o_a = 16$
# and $o_b = 30$: equal weights, and $(16 + 30)/2 = 23$.

# %%
a = Partial(np.array([[16.0]]), np.array([np.log(5.0)]))
b = Partial(np.array([[30.0]]), np.array([np.log(5.0)]))
both = merge(a, b)
assert np.isclose(both.out[0, 0], 23)
assert np.isclose(both.lse[0], np.log(10))

# %% [markdown]
# ## A picture
#
# Two keys in float32, with scores s and −s, and values 1 and 0. The output is $1/(1 + e^{-2s})$, close to 1. Raw
# exponentials give it up to s = 88, and NaN from there on, where the orange line ends on the left. The log-sum-exp, on
# the right, goes on for ever: it is as large as the larger score.

# %%
s = np.linspace(0, 150, 301, dtype=np.float32)
k, v = np.array([[[1], [-1]]], dtype=np.float32), np.array([[[1], [0]]], dtype=np.float32)
with np.errstate(all="ignore"):
    raw = np.exp(s) / (np.exp(s) + np.exp(-s))
out, lse = cqs.attention(s[None, :, None], k, v, scale=1.0, return_lse=True)

figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3), layout="constrained")
left.plot(s, raw, color="#E69F00", lw=4, label="by raw exponentials")
left.plot(s, out[0, :, 0], color="black", lw=1, label="by cqs")
left.set(xlabel="score s", ylabel="output", ylim=(0, 1.1))
right.plot(s, lse[0], color="#0072B2")
right.set(xlabel="score s", ylabel="log-sum-exp")
legend = left.legend(loc="lower right")

# %%
assert np.isnan(raw[s > 88.8]).all()
assert np.isfinite(out).all()
assert np.isfinite(lse).all()

# %% [markdown]
# ## A Worker runs a Task
#
# A `Worker` has a problem, a source of tokens, and a kernel. It runs tasks, and keeps nothing. Here are 4 heads of
# 700 tokens, and task 2 of 7. There is one `Partial` for each query group of the task.

# %%
rng = np.random.default_rng(0)
q, k, v = rng.standard_normal((3, 4, 700, 16), dtype=np.float32)
plan = cqs.plan(q, k, v, workers=7)
worker = Worker(plan.problem, ArraySource(q, k, v), KERNELS["reference"].attend)
result = worker.run(plan.task(2))
for strip, partial in zip(result.task.strips, result.partials, strict=True):
    keys = [group.index for group in strip.keys]
    print(
        f"queries of group {strip.query.index}, keys of groups {keys}: out {partial.out.shape}, lse {partial.lse.shape}"
    )

# %% [markdown]
# ## Checked by the library: a worker needs its own groups only
#
# The strongest way to show that nothing else is read is to spoil everything else. Put NaN into every token that
# worker 2 does not hold. One read of it would spread to the result. The result has the same bits as before.

# %%
spoiled = [np.full_like(x, np.nan) for x in (q, k, v)]
for group in plan.task(2).key_groups:
    for x, original in zip(spoiled, (q, k, v), strict=True):
        x[:, group.start : group.stop] = original[:, group.start : group.stop]

again = Worker(plan.problem, ArraySource(*spoiled), KERNELS["reference"].attend).run(plan.task(2))
for before, after in zip(result.partials, again.partials, strict=True):
    assert np.array_equal(before.out, after.out)
    assert np.array_equal(before.lse, after.lse)
print(f"{np.isnan(spoiled[0]).mean():.0%} of the tokens are NaN, and worker 2 did not notice")

# %% [markdown]
# This also shows why a failed task may simply be run again, anywhere: it always gives the same result.
#
# ## Checked by the library: stability
#
# Scores of ten thousand and more, in float32, are no worse than the formula that subtracts the maximum:

# %%
for scale in (1e-3, 1.0, 1e3):
    out, lse = cqs.attention(q, k, v, scale=scale, workers=7, return_lse=True)
    assert_exact(out, q, k, v, scale=scale, lse=lse)
    print(f"scale {scale:6}: log-sum-exps from {lse.min():.1f} to {lse.max():.1f}")

# %% [markdown]
# A constant that is added to all scores of a query drops out of the weights, and moves the log-sum-exp by just
# itself. With this an attention layer can be checked from outside.

# %%
shift = np.full((1, 1), 50.0, dtype=np.float32)
plain, plain_lse = cqs.attention(q, k, v, return_lse=True)
moved, moved_lse = cqs.attention(q, k, v, bias=shift, return_lse=True)
assert np.allclose(moved, plain, atol=1e-5)
assert np.allclose(moved_lse, plain_lse + 50, atol=1e-4)

# %% [markdown]
# ## One step further: half precision
#
# Inputs are often float16 or bfloat16. Scores and sums are then kept in float32, and a partial result is float32,
# too: it will be added to others, and rounding at each addition would be lost accuracy. Only the end result is
# rounded.

# %%
halves = [x.astype(np.float16) for x in (q, k, v)]
half_plan = cqs.plan(*halves, workers=7)
half = Worker(half_plan.problem, ArraySource(*halves), KERNELS["numpy"].attend).run(half_plan.task(2))
assert half.partials[0].out.dtype == np.float32
out = cqs.attention(*halves, workers=7)
assert out.dtype == np.float16
assert_exact(out, *halves)

# %% [markdown]
# ## Exercise 1
#
# Which is the smallest whole number x such that exp(x) is infinite in float32?

# %% tags=["exercise"]
overflow = ...

check_overflow(overflow)

# %% [markdown]
# ## Exercise 2
#
# Write a function that returns the log-sum-exp of a list of scores. Scores may be 1000 or −1000, some or all of them
# may be −inf, and the list may be empty.

# %% tags=["exercise"]
my_lse = ...  # a function: write it above with `def`, or here with `lambda scores: ...`

check_lse(my_lse)

# %% [markdown]
# ## References
#
# - M. Milakov and N. Gimelshein, *Online normalizer calculation for softmax*, arXiv 1805.02867.
# - P. Blanchard, D. J. Higham and N. J. Higham, *Accurately computing the log-sum-exp and softmax functions*, IMA J.
#   Numer. Anal. 41 (2021) 2311–2330.
# - Y. Bian and A. K. Somani, *CQS-Attention*, IEEE Access 13 (2025) 35527–35538: numerators and denominators of raw
#   scores.
