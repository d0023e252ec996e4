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
# # 07 Memory: a budget, and what it costs
#
# **Question.** How much memory does exact attention need, and what does less memory cost?
#
# Notebook 01 found that scores need not be held. So little is *needed*. The price of little memory is traffic: what
# does not stay has to be read again. This notebook counts it, for quorum sets and for their rivals.

# %%
import tempfile
import tracemalloc
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

import cqs
from checks.memory import check_moved, check_ring
from cqs import AttentionProblem, CyclicQuorumSet, Plan, Scheduler
from cqs.engines import LocalEngine
from cqs.errors import BudgetError
from cqs.plot.style import KINDS
from cqs.schedule import Grain
from cqs.testing import assert_exact
from cqs.trace import Recorder
from cqs.units import format_bytes
from cqs.verify import verify_rows

# %% [markdown]
# ## A small example by hand
#
# Count in *rows*. A row is the query, the key, the value or the output of one token, and one head.
#
# There are N = 12 tokens, and a fast memory of M = 4 rows. Let two queries stay in it, with the sums of their two
# outputs: these are the four rows. All keys and values pass by, one at a time. (The one that is passing takes a
# little room, which we leave out.) Then come the next two queries, and everything passes by again.
#
# Each of the six passes reads 2 queries, 12 keys and 12 values, and writes 2 outputs: 28 rows. All in all that is
# 6 · 28 = 168.
#
# In general M/2 queries stay, there are 2N/M passes, and each reads 2N rows of keys and values. With N queries in
# and N outputs out,
#
# $$ \text{moved} = 2N + 2N \cdot \frac{2N}{M} = 2N + \frac{4N^2}{M}. $$

# %%
N, M = 12, 4
assert 6 * 28 == 2 * N + 4 * N**2 // M == 168

problem = AttentionProblem.of(*np.empty((3, 1, N, 1), np.float32))  # a row is one number of 4 bytes
tiles = Plan(problem, "tiles", workers=6, grain=Grain(row_groups=6))
assert tiles.traffic.moved == 168 * 4
tiles.traffic

# %% [markdown]
# These are *resident-query tiles*, the strategy `"tiles"` of the library. Half the memory, twice the traffic: in the
# second term, which is what counts for long sequences, M · traffic = 4N².
#
# ## The same for a quorum set
#
# A worker reads m groups of N/W tokens: queries, keys and values. There are W workers, so together they read
# 3 · m/W · W · N = 3mN rows. For W = 7 and m = 3 each token is read three times, by three workers.

# %%
N, W = 700, 7
quorums = cqs.plan(*[(1, N, 1)] * 3, workers=W)
m = len(quorums.base)
assert quorums.traffic.read == 3 * m * N * 4
assert quorums.traffic.written == N * 4
m, quorums.traffic.read // 4

# %% [markdown]
# Now run these tasks one after the other on one device. A task holds 3mN/W rows of inputs, and mN/W rows of sums, so
# M = 4mN/W. The best m is about √W. So √W is about 4N/M, and
#
# $$ 3mN \approx 3 \sqrt{W}\, N = \frac{12 N^2}{M}. $$
#
# That is three times what tiles move. And it is not all: the result of a task is not complete, since each query has
# keys in m tasks. If incomplete sums do not fit, they are written to a scratch file and read back: 2mN rows more, and
# in all 20N²/M, five times as much. A causal mask halves the keys that tiles read, but hardly what a quorum reads. Then
# the ratios are 6 and 10.
#
# Why is it so? With tiles a key that is read meets M/2 queries. With quorums it meets about M/4, since keys and values
# fill half of the memory; and queries, too, are read again and again. On *one* device quorums lose. Remember this;
# soon they win.
#
# ## A budget
#
# Here are four heads, and 4096 tokens, in three files. Inputs and output take 16 MiB, and the scores 256 MiB. We
# allow 6 MiB.

# %%
temporary = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
folder = Path(temporary.name)
rng = np.random.default_rng(0)
paths = [folder / f"{name}.npy" for name in "qkv"]
for path in paths:
    np.save(path, rng.standard_normal((4, 4096, 64), dtype=np.float32))

options = {"memory": "6 MiB", "engine": LocalEngine(2)}  # two threads, whatever this machine has
plan = cqs.plan(*paths, **options, out=folder / "out.npy")
from_files = plan.setting  # the same for plans of other problems, further down
print(plan)

# %% [markdown]
# `memory=` bounds everything that a call holds beyond the caller's own arrays. The Scheduler chose the strategy, the
# number of tasks, how many heads a task takes, and the size of blocks. Nothing has been computed yet. The last line
# says what the memory will be for, and `plan.footprint` has it in bytes:

# %%
assert plan.footprint.total == plan.projected_bytes <= 6 * 2**20
plan.footprint

# %% [markdown]
# A budget that cannot be kept is refused, before anything is allocated. The message names the least that works:

# %%
try:
    cqs.plan(*paths, memory="1 MiB", engine=LocalEngine(2), out=folder / "out.npy")
except BudgetError as error:
    print(error)

# %% [markdown]
# ## Checked by the library: measured ≤ projected ≤ budget
#
# A projection is a promise. `tracemalloc` measures the peak of what Python and NumPy hold, so let it be judge. Both
# strategies run within the budget, from files to a file. A `Recorder` counts what they move: what `plan.traffic` says,
# to the byte. And the results are exact. `verify_rows` computes some rows again in float64, straight from the inputs:
# the first, the last, and some at random.

# %%
inputs = [np.load(path, mmap_mode="r") for path in paths]
for strategy in ("cqs", "tiles"):
    mine = options | {"strategy": strategy, "out": folder / f"{strategy}.npy"}
    plan, recorder = cqs.plan(*paths, **mine), Recorder(most=0)
    tracemalloc.start()
    out = cqs.attention(*paths, **mine, on_event=recorder)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak <= plan.projected_bytes <= 6 * 2**20
    print(
        f"{strategy:5}: {len(plan):3} tasks, measured {format_bytes(peak)} <= projected "
        f"{format_bytes(plan.projected_bytes)}, moved {format_bytes(plan.traffic.moved)}"
    )
    counted, said = recorder.counters, plan.traffic
    assert (counted.read, counted.spilled, counted.written) == (said.read, said.spilled, said.written)
    assert verify_rows(out, *inputs, n_rows=16).passed
temporary.cleanup()

# %% [markdown]
# ## To the byte, for every strategy
#
# Two more schemes can be planned and run, to compare with. In *ring attention* each of W workers keeps its queries,
# and keys and values are passed around from neighbour to neighbour. In *tree attention* each worker keeps its keys,
# all queries are sent to everyone, and results are merged as a tree. For all four, prediction and count agree.
# (Results are counted if they have to be merged. With a ring they are complete.)

# %%
x = rng.standard_normal((3, 2, 700, 16), dtype=np.float32)
for strategy in ("cqs", "tiles", "ring", "tree"):
    plan, recorder = cqs.plan(*x, workers=7, strategy=strategy), Recorder(most=0)
    out = cqs.attention(*x, workers=7, strategy=strategy, on_event=recorder)
    assert_exact(out, *x)
    counted, said = recorder.counters, plan.traffic
    assert (counted.read, counted.results, counted.written) == (said.read, said.results, said.written)
    print(f"{strategy:5}: {said.read:9,} bytes read, {said.passed:9,} of these passed on, {said.results:7,} of results")

# %% [markdown]
# ## A picture: one device
#
# A million tokens, one head of width 64. How many bytes are moved, under which budget? Nothing is run, so shapes are
# enough, with the setting of the plan above: two threads, from files to a file. Dots are plans. Lines are the
# formulas, with M the whole budget in rows of 64 numbers: that of tiles, and those of quorums without a scratch file
# and with one.

# %%
N = 2**20
problem = cqs.plan(*[(1, N, 64)] * 3).problem
budgets = [2**p * 2**20 for p in range(6, 11)]
plans = [Scheduler(memory=budget, setting=from_files).alternatives(problem) for budget in budgets]
figure, ax = plt.subplots(figsize=(6, 3.6), layout="constrained")
for strategy, colour in zip(("cqs", "tiles"), KINDS, strict=False):
    moved = [found[strategy].traffic.moved / 2**30 for found in plans]
    ax.plot([b / 2**20 for b in budgets], moved, "o", color=colour, label=strategy)
rows = np.array(budgets) / (64 * 4)
formulas = {
    "2N + 4N²/M": (2 * N + 4 * N**2 / rows, KINDS[1], "-"),
    "N + 12N²/M": (N + 12 * N**2 / rows, KINDS[0], "-"),
    "N + 20N²/M": (N + 20 * N**2 / rows, KINDS[0], "--"),
}
for label, (n_rows, colour, style) in formulas.items():
    ax.plot(rows * 64 * 4 / 2**20, n_rows * 64 * 4 / 2**30, style, color=colour, lw=1, label=label)
ax.set_xscale("log", base=2)
ax.set_yscale("log", base=2)
for axis in (ax.xaxis, ax.yaxis):
    axis.set_major_formatter("{x:g}")
ax.set(xlabel="budget in MiB", ylabel="moved in GiB", title="A million tokens on one device")
legend = ax.legend()

# %% [markdown]
# All dots lie above their lines: part of a budget goes to what passes by, to blocks of scores, and to results. Besides,
# the Scheduler takes what it predicts to be *fastest*, and that is not always what moves least.
#
# For what is left to queries and sums the formula of tiles is exact: with R groups of queries, M = 2N/R, and
# 2N + 4N²/M = 2N + 2RN.

# %%
for budget, found in zip(budgets, plans, strict=True):
    quorums, tiles = found["cqs"].traffic, found["tiles"].traffic
    assert tiles.moved == (2 * N + 2 * found["tiles"].workers * N) * 64 * 4
    ratio, spilled = quorums.moved / tiles.moved, format_bytes(quorums.spilled)
    print(f"{budget >> 20:4} MiB: quorums move {ratio:.1f} times as much, {spilled} through a scratch file")
    assert 2 < ratio < 10

# %% [markdown]
# ## Where quorums lose, besides
#
# **Grouped heads.** In many models several query heads share the keys of one head. Then keys are cheap. Tiles read
# cheap things often, and dear things once. Quorums read all equally often. With 8 heads of queries:

# %%
for n_kv_heads in (8, 2, 1):
    problem = cqs.plan((8, 2**17, 64), *[(n_kv_heads, 2**17, 64)] * 2).problem
    found = Scheduler(memory="64 MiB", setting=from_files).alternatives(problem)
    ratio = found["cqs"].traffic.moved / found["tiles"].traffic.moved
    print(f"H = 8, G = {n_kv_heads}: quorums move {ratio:.1f} times what tiles move")
    assert ratio > 2

# %% [markdown]
# **Powers of two.** W = 7 and W = 13 have perfect covers. W = 8 and W = 16 have not, and they are what clusters tend
# to have. Of 16 groups a worker holds five, 31 % of the queries, keys and values. A grid of 4 × 4 tiles holds 25 %.
#
# **Cross-attention.** If queries and keys are different tokens, there are no pairs within one set, and nothing for a
# quorum to do. The library refuses, and says to take tiles.
#
# ## Where quorums win: a cluster
#
# Now let W workers run at the same time, each with a memory of its own. What counts is how much each must hold, and
# how much they send.
#
# A grid of √W × √W tiles gives a worker N/√W queries, and N/√W keys: other tokens than the queries, unless the tile
# is on the diagonal. That is 2N/√W *distinct tokens*. A quorum gives it mN/W, a little more than N/√W, as queries and
# keys at once. No scheme can do with less: a worker with t tokens can serve t² pairs, and there are N²/W of them for
# each.
#
# When queries, keys and values lie in files this hardly matters. A worker of the grid then reads N/√W queries, and as
# many keys and values: 3N/√W rows, like a quorum. But in a model they are computed, by three projections of the same
# *hidden state* of a token. A worker that projects them itself has to hold the hidden states of its distinct tokens.
# Then quorums need half.

# %%
N = 20_000
workers = (3, 7, 13, 21, 31, 57, 73, 91, 133)
share = {"cqs": [], "tiles": []}
moved = {"cqs": [], "tiles": [], "ring": [], "tree": []}
for W in workers:
    for strategy, found in moved.items():
        plan = cqs.plan(*[(1, N, 64)] * 3, workers=W, strategy=strategy)
        found.append((plan.traffic.read + plan.traffic.results) / plan.problem.input_bytes(N, N))
        if strategy in share:
            held = [
                {token for group in (*task.query_groups, *task.key_groups) for token in group.tokens}
                for task in plan.tasks()
            ]
            share[strategy].append(max(map(len, held)) / N)

figure, (left, right) = plt.subplots(1, 2, figsize=(11, 3.8), layout="constrained")
W = np.array(workers)
for (strategy, found), colour, marker in zip(moved.items(), KINDS, "osD^", strict=False):
    right.plot(W, found, color=colour, marker=marker, ms=5, label=strategy)
    if strategy in share:
        left.plot(W, share[strategy], color=colour, marker=marker, ms=5, ls="none", label=strategy)
left.plot(W, 1 / np.sqrt(W), color=KINDS[0], lw=1, label="1/√W")
left.plot(W, 2 / np.sqrt(W), color=KINDS[1], lw=1, label="2/√W")
left.set(title="Distinct tokens that a worker holds", ylabel="share of the sequence")
right.set(title="Moved by all workers", ylabel="times the inputs")
for ax in (left, right):
    ax.set(xscale="log", yscale="log", xlabel="workers W")
    ax.set_xticks(W, workers)
    ax.tick_params(axis="x", which="minor", bottom=False, labelbottom=False)
    ax.yaxis.set_major_formatter("{x:g}")
    legend = ax.legend()

assert all(b > 1.8 * a for W, a, b in zip(workers, *share.values(), strict=True) if W >= 13)
assert all(a * np.sqrt(W) < 1.16 for W, a in zip(workers, share["cqs"], strict=True))
print(f"W = 133: a quorum holds {share['cqs'][-1]:.1%} of the tokens, a square grid {share['tiles'][-1]:.1%}")

# %% [markdown]
# On the right, quorums and a grid move about 4√W N rows, one quarter of them results. A ring passes 2(W − 1)N rows
# from neighbour to neighbour. A tree sends N queries to W workers, and as many results back. So their curves lie on
# top of each other.
#
# A ring has its merit: a worker holds only 1/W of the keys at a time, and neighbours are near. But all workers must go
# in step, as each waits for what its neighbour sends. With quorums nothing goes between workers at all: 0 bytes were
# passed on.
#
# **Causal masks.** A contiguous grid, or a ring, has workers with twice the mean to do. Quorums are balanced as they
# are: see notebook 03.
#
# **Tasks that can be run again.** If a worker fails, some other machine may run its task, from nothing but the plan and
# the groups of that task. Notebook 04 spoils all other tokens with NaN, and gets the same bits.
#
# ## Dividing a task
#
# A task may turn out too large: another program takes memory, a device is small. *CQS Divide* cuts it with a smaller
# quorum set. Its groups are joined or cut into W, and each part owns some of its tiles. Parts can be divided again.
#
# Take all N tokens as one task and divide by 7. There are 7 parts with 3/7 of the tokens each: 3N are read. Do it t
# times: 7ᵗ parts, and 3ᵗN tokens. (It may be some parts less, since those without a tile are left out.) Or make as
# many parts at once, by a direct cover of W = 7ᵗ. That reads mN tokens:

# %%
n = 3 * 7**3
whole = cqs.plan(*[(1, n, 8)] * 3, workers=1).task(0)
parts = (whole,)
for t in (1, 2, 3):
    parts = [part for task in parts for part in cqs.divide(task, workers=7)]
    tokens = [{token for group in (*part.query_groups, *part.key_groups) for token in group.tokens} for part in parts]
    pairs = sum(len(tile.query) * len(tile.key) for part in parts for tile in part.tiles)
    m = CyclicQuorumSet(7**t).cover.size
    print(f"t = {t}: {len(parts):3} parts read {sum(map(len, tokens)) / n:4.1f} N, a cover of {7**t:3} reads {m} N")
    assert pairs == n * n  # each pair once, whatever the cut
    assert sum(map(len, tokens)) <= 3**t * n
    assert t == 1 or m < sum(map(len, tokens)) / n

# %% [markdown]
# Dividing again and again costs $3^t = W^{0.565}$, and a direct cover about $W^{0.5}$. So plan with a direct cover,
# and divide what does not fit. The library does the latter by itself, when a task runs out of memory.
#
# ## One step further: a million tokens in 64 MiB
#
# Eight heads, a causal mask. In notebook 01 the scores of this sequence took 32 TiB, and the inputs 6 GiB. Here is how
# it would run in 64 MiB, with tiles. Left to itself, with `strategy="auto"`, the Scheduler makes both plans, and takes
# the one that it predicts to be faster. It supposes two threads of 50 GFLOP/s each, and a disk of 1.5 GB/s.

# %%
problem = cqs.plan(*[(8, 2**20, 64)] * 3, is_causal=True).problem
found = Scheduler(memory="64 MiB", setting=from_files).alternatives(problem)
print(found["tiles"])
for strategy, plan in found.items():
    assert plan.projected_bytes <= 64 * 2**20
    print(f"{strategy:5}: moves {plan.traffic.moved / 2**30:5.1f} GiB, takes {plan.seconds() / 3600:.2f} hours")
assert 4 < found["cqs"].traffic.moved / found["tiles"].traffic.moved < 10
assert found["tiles"].seconds() < found["cqs"].seconds() < 1.02 * found["tiles"].seconds()

# %% [markdown]
# Five times the bytes, and about one hundredth more time? With a million tokens there is so much to compute for each
# byte that a disk keeps up, if reading and computing overlap. Traffic is a cost only where it is the narrow place: on
# a slow link, a small budget, or a fast device.
#
# That is predicted. `benchmarks/out_of_core.py` measured one causal head of 262,144 tokens, from `.npy` files, on two
# cores. Under 64 MiB tiles took as long as the same call in memory, and quorums 1.10 times as long. Under 16 MiB it was
# 1.10 times for tiles and 2.54 times for quorums, whose groups are small then, and so are their products of matrices.
# From 65,536 tokens on, under 64 MiB, time grew as $N^{1.99}$ and $N^{2.05}$, memory as $N^{0.18}$ and $N^{-0.09}$.
#
# So the answer to the question is a curve. Memory may be as little as we like, within reason, and it need not grow
# with N. Time grows as N² in any case. Very little memory adds to it, for quorums more than for tiles.

# %% [markdown]
# ## Exercise 1
#
# A million tokens (2²⁰), one head of width 64, float32, no mask. There are 32 MiB for resident queries and their
# sums. How many GiB are moved, with queries, keys, values and outputs?

# %% tags=["exercise"]
gib_moved = ...

check_moved(gib_moved)

# %% [markdown]
# ## Exercise 2
#
# In a ring of W workers 2(W − 1)N rows of keys and values are passed on. With quorums 3mN rows are read, and mN rows
# of results come back. What is the smallest W with which the ring passes more than that?

# %% tags=["exercise"]
n_workers = ...

check_ring(n_workers)

# %% [markdown]
# ## References
#
# - Y. Bian and J. Akey, *Stream-CQSA*, arXiv 2604.20819: attention under a memory budget, and CQS Divide.
# - T. Dao et al., *FlashAttention*, arXiv 2205.14135: the traffic of one device, of order N²D²/M, and why no exact
#   scheme does better for every M.
# - S. Li et al., *Sequence Parallelism: Long Sequence Training from System Perspective*, arXiv 2105.13120: the ring.
# - V. Shyam et al., *Tree Attention*, arXiv 2408.04093: the tree.
# - J.-W. Hong and H. T. Kung, *I/O Complexity: The Red-Blue Pebble Game*, STOC 1981: where such bounds come from.
