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
# # 03 The Scheduler: who owns which tile
#
# **Question.** Notebook 02 gave every pair of groups to a worker that holds both. Some pairs have several such
# workers. Who computes what, so that nothing is missing, nothing is done twice, and all have the same to do?

# %%
import matplotlib.pyplot as plt
import numpy as np

import cqs
from checks.scheduler import check_causal_load, check_owner
from cqs import AttentionProblem, CyclicQuorumSet, Plan, Scheduler, plot

# %% [markdown]
# ## A small example by hand
#
# Cut the score matrix into W × W *tiles*: tile (g, h) is the queries of group g against the keys of group h. With
# W = 7 there are 49 tiles, so each worker should own seven.
#
# Worker 0 holds the groups 0, 1 and 3. It can compute nine tiles:
#
# |         | key 0  | key 1  | key 3  |
# | ------- | ------ | ------ | ------ |
# | query 0 | (0, 0) | (0, 1) | (0, 3) |
# | query 1 | (1, 0) | (1, 1) | (1, 3) |
# | query 3 | (3, 0) | (3, 1) | (3, 3) |
#
# The six tiles off the diagonal are of pairs that nobody else holds, since the cover is perfect. Of the three on the
# diagonal it may keep one: group 0 is also held by workers 4 and 6. Let every worker i keep the tile of group i. That
# makes seven.

# %%
quorums = CyclicQuorumSet(7, (0, 1, 3))
assert quorums.tiles(0) == ((0, 0), (0, 1), (0, 3), (1, 0), (1, 3), (3, 0), (3, 1))
assert [len(quorums.tiles(i)) for i in range(7)] == [7] * 7

# %% [markdown]
# Bian and Somani's paper *CQS-Attention*, "the paper" in what follows, starts from the full 3 × 3 square of every
# worker and then bans what somebody else owns, which it calls self-distillation. We never make the square: *tile
# ownership* is a formula, and a worker is told its own tiles only.
#
# ## A picture
#
# Left: the owner of each tile. Right: the tiles of worker 2, inside the frames of the groups that it holds.

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(9, 4.9), layout="constrained")
plot.ownership_matrix(quorums, ax=left)
ax = plot.ownership_matrix(quorums, worker=2, ax=right)

# %% [markdown]
# Read along a diagonal of the left picture, with wrap-around. The owners count up by one. The whole matrix is one
# worker's tiles, turned W times. So if worker 0 has W tiles, all have.

# %%
matrix = quorums.ownership()
assert (np.roll(matrix, (1, 1), axis=(0, 1)) == (matrix - 1) % 7).all()

# %% [markdown]
# ## The rule, for odd and even W
#
# Pairs are sorted by their distance d around the circle. For odd W the distances are 1 to (W − 1)/2, and each has W
# pairs: one for each worker. With the diagonal tile that makes $2 \cdot \frac{W - 1}{2} + 1 = W$ tiles.
#
# For even W one distance is special. At d = W/2 there are only W/2 pairs, since going half around twice leads back.
# There are too few for W workers. The rule gives these pairs, two tiles each, to the first half of the workers, and
# the *diagonal* tiles, two each, to the second half. Again everybody has W.

# %%
eight = CyclicQuorumSet(8)
for i in range(8):
    diagonal = [tile for tile in eight.tiles(i) if tile[0] == tile[1]]
    opposite = [tile for tile in eight.tiles(i) if (tile[0] - tile[1]) % 8 == 4]
    print(f"worker {i}: {len(eight.tiles(i))} tiles, opposite {opposite}, diagonal {diagonal}")

# %% [markdown]
# This is where the paper's code is off balance by 1/W for even W. Here it is exact, for 8 workers and for 20:

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(9, 4.9), layout="constrained")
plot.ownership_matrix(eight, ax=left)
ax = plot.ownership_matrix(CyclicQuorumSet(20), worker=4, ax=right)

# %% [markdown]
# ## Checked by the library
#
# For every W to 80: each tile has one owner, who holds both its groups, and each worker has W tiles.

# %%
for W in range(1, 81):
    quorums = CyclicQuorumSet(W)
    assert (np.bincount(quorums.ownership().ravel(), minlength=W) == W).all()
    for i in range(W):
        held = set(quorums.quorum(i))
        assert all(g in held and h in held and quorums.owner(g, h) == i for g, h in quorums.tiles(i))

# %% [markdown]
# ## From groups to tokens: the Plan
#
# The `Scheduler` takes a problem, which is shapes and a mask, and returns a `Plan`. No array is touched. A plan has
# one `Task` for each worker (the paper says responsibility), and a task lists tiles and the groups that it reads (a
# material list).

# %%
problem = AttentionProblem.of(*np.empty((3, 8, 7000, 64), dtype=np.float32))
plan = Scheduler(workers=7).plan(problem)
print(plan)
task = plan.task(2)
for tile in task.tiles:
    print(" ", tile)

# %% [markdown]
# A plan is a value: small, comparable, and readable from JSON. So it can be sent to other machines, and each makes
# its own task from it.

# %%
assert Plan.from_json(plan.to_json()) == plan
plan.to_json()

# %% [markdown]
# What a worker reads is what it holds, 3 of 7 groups, and the work is shared out evenly:

# %%
assert plan.held_bytes(task) * 7 == problem.input_bytes(7000, 7000) * 3
assert set(plan.loads()) == {7000 * 7000 // 7}

# %% [markdown]
# ## Causal masks, without a zigzag
#
# In language models a query sees no later keys: half of the matrix is empty. Give each worker some consecutive rows,
# and the last has far more to do than the first. Schemes that pass keys around a ring mend this by dealing out rows
# in a zigzag, first with last.
#
# Here nothing has to be mended. Of the two tiles of a pair, one lies below the diagonal, and one above. So a causal
# mask takes half of *every pair*, and half of every diagonal tile. Whatever was equal stays equal.

# %%
causal = cqs.plan(*[(1, 7000, 64)] * 3, workers=7, is_causal=True)
mask = causal.problem.mask
rows = [mask.count(range(1000 * i, 1000 * (i + 1)), range(7000)) for i in range(7)]
figure, (left, middle, right) = plt.subplots(1, 3, figsize=(13, 3.6), layout="constrained")
plot.tile_map(causal, ax=left)
plot.load_bars(rows, ax=middle).set_title(f"Consecutive rows: {max(rows) / np.mean(rows):.2f} times the mean")
ax = plot.load_bars(causal, ax=right)

# %%
assert len(set(causal.loads())) == 1
assert sum(causal.loads()) == sum(rows) == 7000 * 7001 // 2

# %% [markdown]
# For even W the diagonals belong to the second half of the workers. A diagonal tile of n tokens has n(n + 1)/2
# visible pairs, half a pair of tiles and n/2 more. So loads differ, by a share of at most 2/(W n): one part in 4000
# for W = 8 and n = 1000.

# %%
for W in (2, 4, 6, 8, 10, 12):
    loads = cqs.plan(*[(1, 1000 * W, 64)] * 3, workers=W, is_causal=True).loads()
    ratio = max(loads) / min(loads)
    print(f"W = {W:2}: largest load / smallest = {ratio:.6f}, at most {1 + 2 / (1000 * W):.6f}")
    assert ratio <= 1 + 2 / (1000 * W)

# %% [markdown]
# ## One step further: tokens that do not divide
#
# 1000 tokens in 133 groups are groups of 7 and of 8 tokens. Tiles then have 49 to 64 scores, and loads are equal no
# more. The remedy is to choose W with some sense: groups of a hundred tokens differ by one percent at most.

# %%
for n in (1000, 10_000, 100_000):
    loads = cqs.plan(*[(1, n, 64)] * 3, workers=133).loads()
    print(f"{n:7} tokens, 133 workers: largest load is {max(loads) / np.mean(loads):.4f} times the mean")

# %% [markdown]
# ## Exercise 1
#
# W = 7 and D = {0, 1, 3}. Who owns tile (5, 2)? Decide it by the circle, without looking at the picture.

# %% tags=["exercise"]
owner = ...

check_owner(owner)

# %% [markdown]
# ## Exercise 2
#
# 70 tokens, W = 7, a causal mask. How many (query, key) pairs does each worker compute?

# %% tags=["exercise"]
n_pairs = ...

check_causal_load(n_pairs)

# %% [markdown]
# ## References
#
# - Y. Bian and A. K. Somani, *CQS-Attention*, IEEE Access 13 (2025) 35527–35538: Scheduler, Workers, Tiler.
# - S. Li et al., *Sequence Parallelism: Long Sequence Training from System Perspective*, arXiv 2105.13120: Ring
#   Self-Attention.
# - W. Brandon et al., *Striped Attention*, arXiv 2311.09431: the imbalance of causal masks on a ring, and a remedy.
