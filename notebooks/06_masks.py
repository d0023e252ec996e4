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
# # 06 Masks: what is hidden is not computed
#
# **Question.** Few models let every token see every other. If a mask hides nine tenths of the pairs, does it save
# nine tenths of the work, without anybody ever building an N × N array of booleans? And do the workers still have the
# same to do?

# %%
import matplotlib.pyplot as plt
import numpy as np

import cqs
from checks.masks import check_chat, check_window_pairs
from cqs import CyclicQuorumSet, plot
from cqs.masks import Causal, Coverage, Documents, PrefixLM, Sinks, SlidingWindow
from cqs.testing import assert_exact

# %% [markdown]
# ## A small example by hand
#
# A mask says which keys a query sees. *Causal*: query i sees keys 0 to i. A *sliding window* of 2: query i sees its
# own key and two before. Written as matrices, queries down, keys across:

# %%
queries, keys = np.arange(6)[:, None], np.arange(6)
for mask in (Causal(), SlidingWindow(2), Documents([2, 4])):
    print(mask)
    print(mask.visible(queries, keys).astype(int))

# %% [markdown]
# A mask is not an array, but a rule. Rules are combined by *and*, *or* and *not*. Packed documents for a language
# model: the same document, and not later.

# %%
packed = Documents([2, 4]) & Causal()
print(packed.visible(queries, keys).astype(int))
assert (packed.visible(queries, keys) == np.tril(Documents([2, 4]).visible(queries, keys))).all()

# %% [markdown]
# ## A rule answers for rectangles
#
# To decide about a tile one need not look at its pairs. The corner with the latest query and the earliest key decides
# whether a causal tile is empty; the opposite corner, whether it is full. So `classify` is fast for any size:

# %%
million = Causal()
print(million.classify(range(0, 10**6), range(10**6, 2 * 10**6)))
print(million.classify(range(10**6, 2 * 10**6), range(0, 10**6)))
print(million.classify(range(0, 10**6), range(0, 10**6)))

# %% [markdown]
# Three answers, three ways to work. An *empty* tile is dropped from the plan. A *full* one is computed without a
# thought of masks. Only in a *partial* one are scores set to −∞, and there are few of these: those on an edge.
#
# `count` gives the visible pairs of a rectangle, exactly, and so the work:

# %%
assert million.count(range(10**6), range(10**6)) == 10**6 * (10**6 + 1) // 2
assert SlidingWindow(1023).count(range(10**6), range(10**6)) == 10**6 * 1024 - 1024 * 1023 // 2

# %% [markdown]
# ## A picture
#
# Four masks over 1300 tokens, and the tiles of 13 workers. Grey tiles belong to nobody.

# %%
masks = [Causal(), SlidingWindow(260), PrefixLM(400), Documents([500, 100, 300, 400]) & Causal()]
titles = ["causal", "a window of 261 keys", "a prefix of 400, then causal", "four documents, causal"]
shape = (1, 1300, 16)
figure, axes = plt.subplots(2, 2, figsize=(9, 9.2), layout="constrained")
for ax, mask, title in zip(axes.flat, masks, titles, strict=True):
    plan = cqs.plan(shape, shape, shape, workers=13, mask=mask)
    plot.tile_map(plan, ax=ax).set_title(title)

# %% [markdown]
# The share of the pairs that is visible, and the share of the tiles that is left:

# %%
for mask in masks:
    plan = cqs.plan(shape, shape, shape, workers=13, mask=mask)
    n_tiles = sum(len(list(task.tiles)) for task in plan.tasks())
    print(
        f"{plan.problem.n_pairs / 1300**2:4.0%} of the pairs, {n_tiles / 169:4.0%} of the tiles: {type(mask).__name__}"
    )
    assert sum(plan.loads()) == plan.problem.n_pairs  # each visible pair is computed once

# %% [markdown]
# Finer groups follow the edges of a mask more closely, so these shares come together as W grows.
#
# ## Checked by the library
#
# The three answers agree with the definition, for any rectangle. Here are some hundred random ones:

# %%
rng = np.random.default_rng(0)
for mask in (*masks, Sinks(4) | SlidingWindow(30) & Causal(), ~Documents([700, 600])):
    for _ in range(40):
        (r0, r1), (c0, c1) = np.sort(rng.integers(0, 1301, (2, 2)), axis=1).tolist()
        rows, cols = range(r0, r1), range(c0, c1)
        visible = mask.block(rows, cols)
        assert mask.count(rows, cols) == visible.sum()
        expected = Coverage.EMPTY if not visible.any() else Coverage.FULL if visible.all() else Coverage.PARTIAL
        assert mask.classify(rows, cols) is expected

# %% [markdown]
# And attention with a rule is attention with the array that the rule stands for. Arrays are allowed as well, if you
# have nothing better:

# %%
q, k, v = rng.standard_normal((3, 2, 1300, 16), dtype=np.float32)
for mask in masks:
    out = cqs.attention(q, k, v, mask=mask, workers=13)
    assert_exact(out, q, k, v, mask=mask)
    array = mask.block(range(1300), range(1300))
    assert np.allclose(cqs.attention(q, k, v, mask=array), out, atol=1e-5)

# %% [markdown]
# ## Who sees nothing
#
# A mask may leave a query without any key. A softmax over nothing is 0/0. Here the answer is the identity of merging:
# output 0 and log-sum-exp −∞, and never NaN. Causal with offset −1 hides a query's own key, so query 0 sees nothing:

# %%
out, lse = cqs.attention(q, k, v, mask=Causal(-1), return_lse=True)
assert not out[:, 0].any()
assert (lse[:, 0] == -np.inf).all()
assert np.isfinite(out).all()

# %% [markdown]
# ## Balance
#
# A causal mask takes half of each pair of tiles, so loads stay equal by themselves (notebook 03). A window does not:
# it leaves the pairs of neighbours whole, and nothing of the others; packed documents are more uneven still. So for
# such masks the Scheduler counts each tile, and gives it to whichever *holder* has least to do.

# %%
mask, W, n = Documents([2000, 500, 4000, 1500]) & Causal(), 8, 8000
plan = cqs.plan(*[(1, n, 16)] * 3, workers=W, mask=mask)
tokens = [range(g * n // W, (g + 1) * n // W) for g in range(W)]
owners = CyclicQuorumSet(W).ownership()
fixed = [sum(mask.count(tokens[g], tokens[h]) for g, h in np.argwhere(owners == i)) for i in range(W)]

figure, (left, right) = plt.subplots(1, 2, figsize=(11, 2.8), layout="constrained")
plot.load_bars(fixed, ax=left).set_title(f"By the fixed rule: {max(fixed) / np.mean(fixed):.2f} times the mean")
balanced = plan.loads()
plot.load_bars(balanced, ax=right).set_title(f"As planned: {max(balanced) / np.mean(balanced):.2f} times the mean")
assert sum(fixed) == sum(balanced)
assert max(balanced) <= max(fixed)

# %% [markdown]
# It may only choose among workers that hold both groups. Under a perfect cover that is one worker for each pair, so
# there is little to choose but the diagonal. Perfect covers hold least and bend least. Where whole tiles do not come
# out within 5 % of the mean, some are cut by their keys and shared by their holders, as a maximal flow says.

# %%
for W in (7, 8, 13, 16):
    quorums = CyclicQuorumSet(W)
    n_holders = [len(quorums.holders(0, d)) for d in range(1, W)]
    loads = cqs.plan(*[(1, n, 16)] * 3, workers=W, mask=mask).loads()
    over = max(loads) / np.mean(loads)
    print(f"W = {W:2}: {np.mean(n_holders):.2f} holders a pair, largest load {over:.2f} times the mean")

# %% [markdown]
# ## One step further: hidden means hidden
#
# A padding token may contain anything, even NaN. Setting its score to −∞ is not enough: its weight is 0, and 0 · NaN
# is NaN. Here a value that nobody sees reaches nobody:

# %%
poisoned = v.copy()
poisoned[:, 1000:] = np.nan
out = cqs.attention(q, k, poisoned, mask=Causal(), workers=13)
assert np.isfinite(out[:, :1000]).all()
assert np.isnan(out[:, 1000:]).all()  # these do see it
assert_exact(out[:, :1000], q[:, :1000], k[:, :1000], v[:, :1000], is_causal=True)

# %% [markdown]
# ## Exercise 1
#
# How many (query, key) pairs does `SlidingWindow(99)` leave visible over 1000 tokens?

# %% tags=["exercise"]
n_pairs = ...

check_window_pairs(n_pairs)

# %% [markdown]
# ## Exercise 2
#
# A chat model with attention sinks: every query sees the first 4 keys, and the last 32 up to and with its own. No
# query sees a later key. Make this mask of those above.

# %% tags=["exercise"]
chat = ...

check_chat(chat)

# %% [markdown]
# ## References
#
# - I. Beltagy et al., *Longformer*, arXiv 2004.05150: sliding windows.
# - G. Xiao et al., *Efficient Streaming Language Models with Attention Sinks*, arXiv 2309.17453.
# - J. Dong et al., *Flex Attention*, arXiv 2412.05496: masks as functions, and blocks that are empty, partial or
#   full.
# - R. L. Graham, *Bounds on multiprocessing timing anomalies*, SIAM J. Appl. Math. 17 (1969) 416–429: longest first.
