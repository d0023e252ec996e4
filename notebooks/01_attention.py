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
# # 01 Attention and its memory
#
# **Question.** Attention compares every token with every other. Does it have to *hold* all these comparisons?
#
# Needed before: matrix products, the exponential function. Nothing about quorums yet.

# %%
import inspect
import tracemalloc

import numpy as np

import cqs
from checks.attention import check_longest, check_query
from cqs import plot
from cqs.kernels import KERNELS
from cqs.testing import assert_exact

# %% [markdown]
# ## A small example by hand
#
# A token asks with a *query* $q$, is found by a *key* $k$, and gives a *value* $v$. The *score* of a query and a key
# is $s_j = \text{scale} \cdot q \cdot k_j$. Softmax turns scores into weights that add up to one, and the output is
# the mean of the values with these weights:
#
# $$ w_j = \frac{e^{s_j}}{\sum_l e^{s_l}}, \qquad o = \sum_j w_j\, v_j. $$
#
# Take one query and two keys, chosen so that the scores are $\log 2$ and $\log 1 = 0$. The exponentials are 2 and 1,
# so the weights are 2/3 and 1/3. With values 3 and 6 the output is $\frac{2}{3} \cdot 3 + \frac{1}{3} \cdot 6 = 4$.

# %%
q = np.array([[[np.log(2.0), 0.0]]])  # (heads, queries, width) = (1, 1, 2)
k = np.array([[[1.0, 0.0], [0.0, 1.0]]])  # (1, 2, 2)
v = np.array([[[3.0], [6.0]]])  # (1, 2, 1)

out, lse = cqs.attention(q, k, v, scale=1.0, return_lse=True)
assert np.isclose(out[0, 0, 0], 4.0)
out

# %% [markdown]
# The library also returned the *log-sum-exp*, the logarithm of the denominator: here $\log(2 + 1)$. Keep it in mind.
# It is the one number that lets partial results be put together later.

# %%
assert np.isclose(lse[0, 0], np.log(3))
lse

# %% [markdown]
# ## The formula as code
#
# In NumPy the formula is four lines. The first makes the whole array of scores, one number for each query and key.

# %%
scores = 1.0 * (q @ k.swapaxes(-1, -2))  # the scale is 1; (heads, queries, keys)
exponentials = np.exp(scores)
weights = exponentials / exponentials.sum(axis=-1, keepdims=True)
by_hand = weights @ v  # (heads, queries, width of a value)
assert np.allclose(by_hand, out)
weights

# %% [markdown]
# The library has the same formula as a kernel of its own, written for reading. Look for the line `scores = `, and for
# `weights` below it. What is more: `softmax_parts` takes exponentials so that they cannot overflow, which is the
# subject of notebook 04, and returns the log-sum-exp, too; `region` hides what a mask hides (notebook 06);
# `weighted_sum` is `weights @ v` where hidden values may be NaN; and `reshape` lets several query heads share a key
# head.

# %%
print(inspect.getsource(KERNELS["reference"].attend))

# %% [markdown]
# ## What it costs
#
# Let there be N tokens, and H heads of width D. The inputs are 3 H N D numbers: they grow like N. The scores are H N²
# numbers: they grow like N². At some length the scores win. With H = 8, D = 64 and float32:

# %%
n_tokens = [2**p for p in range(10, 21, 2)]
needs = {
    "queries, keys and values": (n_tokens, [3 * 8 * n * 64 * 4 for n in n_tokens]),
    "scores": (n_tokens, [8 * n * n * 4 for n in n_tokens]),
}
ax = plot.memory_against_tokens(needs, limit=16 * 2**30)

# %% [markdown]
# Where both axes are logarithmic a power is a straight line, and its exponent is the slope. The lines cross left of
# the picture, where N = 3 D = 192 tokens. At a million tokens the inputs take 6 GiB, and the scores 32 TiB.

# %%
crossing = 3 * 64
assert 3 * 8 * crossing * 64 * 4 == 8 * crossing**2 * 4
inputs, scores = (column[-1] for _, column in needs.values())
assert (inputs, scores) == (6 * 2**30, 32 * 2**40)

# %% [markdown]
# ## Measured
#
# A prediction is worth a measurement. NumPy reports what it allocates to `tracemalloc`; the peak is the most that was
# held at once. We compare the formula with `blockwise`, a kernel that goes through the scores block by block and
# holds one block at a time. How this can be exact is the subject of notebooks 04 and 05.

# %%
rng = np.random.default_rng(0)
sizes = [512, 1024, 2048, 4096]
peaks = {"reference": [], "blockwise": []}
for n in sizes:
    x = rng.standard_normal((3, 2, n, 16), dtype=np.float32)
    for kernel, found in peaks.items():
        tracemalloc.start()
        cqs.attention(*x, kernel=kernel, workers=1)
        found.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()

ax = plot.memory_against_tokens({kernel: (sizes, found) for kernel, found in peaks.items()})

# %% [markdown]
# From 1024 tokens to 4096 the sequence grows four-fold. The formula's memory grows 16-fold, as it must. The other's
# does not: its line has a bend at 1024. A block of `blockwise` has at most 512 queries and 1024 keys, so up to there
# blocks grow with the sequence, and from there on there are only more of them.

# %%
growth = {kernel: found[3] / found[1] for kernel, found in peaks.items()}
assert 14 < growth["reference"] < 18
assert growth["blockwise"] < 8
growth

# %% [markdown]
# ## What the library promises
#
# Exact does not mean without rounding. It means: no worse than the formula itself would be in the same type. The rule
# of `cqs.testing.assert_exact` is that the error against float64 is at most twice that of the plain formula, and a
# few units in the last place. Every result in these notebooks is held to it.

# %%
q, k, v = rng.standard_normal((3, 4, 300, 16), dtype=np.float32)
for kernel in ("numpy", "blockwise", "reference"):
    assert_exact(cqs.attention(q, k, v, kernel=kernel), q, k, v)

# %% [markdown]
# Two more properties follow from the formula at once. Weights add up to one, so equal values come out unchanged:

# %%
ones = np.ones_like(v)
assert np.allclose(cqs.attention(q, k, ones), 1.0, atol=1e-6)

# %% [markdown]
# And a sum has no order, so the keys may be shuffled, as long as each keeps its value:

# %%
order = rng.permutation(300)
assert np.allclose(cqs.attention(q, k[:, order], v[:, order]), cqs.attention(q, k, v), atol=1e-5)

# %% [markdown]
# ## One step further
#
# The last property is the door. If keys have no order, they can be dealt with in parts. Attention over the first half
# of the keys and over the second half are two outputs, and two log-sum-exps. `cqs.merge` makes one of them, and it is
# the attention over all keys. Neither half ever saw the other.

# %%
halves = [
    cqs.Partial(*cqs.attention(q, k[:, part], v[:, part], return_lse=True)) for part in (slice(150), slice(150, 300))
]
merged = cqs.merge(*halves)
assert_exact(merged.out, q, k, v)

# %% [markdown]
# So the scores need not be held together: neither in time, nor in one machine. What remains is to cut the work so
# that all parts are equal, and so that nobody needs the whole sequence. That is what quorums are for, in notebook 02.

# %% [markdown]
# ## Exercise 1
#
# You have 16 GiB (2³⁴ bytes), and 8 heads. How many tokens can a sequence have before its float32 scores, alone, no
# longer fit?

# %% tags=["exercise"]
longest = ...

check_longest(longest)

# %% [markdown]
# ## Exercise 2
#
# The keys are (1, 0) and (0, 1), and the scale is 1. Find a query that gives the first key the weight 3/4, and the
# second 1/4.

# %% tags=["exercise"]
query = ...  # two numbers, (a, b)

check_query(query)

# %% [markdown]
# ## References
#
# - A. Vaswani et al., *Attention Is All You Need*, arXiv 1706.03762: the formula, and why the scale is $1/\sqrt{D}$.
# - M. N. Rabe and C. Staats, *Self-attention Does Not Need O(n²) Memory*, arXiv 2112.05682: scores in parts.
# - T. Dao et al., *FlashAttention*, arXiv 2205.14135: the same for the memory of a GPU.
