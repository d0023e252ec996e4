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
# # 05 The Tiler: merging in any order
#
# **Question.** Partial results come back from many workers, whenever they are done. May they be merged in any order,
# and in any grouping? And where does this freedom come from?

# %%
from functools import reduce

import matplotlib.pyplot as plt
import numpy as np
import sympy

import cqs
from checks.tiler import check_depth, check_merge
from cqs import ArraySource, CyclicQuorumSet, Partial, Tiler, Worker, merge
from cqs.errors import TileError
from cqs.kernels import KERNELS
from cqs.testing import assert_exact

# %% [markdown]
# ## A small example by hand
#
# A partial result $(o, \ell)$ is a mean and the logarithm of its weight. Think of means of exam marks: 16 points on
# average in a class of 5, 30 in a class of 10, 22 in a class of 25. The mean of all comes out the same whether the
# first two classes are put together first, or the last two: $(16 \cdot 5 + 30 \cdot 10 + 22 \cdot 25)/40 = 23.25$.

# %%
classes = [
    Partial(np.array([[mark]]), np.array([np.log(size)])) for mark, size in ((16.0, 5.0), (30.0, 10.0), (22.0, 25.0))
]
a, b, c = classes
left, right = merge(merge(a, b), c), merge(a, merge(b, c))
assert np.isclose(left.out[0, 0], 23.25)
assert np.isclose(right.out[0, 0], 23.25)
assert np.isclose(np.exp(left.lse[0]), 40)

# %% [markdown]
# ## The law
#
# A set with an associative operation and an identity is a *monoid*. Partial results with `merge` are one, and it is
# commutative:
#
# 1. $(a \cdot b) \cdot c = a \cdot (b \cdot c)$,
# 2. $a \cdot b = b \cdot a$,
# 3. $a \cdot e = a$, where e is the result of a query that saw no key: output 0 and log-sum-exp −∞.
#
# And attention maps the joining of key sets to `merge`: a homomorphism, if you like the word. Everything else in this
# notebook follows.

# %%
empty = Partial.empty(np, (1, 1), np.dtype(np.float64))
print(empty)
same = merge(a, empty)
assert np.array_equal(same.out, a.out)
assert np.array_equal(same.lse, a.lse)
assert merge(empty, empty).lse[0] == -np.inf  # and not NaN

# %% [markdown]
# The laws as a computation with symbols. A partial result of weight $e^{\ell}$ is here written with its weight w:

# %%
o1, o2, o3 = sympy.symbols("o1:4")
w1, w2, w3 = sympy.symbols("w1:4", positive=True)
lefts = (o1 * w1 + o2 * w2) / (w1 + w2), w1 + w2
rights = (o2 * w2 + o3 * w3) / (w2 + w3), w2 + w3
left_first = (lefts[0] * lefts[1] + o3 * w3) / (lefts[1] + w3)
right_first = (o1 * w1 + rights[0] * rights[1]) / (w1 + rights[1])
assert sympy.simplify(left_first - right_first) == 0
sympy.simplify(left_first)

# %% [markdown]
# ## A picture: how much each part counts
#
# Take the queries of group 0, with W = 31. Six workers hold this group, and they share its row of the score matrix.
# The share of a part in the final output is $e^{\ell_i - \ell}$. The shares of a query add up to one; here are those
# of two queries.

# %%
rng = np.random.default_rng(0)
q, k, v = (2 * rng.standard_normal((3, 1, 700, 16))).astype(np.float32)
plan = cqs.plan(q, k, v, workers=31)
worker = Worker(plan.problem, ArraySource(q, k, v), KERNELS["reference"].attend)
results = [worker.run(task) for task in plan.tasks()]
parts = {
    result.task.index: partial
    for result in results
    for strip, partial in zip(result.task.strips, result.partials, strict=True)
    if strip.query.index == 0
}
total = reduce(merge, parts.values())
figure, axes = plt.subplots(1, 2, figsize=(10, 2.6), layout="constrained", sharey=True)
for ax, query in zip(axes, (3, 8), strict=True):
    shares = [float(np.exp(part.lse[0, query] - total.lse[0, query])) for part in parts.values()]
    ax.bar([str(i) for i in parts], shares, color="#56B4E9")
    ax.set(title=f"query {query}", xlabel="worker", ylabel="share of the output")
    assert np.isclose(sum(shares), 1, atol=1e-5)

# %%
assert set(parts) == {CyclicQuorumSet(31).owner(0, h) for h in range(31)}
assert len(parts) == 6

# %% [markdown]
# ## The Tiler
#
# A `Tiler` is made for one plan. It takes results as they come, here in a random order, and writes the output.

# %%
tiler = Tiler(plan, np.empty_like(q))
for i in rng.permutation(31):
    tiler.add(results[i])
out = tiler.result().out
assert_exact(out, q, k, v)

# %% [markdown]
# It is told what it must get, so it can refuse what would make the output wrong. A result that comes twice, and one
# that never comes:

# %%
tiler = Tiler(plan, np.empty_like(q))
tiler.add(results[3])
for fault in (lambda: tiler.add(results[3]), tiler.result):
    try:
        fault()
    except TileError as error:
        print(error)

# %% [markdown]
# ## Order, and rounding
#
# The laws hold for real numbers. Floating-point addition is commutative, but not associative. So merging in another
# order may change the last bits. Here are the six parts of that row, merged in 200 random orders:

# %%
outcomes = {
    reduce(merge, [list(parts.values())[i] for i in rng.permutation(len(parts))]).out.tobytes() for _ in range(200)
}
print(f"{len(outcomes)} different outcomes, equal to about 7 digits")
assert len(outcomes) > 1

# %% [markdown]
# Harmless, but unpleasant: a run could not be repeated to the bit, and a bug could hide in the noise. So the Tiler
# merges in the order of the tasks, whatever order they come in. A result that is early waits. One plan gives one
# output, bit for bit:

# %%
bits = set()
for _ in range(20):
    tiler = Tiler(plan, np.empty_like(q))
    for i in rng.permutation(31):
        tiler.add(results[i])
    bits.add(tiler.result().out.tobytes())
assert len(bits) == 1

# %% [markdown]
# ## Trees
#
# Associativity allows more than a chain. Merge neighbours in pairs, then pairs of pairs: a tree. The number of merges
# is the same, but they no longer wait for each other, and the depth falls from n − 1 to $\lceil \log_2 n \rceil$.
# When one query attends to very many keys on many machines, as in decoding, this is what counts. It is the idea of
# Tree Attention.

# %%
x = rng.standard_normal((3, 1, 4096, 16), dtype=np.float32)
query, keys, values = x[0][:, :1], x[1], x[2]
level = [
    Partial(*cqs.attention(query, keys[:, start : start + 64], values[:, start : start + 64], return_lse=True))
    for start in range(0, 4096, 64)
]
depth = 0
while len(level) > 1:
    level = [merge(*pair) for pair in zip(level[::2], level[1::2], strict=True)]
    depth += 1
assert depth == 6
assert_exact(level[0].out, query, keys, values)

# %% [markdown]
# A tree is also a little more exact than a chain, since a number passes through 6 roundings and not 63.
#
# ## One step further: an energy
#
# Why does one number, the log-sum-exp, suffice? Because it contains everything. Give each key an extra term: the
# product of its value with a variable z. The function
#
# $$ F(z) = \log \sum_j \exp(s_j + z \cdot v_j) $$
#
# is an *energy*, and its gradient at z = 0 is attention:
#
# $$ \nabla F(0) = \frac{\sum_j e^{s_j} v_j}{\sum_j e^{s_j}} = o, \qquad F(0) = \ell. $$
#
# SymPy agrees, for three keys and values of width 2:

# %%
s1, s2, s3, z1, z2 = sympy.symbols("s1 s2 s3 z1 z2", real=True)
V = sympy.Matrix(3, 2, sympy.symbols("v1:7", real=True))
z = sympy.Matrix([z1, z2])
F = sympy.log(sum(sympy.exp(s + (V[j, :] * z)[0]) for j, s in enumerate((s1, s2, s3))))

weights = sympy.Matrix([[sympy.exp(s) for s in (s1, s2, s3)]])
attention = weights * V / sum(weights)
gradient = sympy.Matrix([[F.diff(z1), F.diff(z2)]]).subs({z1: 0, z2: 0})
assert sympy.simplify(gradient - attention) == sympy.zeros(1, 2)
gradient

# %% [markdown]
# Energies of two key sets are put together by $F = \log(e^{F_a} + e^{F_b})$, and that is plainly associative and
# commutative. Take the gradient of both sides at 0, by the chain rule, and out comes `merge`:

# %%
Fa, Fb = sympy.Function("F_a")(z1), sympy.Function("F_b")(z1)
joined = sympy.log(sympy.exp(Fa) + sympy.exp(Fb))
formula = sympy.exp(Fa - joined) * Fa.diff(z1) + sympy.exp(Fb - joined) * Fb.diff(z1)
assert sympy.simplify(joined.diff(z1) - formula) == 0
formula

# %% [markdown]
# So `merge` inherits its laws from addition. The same picture gives gradients for training: the derivative of a
# log-sum-exp by a score is that score's weight.

# %%
lse = sympy.log(sum(weights))
assert sympy.simplify(lse.diff(s1) - sympy.exp(s1) / sum(weights)) == 0

# %% [markdown]
# ## Exercise 1
#
# 57 workers each have a result for one query group. How many merges, one after the other, does a balanced tree take?

# %% tags=["exercise"]
n_levels = ...

check_depth(n_levels)

# %% [markdown]
# ## Exercise 2
#
# Write the merge of two pairs `(out, lse)` of floats. Mind 1000, −1000, and −∞ on one side or both.

# %% tags=["exercise"]
my_merge = ...  # a function of two pairs that returns a pair

check_merge(my_merge)

# %% [markdown]
# ## References
#
# - V. Shyam et al., *Tree Attention*, arXiv 2408.04093: the energy, and reduction as a tree.
# - H. Ramsauer et al., *Hopfield Networks is All You Need*, arXiv 2008.02217: attention as a step down an energy.
# - Z. Ye et al., *FlashInfer*, arXiv 2501.01005: merging of attention states in a serving system.
