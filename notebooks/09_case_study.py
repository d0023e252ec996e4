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
# # 09 Case study: ten tokens, then a real model
#
# **Question.** Does it all hold together? First the case study of Bian and Somani's paper *CQS-Attention*, small enough
# to print: N = 10 tokens, W = 7 workers, and the base {0, 1, 3}. Then its tables. Then the queries, keys and values of
# a trained language model, worker by worker.

# %%
from importlib import resources

import matplotlib.pyplot as plt
import numpy as np

import cqs
from checks.case_study import check_fewest_workers, check_longest_subsequence
from cqs import ArraySource, CyclicQuorumSet, Tiler, Worker, plot
from cqs.kernels import KERNELS
from cqs.schedule import group
from cqs.testing import assert_exact

# %% [markdown]
# ## Words
#
# The paper has its own words for things that have names. Here they are, once:
#
# | the paper | here | what it is |
# | --- | --- | --- |
# | interest set | difference cover, base | D, whose differences are all residues modulo W |
# | token group | group | consecutive tokens |
# | material list | groups of a task | what a worker holds |
# | responsibility | task | what a worker computes |
# | self-distillation | tile ownership | one owner for each tile |
# | ban list | – | not needed: nobody computes a tile of somebody else's |
#
# ## A small example by hand: ten tokens
#
# Ten tokens in seven groups: some have one token, some have two. The library spreads the longer ones evenly.

# %%
rng = np.random.default_rng(0)
q, k, v = rng.random((3, 1, 10, 1))
quorums = CyclicQuorumSet(7, (0, 1, 3))
plan = cqs.plan(q, k, v, workers=7)
assert plan.base == (0, 1, 3)
for g in range(7):
    print(f"group {g}: tokens {list(group(g, 7, 10).tokens)}")

# %% [markdown]
# Each worker gets three groups, and owns seven tiles:

# %%
for task in plan.tasks():
    tokens = [token for held in task.key_groups for token in held.tokens]
    tiles = [(tile.query.index, tile.key.index) for tile in task.tiles]
    print(f"worker {task.index} holds groups {quorums.quorum(task.index)}, tokens {tokens}, owns {tiles}")

# %% [markdown]
# The same as a picture, in tokens: tiles are 1 × 1 to 2 × 2.

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.4), layout="constrained")
plot.tile_map(plan, ax=left)
ax = plot.tokens_held(quorums, 10, ax=right)

# %% [markdown]
# The code published with the paper puts the longer groups last. Groups 4, 5 and 6 have two tokens there, and the
# workers hold 3, 4, 4, 5, 5, 5 and 4 tokens. Ours hold 3, 5, 4, 5, 4, 4 and 5: the same lengths for other workers.

# %%
ours = [sum(len(group(g, 7, 10)) for g in quorums.quorum(i)) for i in range(7)]
theirs = [sum(2 if g >= 4 else 1 for g in quorums.quorum(i)) for i in range(7)]
assert ours == [3, 5, 4, 5, 4, 4, 5]
assert theirs == [3, 4, 4, 5, 5, 5, 4]
assert sorted(ours) == sorted(theirs)

# %% [markdown]
# Now run the workers one by one, and look at what they send: for each query token an output, and a log-sum-exp.

# %%
worker = Worker(plan.problem, ArraySource(q, k, v), KERNELS["reference"].attend)
results = [worker.run(task) for task in plan.tasks()]
for result in results[:2]:
    for strip, partial in zip(result.task.strips, result.partials, strict=True):
        keys = [token for held in strip.keys for token in held.tokens]
        out, lse = partial.out[0, :, 0].round(3), partial.lse[0].round(3)
        print(f"worker {result.task.index}: queries {list(strip.query.tokens)}, keys {keys}: out {out}, lse {lse}")

# %% [markdown]
# The Tiler makes one output of them. It is the attention of all ten tokens.

# %%
tiler = Tiler(plan, np.empty_like(q))
for result in results:
    tiler.add(result)
assert_exact(tiler.result().out, q, k, v)
tiler.result().out[0, :, 0].round(4)

# %% [markdown]
# ## The table of subsequence lengths
#
# How many tokens does the worker with the most hold? The published experiment uses W = 4, 7, 8 and 31, at lengths up
# to N = 49 000. Its bases, and its figures:

# %%
bases = {4: (0, 1, 2), 7: (0, 1, 3), 8: (0, 1, 2, 4), 31: (0, 1, 3, 8, 12, 18)}
published = {10_000: (7500, 4287, 5000, 1937), 49_000: (36_750, 21_000, 24_500, 9486)}
for n, lengths in published.items():
    for (W, base), length in zip(bases.items(), lengths, strict=True):
        quorums = CyclicQuorumSet(W, base)
        longest = max(sum(len(group(g, W, n)) for g in quorums.quorum(i)) for i in range(W))
        print(f"N = {n:6}, W = {W:2}: published {length:6}, here {longest:6}, N / sqrt(W) = {n / W**0.5:8.0f}")
        assert abs(longest - length) <= 1

# %% [markdown]
# They agree, up to one token, which is a matter of where the longer groups are. And they are what the share m/W says:
# 3/4, 3/7, 4/8 and 6/31.

# %%
ax = plot.subsequence_lengths(49_000, [CyclicQuorumSet(W, base) for W, base in bases.items()])

# %% [markdown]
# W = 8 holds *more* than W = 7: its cover is not perfect. When W is yours to choose, choose 7, 13, 21 or 31.
#
# ## Balance
#
# A run ends when the worker with the most to do ends. So N² over the largest load is the speed-up that balance
# allows; W would be perfect. For even W the published code gives the first half of the workers W + 1 tiles, and the
# others W − 1. That allows W²/(W + 1): 3.2 for W = 4. It reaches 3.196, 5.116 for W = 6 and 7.075 for 8, averaged
# over N = 40 W to 41 W. With diagonals in exchange for the pairs at distance W/2 (notebook 03) it is nearly W:

# %%
for W, theirs in {4: 3.196, 6: 5.116, 8: 7.075}.items():
    plans = [cqs.plan(*[(1, n, 1)] * 3, workers=W) for n in range(40 * W, 41 * W + 1)]
    ours = np.mean([plan.problem.n_pairs / max(plan.loads()) for plan in plans])
    print(f"W = {W}: published {theirs:.3f}, here {ours:.3f}")
    assert theirs < ours <= W

# %% [markdown]
# ## Where arithmetic disagrees
#
# The description of the published code says that each of W workers needs 1/W of the memory, since it computes the
# attention of a subsequence of about 1/√W of the tokens. That is the square of scores that a worker fills before it
# bans what others own: $(m/W)^2$ of the whole. Now $m$ is at least a little more than $\sqrt{W}$, as
# $m(m - 1) \ge W - 1$. So it is always more than 1/W, and the same factor, $m^2/W$, counts the arithmetic that is
# done in vain.
#
# Here a worker computes the W tiles that it owns, out of the $m^2$ that it could. That is 1/W of the work, exactly.

# %%
for W in (4, 7, 20, 31, 133):
    quorums = CyclicQuorumSet(W)
    m = quorums.cover.size
    print(f"W = {W:3}: the full square is {m * m / W:.2f} times 1/W of the scores, the owned tiles just 1/W")
    assert m * m > W == len(quorums.tiles(0))

# %% [markdown]
# ## Real data
#
# The package ships queries, keys and values of a small language model that reads a book: 4 heads of width 32, and
# 4096 tokens. `cqs demo` computes on them, too.

# %%
with resources.files("cqs").joinpath("data/text_qkv_4096.npz").open("rb") as file, np.load(file) as arrays:
    q, k, v = (arrays[name].astype(np.float32) for name in ("q", "k", "v"))
q.shape

# %% [markdown]
# Are scores of a real model dangerous? With the scale $1/\sqrt{32}$ the largest is 11.7, which float16 could not
# exponentiate. The published demonstration takes scores without a scale. Then the largest is 66, not far from the 88
# where float32 ends. This is a model of width 32; notebook 04 has what happens beyond.

# %%
scores = q @ k.swapaxes(-1, -2)
largest = float(scores.max())
print(f"largest score {largest / 32**0.5:.1f} with the scale, {largest:.1f} without")
assert np.log(float(np.finfo(np.float16).max)) < largest / 32**0.5 < largest < np.log(float(np.finfo(np.float32).max))

# %% [markdown]
# Now the run: 7 workers, causal, one task after the other. Each worker holds 3/7 = 43 % of the
# tokens. It reads less, since under a causal mask it needs no keys of its last group, and no queries of its first,
# unless the diagonal tile is its own.

# %%
plan = cqs.plan(q, k, v, workers=7, is_causal=True)
worker = Worker(plan.problem, ArraySource(q, k, v), KERNELS[plan.setting.kernel].attend)
tiler = Tiler(plan, np.empty_like(q))
for task in plan.tasks():
    tiler.add(worker.run(task))
    share = plan.held_bytes(task) / (3 * q.nbytes)
    print(f"worker {task.index}: {plan.load(task):,} pairs, reads {share:.1%} of the input")
out = tiler.result().out
assert_exact(out, q, k, v, is_causal=True)
assert max(plan.loads()) / min(plan.loads()) < 1.01

# %% [markdown]
# The result is exact, by the rule of notebook 01, for every one of its numbers.
#
# The library's call does the same, several workers at a time. It can tell what happens when, and draw it: a lane for
# each thread, with the kernel calls of a task upon its bar. Merging is what needs a sharp eye. It costs little.

# %%
events = []
called = cqs.attention(q, k, v, workers=7, is_causal=True, on_event=events.append)
ax = plot.timeline(event for event in events if event.kind in ("TaskDone", "TileDone", "ResultMerged"))

# %%
assert sum(event.kind == "TaskDone" for event in events) == 7
assert np.array_equal(called, out)  # to the last bit

# %% [markdown]
# ## One step further: the same for every W
#
# The number of workers changes who computes what, and how much each holds. It does not change the result.

# %%
for W in (1, 4, 8, 31):
    again = cqs.attention(q, k, v, workers=W, is_causal=True)
    plan = cqs.plan(q, k, v, workers=W, is_causal=True)
    held = max(plan.held_bytes(task) for task in plan.tasks()) / (3 * q.nbytes)
    print(f"W = {W:2}: each reads at most {held:5.1%}, differs from W = 7 by at most {np.abs(again - out).max():.1e}")
    assert np.allclose(again, out, atol=1e-5)

# %% [markdown]
# ## Exercise 1
#
# 1000 tokens, 13 workers. Each holds 4 groups. How long is the longest subsequence that a worker holds?

# %% tags=["exercise"]
longest = ...

check_longest_subsequence(longest)

# %% [markdown]
# ## Exercise 2
#
# A worker's memory holds a fifth of the sequence. What is the least number of workers?

# %% tags=["exercise"]
n_workers = ...

check_fewest_workers(n_workers)

# %% [markdown]
# ## References
#
# - Y. Bian and A. K. Somani, *CQS-Attention: Scaling Up the Standard Attention Computation for Infinitely Long
#   Sequences*, IEEE Access 13 (2025) 35527–35538, doi 10.1109/ACCESS.2025.3544550: section IV-A is the case study,
#   IV-B the experiment.
# - Their code: github.com/CQS-Attention/CQS_Attention.
# - Y. Bian and J. Akey, *Stream-CQSA*, arXiv 2604.20819: the same under a memory budget, which is notebook 07.
