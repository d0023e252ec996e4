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
# # 10 Gradients: the way back
#
# **Question.** A model is trained by gradients. How much a key matters depends on every query that sees it, and on all
# other keys that those queries see. Do the workers have to talk now?

# %%
import matplotlib.pyplot as plt
import numpy as np
import sympy

import cqs
from checks.gradients import check_ratio, check_score_gradients
from cqs import ArraySource
from cqs.backward import GradientAdder, GradientSource, GradientWorker, differentiate_heads
from cqs.plot import tile_map
from cqs.sources import ArrayInput
from cqs.testing import assert_exact_gradients

# %% [markdown]
# ## A small example by hand
#
# One query sees two keys, with weights $p = (1/4, 3/4)$ and values $v = (0, 8)$. Its output is $o = 6$. Now raise the
# first score a little. Its weight grows, so the other weight has to shrink, and the output moves towards the first
# value: from 6 towards 0. How fast?
#
# $$ \frac{\partial o}{\partial s_j} = p_j\,(v_j - o): \qquad
#    \tfrac14\,(0 - 6) = -1.5, \qquad \tfrac34\,(8 - 6) = 1.5. $$
#
# The two are each other's opposite. They must be: raising both scores alike changes nothing.

# %%
p, values = np.array([0.25, 0.75]), np.array([0.0, 8.0])
o = p @ values
slopes = p * (values - o)
assert o == 6
assert np.array_equal(slopes, [-1.5, 1.5])

scores, step = np.log(p), 1e-6
raised = np.exp(scores + np.array([step, 0]))
assert np.isclose((raised @ values / raised.sum() - o) / step, -1.5, atol=1e-4)

# %% [markdown]
# SymPy proves the formula, here for three keys:

# %%
s = sympy.symbols("s1:4", real=True)
v = sympy.symbols("v1:4", real=True)
total = sum(map(sympy.exp, s))
weights = [sympy.exp(x) / total for x in s]
mean = sum(weight * x for weight, x in zip(weights, v, strict=True))
assert all(sympy.simplify(mean.diff(s[j]) - weights[j] * (v[j] - mean)) == 0 for j in range(3))
sympy.simplify(mean.diff(s[0]))

# %% [markdown]
# ## What a pair adds
#
# Let `dout` be the gradient of what is minimised with respect to the output. By the chain rule, pair (i, j) of query i
# and key j changes it by
#
# $$ \mathrm{d}s_{ij} = p_{ij}\,(\mathrm{dout}_i \cdot v_j - \delta_i), \qquad \delta_i = \mathrm{dout}_i \cdot o_i, $$
#
# for each unit of its score $s_{ij} = \text{scale}\; q_i \cdot k_j$, and so it adds to the gradients
#
# $$ \mathrm{d}v_j \mathrel{+}= p_{ij}\,\mathrm{dout}_i, \qquad
#    \mathrm{d}q_i \mathrel{+}= \text{scale}\;\mathrm{d}s_{ij}\,k_j, \qquad
#    \mathrm{d}k_j \mathrel{+}= \text{scale}\;\mathrm{d}s_{ij}\,q_i. $$
#
# Look at what is in there: $q_i$, $k_j$, $v_j$, which the owner of the tile holds anyway; and what is known of row i:
# $\mathrm{dout}_i$, $\delta_i$, and the log-sum-exp $\ell_i$, for $p_{ij} = e^{s_{ij} - \ell_i}$. All that the *other*
# keys have to do with it is in the two numbers $\delta_i$ and $\ell_i$. One is known from the way there, and the other
# is made of output and `dout` before any tile is touched. So nobody has to talk.
#
# In NumPy, all pairs at once:

# %%
rng = np.random.default_rng(0)
q, k, v, dout = rng.standard_normal((4, 1, 84, 16))
out, lse = cqs.attention(q, k, v, return_lse=True)
scale = 16**-0.5

p = np.exp(scale * q @ k.swapaxes(-1, -2) - lse[..., None])
delta = (dout * out).sum(-1, keepdims=True)
ds = p * (dout @ v.swapaxes(-1, -2) - delta)
formula = scale * ds @ k, scale * ds.swapaxes(-1, -2) @ q, p.swapaxes(-1, -2) @ dout

for own, expected in zip(cqs.attention_backward(dout, q, k, v, out, lse, workers=7), formula, strict=True):
    assert np.allclose(own, expected, atol=1e-12)

# %% [markdown]
# And the derivative is what it claims to be: a small step in q changes what is minimised by as much as the gradient
# says.

# %%
dq, dk, dv = formula
step = 1e-6 * rng.standard_normal(q.shape)
rise = (dout * (cqs.attention(q + step, k, v) - cqs.attention(q - step, k, v))).sum() / 2
assert np.isclose(rise, (dq * step).sum(), rtol=1e-6)

# %% [markdown]
# ## The tasks, backwards
#
# The plan is the same as on the way there. A worker computes what its tiles add, and returns sums for its queries and
# for its keys. Several workers hold the same query, and the same key, and each has seen some of its pairs only. So
# their sums have to be merged. On the way there that took weights. Here they are just added, in any order: it is the
# simplest merge there is, with 0 as its identity.

# %%
plan = cqs.plan(q, k, v, workers=7)
source = GradientSource(plan.problem, ArraySource(q, k, v), *map(ArrayInput, (out, dout, lse[..., None])))
worker = GradientWorker(plan.problem, source, differentiate_heads)
results = [worker.run(task) for task in plan.tasks()]

adder = GradientAdder(plan, q)
for i in rng.permutation(7):
    adder.add(results[i])
assert np.allclose(adder.result().dk, dk, atol=1e-12)

# %% [markdown]
# ## A picture: who contributes to which keys
#
# On the left the tiles of worker 2. On the right, for all workers, how large their contributions to dk are, group by
# group. Each worker has something to say about the three groups of keys that it holds. What is in a column adds up to
# that group's gradient.

# %%
sizes, summed = np.zeros((7, 7)), np.zeros_like(k)
for result in results:
    for group, (of_keys, _) in zip(result.task.key_groups, result.keys, strict=True):
        sizes[result.task.index, group.index] = np.linalg.norm(of_keys)
        summed[:, group.start : group.stop] += of_keys
figure, axes = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
tile_map(plan, worker=2, ax=axes[0])
image = axes[1].imshow(np.where(sizes > 0, sizes, np.nan), cmap="Blues", vmin=0)
axes[1].set(title="norm of what is added to dk", xlabel="group of keys", ylabel="worker")
figure.colorbar(image, ax=axes[1])
assert (np.count_nonzero(sizes, axis=0) == 3).all()
assert np.allclose(summed, dk, atol=1e-12)

# %% [markdown]
# ## Checked by the library
#
# `assert_exact_gradients` holds gradients to float64, as `assert_exact` does outputs. A causal mask, grouped heads and
# float32 make no difference to the argument:

# %%
grouped = [rng.standard_normal((heads, 300, 16), dtype=np.float32) for heads in (4, 4, 2, 2)]
dout32, q32, k32, v32 = grouped
out32, lse32 = cqs.attention(q32, k32, v32, is_causal=True, return_lse=True)
found = cqs.attention_backward(dout32, q32, k32, v32, out32, lse32, is_causal=True, workers=13)
assert_exact_gradients(found, dout32, q32, k32, v32, is_causal=True)

# %% [markdown]
# ## What it takes
#
# The T x S weights are made again, tile by tile, and thrown away again. What has to be kept from the way there is the
# output and one number for each query. The alternative is to keep the weights:

# %%
T = 100_000
kept_by_formula, kept = T * T * 4, T * (64 + 1) * 4
print(f"weights {kept_by_formula / 1e9:.0f} GB a head, output and log-sum-exp {kept / 1e6:.0f} MB")

# %% [markdown]
# ## One step further: gradients that cancel
#
# Softmax does not notice when a number is added to all scores of a row. So $\sum_j \mathrm{d}s_{ij} = 0$, as in the
# example by hand. Two things follow that one can see in the gradients:
#
# 1. $\sum_j \mathrm{d}k_j = \text{scale} \sum_i q_i \sum_j \mathrm{d}s_{ij} = 0$: the gradients of all keys add up to
#    nothing. With a mask, too, since it holds row by row; but not with a soft cap, or with a sink.
# 2. Add one vector to all keys: every score of a row changes by the same number. The output stays as it is, and so do
#    all three gradients.

# %%
assert np.allclose(dk.sum(axis=-2), 0, atol=1e-12)
assert np.abs(dk).sum(axis=-2).min() > 1

moved = k + rng.standard_normal(16)
out_moved, lse_moved = cqs.attention(q, moved, v, return_lse=True)
assert np.allclose(out_moved, out, atol=1e-12)
of_moved = cqs.attention_backward(dout, q, moved, v, out_moved, lse_moved)
assert all(np.allclose(own, expected, atol=1e-10) for own, expected in zip(of_moved, formula, strict=True))

# %% [markdown]
# Values have no such law: the gradient of v can be anything. Their sum is that of `dout`, for each query spreads
# weights that add up to one.

# %%
assert np.allclose(dv.sum(axis=-2), dout.sum(axis=-2), atol=1e-12)

# %% [markdown]
# ## Exercise 1
#
# Attention multiplies D + E numbers for each pair: a score, and a weight with a value. Count the multiplications of the
# way back, for D = E: the score once more, `dout` with v, and the three sums. How many times as many are they?

# %% tags=["exercise"]
ratio = ...

check_ratio(ratio)

# %% [markdown]
# ## Exercise 2
#
# Write the gradients of one row's scores: a function of its weights and of its numbers `dout` · v, both lists.

# %% tags=["exercise"]
score_gradients = ...  # a function of two lists that returns a list

check_score_gradients(score_gradients)

# %% [markdown]
# ## References
#
# - T. Dao et al., *FlashAttention*, arXiv 2205.14135, algorithm 4: weights made again on the way back.
# - M. Rabe and C. Staats, *Self-attention Does Not Need O(n²) Memory*, arXiv 2112.05682: gradients in chunks.
