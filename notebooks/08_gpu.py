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
# # 08 The GPU: computing and copying at once
#
# **Question.** How can a GPU compute and copy at once, and what does that buy?
#
# A GPU computes with a memory of its own. What is in the memory of the machine has to come over a link first, which is
# slow. When does that matter, and what hides it? No GPU is needed: if there is one, the last picture shows it; else the
# CPU stands in for it. All other times are *computed* from rates that are stated, and none is measured.

# %%
from collections import deque
from itertools import pairwise
from types import SimpleNamespace

import matplotlib.pyplot as plt
import numpy as np

import cqs
from checks.gpu import check_break_even, check_two_slots
from cqs.backend import CudaDevice, HostDevice, cuda_devices
from cqs.errors import BackendError
from cqs.events import DeviceBusy
from cqs.plot import timeline
from cqs.plot.style import KINDS
from cqs.trace import Recorder, hidden_share
from cqs.units import format_bytes, format_seconds
from cqs.verify import verify_rows

# %% [markdown]
# ## A small example by hand
#
# A task is n queries against n keys, of width D = 4. Queries, keys and values are 3nD = 12n numbers. Each of the n²
# pairs takes a product of width 4 for its score, and as much for its value: 4D = 16 operations. So
#
# $$ \frac{\text{operations}}{\text{numbers}} = \frac{16 n^2}{12 n} = \frac{4n}{3}. $$
#
# This is the *arithmetic intensity*. It grows with n: each number that is copied meets n others. A toy device may have
# a link of 12 numbers a tick, and 128 operations a tick. Copying takes n ticks, and computing n²/8.
#
# | n | copy | compute |
# | --- | --- | --- |
# | 4 | 4 | 2 |
# | 8 | 8 | 8 |
# | 16 | 16 | 32 |
#
# The *break-even* is at n = 8, where the intensity is that of the device, 128/12. Shorter tasks wait for the link.
# Longer tasks keep the device busy, if the next one is copied meanwhile. A plan has the same counts (in float32, so a
# number has 4 bytes):

# %%
for n in (4, 8, 16):
    plan = cqs.plan(*[(1, n, 4)] * 3, workers=1)
    task = plan.task(0)
    numbers, operations = plan.held_bytes(task) // 4, plan.problem.flops(plan.load(task))
    assert (numbers, operations) == (12 * n, 16 * n**2)
    print(f"n = {n:2}: copy {numbers / 12:2.0f} ticks, compute {operations / 128:2.0f}")

# %% [markdown]
# ## Streams, slots and events
#
# A GPU has units that copy, one for each direction, besides those that compute. They work at the same time, if they
# are told to in different *streams*. A stream is a queue: what is put into it is done in order, one thing after the
# other. Between streams there is no order at all. The library has three for each GPU: copies in, computing, and
# copies out.
#
# A *slot* is a piece of the GPU's memory that inputs pass through, again and again. And an *event* is a mark in one
# stream that another can be made to wait for. Three things have to be in order, whatever the streams do:
#
# 1. a task is computed when its slot is **full**,
# 2. a slot is filled again when it is **free**, after what reads it has been computed,
# 3. a result is copied out when it is **computed**.
#
# So a slot has two events, and a result one. (Copies that run by themselves take memory that does not move: *pinned*.)
#
# What if the second is forgotten? A slot on the CPU, which stands in for a GPU here, shows it. One task's numbers are
# in the slot, and nobody has computed with them yet. The next task's come.

# %%
with HostDevice().opened() as session:
    slot = session.slot(256)
    (first,) = slot.fill([np.full(4, 1.0)])
    slot.wait()
    (second,) = slot.fill([np.full(4, 100.0)])  # too early: nobody has said that `first` is done with
    wrong = first.sum()

    (first,) = slot.fill([np.full(4, 1.0)])
    slot.wait()  # computing waits until it is full
    right = first.sum()
    slot.free()  # the last that reads it has been told to compute
    (second,) = slot.fill([np.full(4, 100.0)])

assert (right, wrong) == (4, 400)
print(f"in order {right}, too early {wrong}")

# %% [markdown]
# No error is raised, and the result is a number like any other. On a GPU it depends on which of two streams was faster.
# So an array must not be overwritten, nor its memory given to another array, while some stream still reads it.
#
# ## A picture: one slot, two slots, no events
#
# Four tasks, by hand again. Each takes 2 ticks to copy in, 3 to compute and 1 to copy back.
#
# - With one queue for everything: 4 · (2 + 3 + 1) = 24.
# - With three queues and *one slot*, a task is copied in when the one before is computed. Only results go back
#   meanwhile: 4 · (2 + 3) + 1 = 21.
# - With *two slots* they take turns: one is filled while the other is read. This is *double buffering*. Now computing
#   never waits, but for the first copy: 2 + 4 · 3 + 1 = 15.
#
# In general, if results go back faster than either, n equal tasks with two slots take
#
# $$ \text{in} + \text{compute} + \text{back} + (n - 1) \cdot \max(\text{in}, \text{compute}). $$
#
# The slower of the two sets the pace, and the other one is paid for once. A third slot would gain nothing.

# %%
into, computing, back, n_tasks = 2, 3, 1, 4
cases = {"one slot": (1, True), "two slots": (2, True), "two slots, no events": (2, False)}
figure, axes = plt.subplots(3, 1, figsize=(8, 6), layout="constrained", sharex=True)
for ax, (title, (n_slots, waits)) in zip(axes, cases.items(), strict=True):
    spans, filled, computed, returned, n_early = [], 0, [], 0, 0
    for i in range(n_tasks):
        free = computed[i - n_slots] if i >= n_slots else 0
        start = max(filled, free) if waits else filled
        filled = start + into
        too_early = start < free  # it is filled while it is read
        n_early += too_early
        begin = max(filled, computed[-1] if i else 0)
        computed.append(begin + computing)
        leaves = max(computed[-1], returned)
        returned = leaves + back
        bars = {"copy in": (start, filled), "compute": (begin, computed[-1]), "copy out": (leaves, returned)}
        for lane, (first, last) in bars.items():
            name = "too early" if lane == "copy in" and too_early else str(i)
            spans.append(SimpleNamespace(lane=lane, name=name, kind=lane, start=first, stop=last))
    ax = timeline(spans, ax)
    ax.set(xlabel="")
    ax.set_title(f"{title}: {returned} ticks", loc="left", fontsize=10)
    assert (returned, n_early) == {"one slot": (21, 0), "two slots": (15, 0)}.get(title, (15, 2))
    if ax is not axes[0]:
        ax.get_legend().remove()
axes[0].set_xlim(0, 22)
axes[0].set_xticks(range(0, 22, 5), range(0, 22, 5))
label = axes[-1].set_xlabel("ticks")

# %% [markdown]
# Without events two copies come too early, two results would be wrong, and nothing is gained: 15 ticks with or without.
#
# ## When is copying hidden?
#
# A task of a quorum set reads m groups of n = N/W tokens, as queries, keys and values: 3mn rows of D numbers, of s
# bytes each. It computes its share of the pairs, N²/W = Wn², and 4D operations for each. With H heads both are H times
# as much (the library makes H times as many tasks instead). So H and D drop out of the intensity:
#
# $$ \frac{\text{operations}}{\text{bytes}} = \frac{4 D W n^2}{3 m n D s} = \frac{4 W n}{3 m s} = \frac{4 N}{3 m s}. $$
#
# With F operations and B bytes a second, computing takes longer than copying if
#
# $$ N > \frac{3 m s}{4} \cdot \frac{F}{B}, \qquad\text{that is}\qquad n > \frac{3 m s}{4 W} \cdot \frac{F}{B}. $$
#
# We *suppose* F = 400 TFLOP/s in float16, and B = 50 GB/s. That is in reach of a recent GPU for data centres, and of
# a link by PCIe of the fifth generation, which carries 64 GB/s at most. Then F/B = 8000 operations a byte. For W = 7,
# m = 3 and s = 2 the break-even is at N = 36,000.
#
# Is this what plans come to? They are made for a device with 64 GiB, which is only described; nothing is computed.

# %%
F, B, H, D = 400e12, 50e9, 1, 64
described = HostDevice(memory=64 << 30)
lengths = [2**12 * 2**i for i in range(8)]
for W in (7, 31):
    for N in lengths:
        plan = cqs.plan(*[(H, N, D)] * 3, dtype="float16", workers=W, strategy="cqs", devices=[described])
        task, m = plan.task(0), len(plan.base)
        n_bytes, flops = plan.held_bytes(task), plan.problem.flops(plan.load(task))
        assert np.isclose(flops / n_bytes, 4 * N / (3 * m * 2), rtol=0.01)
    even = 3 * m * 2 / 4 * F / B
    print(f"W = {W:2}, m = {m}: break-even at N = {even:,.0f}, with groups of {even / W:,.0f}")

# %% [markdown]
# ## A timeline that is computed
#
# What would a run be like at these rates? `plan.reads_of(task)` says what is copied for a task, in order. Each strip is
# computed when its queries are there. In the library a slot holds one group: its queries, or its keys and values. A
# task keeps m groups of keys until it is done, and lets go of queries when their strip is computed. We compare:
#
# - *none to spare*: m slots for keys, and one for queries. That is what a task needs, and nothing is copied ahead;
# - *one of each to spare*: m + 1 for keys, and two for queries. While a task is computed, the first keys of the next
#   are copied;
# - *a task's to spare*: 2m for keys, and m for queries. Now the link need not wait.
#
# What has been computed stays on the device, is merged there, and comes back at the end, which we leave out.

# %%
W, m = 7, 3
amounts = {"none to spare": (m, 1), "one of each to spare": (m + 1, 2), "a task's to spare": (2 * m, m)}
share, drawn = {}, {}
for N in lengths:
    plan = cqs.plan(*[(H, N, D)] * 3, dtype="float16", workers=W, strategy="cqs", devices=[described])
    for amount, (of_keys, of_queries) in amounts.items():
        free = {"keys": deque([0.0] * of_keys), "queries": deque([0.0] * of_queries)}
        spans, copied, computed = [], 0.0, 0.0
        for task in plan.tasks():
            strips, common = iter(task.strips), {"name": "", "kind": f"task {task.index}"}
            for _, read, n_bytes in plan.reads_of(task):
                start = max(copied, free[read.what].popleft())  # when the link is free, and a slot is
                copied = start + n_bytes / B
                spans.append(SimpleNamespace(lane="copy in", start=start, stop=copied, **common))
                if read.what == "queries":
                    strip = next(strips)
                    start = max(copied, computed)  # when they are there, and the device is free
                    computed = start + plan.problem.flops(len(strip.query) * sum(map(len, strip.keys))) / F
                    spans.append(SimpleNamespace(lane="compute", start=start, stop=computed, **common))
                    free["queries"].append(computed)
            free["keys"].extend([computed] * m)
        share[amount, N] = plan.problem.flops(plan.problem.n_pairs) / F / computed
        drawn[amount, N] = spans

# %%
N = 2**16
figure, axes = plt.subplots(3, 1, figsize=(9, 5.4), layout="constrained", sharex=True)
for ax, amount in zip(axes, amounts, strict=True):
    ax = timeline(drawn[amount, N], ax)
    took = max(span.stop for span in drawn[amount, N])
    ax.set(xlabel="")
    ax.set_title(f"{amount}: {format_seconds(took)}, computing {share[amount, N]:.0%} of it", loc="left", fontsize=10)
    if ax is not axes[0]:
        ax.get_legend().remove()
axes[0].set_xlim(0, max(span.stop for span in drawn["none to spare", N]))
label = axes[-1].set_xlabel(f"computed for N = {N:,}, 400 TFLOP/s and 50 GB/s, not measured")

# %% [markdown]
# Each colour is a task. White gaps in the lower lane are the time that is lost.
#
# ## What does it buy?
#
# Say a task takes a to copy and c to compute: a + c one after the other, and max(a, c) at once, never less than half.
# So overlap buys *at most a factor of two*, and most at the break-even. Far above, there is not much to hide.

# %%
figure, ax = plt.subplots(figsize=(6, 3.2), layout="constrained")
for (amount, _), colour, marker in zip(amounts.items(), KINDS, "osD", strict=False):
    ax.plot(lengths, [share[amount, N] for N in lengths], color=colour, marker=marker, ms=5, label=amount)
ax.axvline(36_000, color="0.5", lw=1, ls=":")
ax.set_xscale("log", base=2)
ax.set_xticks(lengths, [f"{N // 1024}k" for N in lengths])
ax.set(xlabel="tokens N", ylabel="share of time that computes", title="Computed for W = 7, not measured", ylim=(0, 1))
legend = ax.legend()

for N in lengths:
    none, one, many = (share[amount, N] for amount in amounts)
    assert none <= one <= many <= min(1, 2 * none)
    print(f"N = {N:7,}: with many slots it takes {none / many:.0%} of the time with none to spare")

# %% [markdown]
# The best is 57 %, and not half: nothing hides the first copy, and seven tasks are few. The price is memory, twice
# as much for keys. So the library plans for a task's to spare only if memory is left for them:

# %%
plan = cqs.plan(*[(H, 2**16, D)] * 3, dtype="float16", workers=W, strategy="cqs", devices=[described])
row = H * D * 2 * 2**16 // W  # bytes of a group of queries; keys come with values
less = {"devices": [described], "memory": plan.projected_bytes - row}
tight = cqs.plan(*[(H, 2**16, D)] * 3, dtype="float16", workers=W, **less)
assert np.isclose(plan.footprint.inputs, (2 * 2 * m + m) * row, rtol=0.01)
print(f"{format_bytes(plan.footprint.inputs)} of slots, or with less memory {format_bytes(tight.footprint.inputs)}")

# %% [markdown]
# ## Checked by the library: what the engine does
#
# Now something real. The library's engine for devices runs a call, with tasks, slots and streams as on a GPU, and a
# `Recorder` takes down what its thread did. If there is a GPU, it runs there. If not, a `HostDevice` stands in: the
# CPU, which copies everything as if it were far away, and does one thing at a time.

# %%
try:
    is_gpu = cuda_devices() > 0
except BackendError:
    is_gpu = False
device = CudaDevice(0) if is_gpu else HostDevice()
x = np.random.default_rng(0).standard_normal((3, 4, 2**16 if is_gpu else 4200, 64), dtype=np.float32)
options = {"workers": 7, "strategy": "cqs", "devices": [device]}
plan, recorder = cqs.plan(*x, **options), Recorder()
out = cqs.attention(*x, **options, on_event=recorder)
assert verify_rows(out, *x, n_rows=16).passed

copies = [event for event in recorder.events if event.kind == "BytesUploaded"]
tiles = [event for event in recorder.events if event.kind == "TileDone"]
assert sum(copy.n_bytes for copy in copies) == plan.traffic.read
print(f"on {device.name}: {len(copies)} copies, {format_bytes(plan.traffic.read)}, {len(tiles)} strips computed")

# %%
lanes = {"BytesUploaded": "copy in", "TileDone": "compute", "ResultMerged": "merge", "BytesWritten": "write"}
spans = [
    SimpleNamespace(lane=lanes[e.kind], name="", kind=f"task {e.task}", start=e.start, stop=e.stop)
    for e in recorder.events
    if e.kind in lanes and e.task < 3
]
ax = timeline(spans)
where = f"Three tasks, recorded on {device.name}" + ("" if is_gpu else ", which stands in for a GPU")
title = ax.set_title(where, loc="left", fontsize=10)

# %% [markdown]
# With a stand-in nothing overlaps, and the picture does not pretend that it does. Copies are short, too: a CPU
# computes so slowly that almost any link would do. With a GPU these bars say what the *thread* did: it starts copies
# and kernels, and goes on at once. What the *device* did it says itself, by its own clock, in events `DeviceBusy`: a
# lane for each of its queues. `hidden_share` is the share of the time of copying in which it computed as well.

# %%
busy = [event for event in recorder.events if isinstance(event, DeviceBusy)]
last = max(event.stop for event in busy if event.what == "compute" and event.task < 3)
ax = timeline([event for event in busy if event.start <= last])
title = ax.set_title("Three tasks, as the device saw them", loc="left", fontsize=10)
hidden = hidden_share(recorder.events)
assert is_gpu or np.isclose(hidden, 0)
print(f"hidden: {hidden:.0%} of the time of copying")

# %% [markdown]
# What matters is the *order*, and that is the same for both. Before a task's last strip is begun, copying for the next
# task has begun. On a device with streams of its own these copies go on while the strips are computed. How much is
# copied ahead, the slots decide:

# %%
ordered = sorted(spans, key=lambda span: span.start)
assert is_gpu or all(a.stop <= b.start for a, b in pairwise(ordered))
for i in range(1, 7):
    first_copy = min(copy.start for copy in copies if copy.task == i)
    last_strip = max(tile.start for tile in tiles if tile.task == i - 1)
    ahead = sum(copy.start < last_strip for copy in copies if copy.task == i)
    assert first_copy < last_strip
    print(f"task {i}: {ahead} of {sum(copy.task == i for copy in copies)} groups begin to be copied ahead of time")

# %% [markdown]
# ## One step further: other links, other schemes
#
# The break-even is proportional to F/B, so a link ten times slower wants sequences ten times longer. The rates are
# supposed, not measured. The third is what the Scheduler supposes, since a thread copies into pinned memory first.
#
# With *resident-query tiles* of notebook 07, R queries stay and keys stream past. Each key and value, 2Ds bytes, then
# takes 4DR operations. The intensity is 2R/s, however long the sequence is. In half precision R is F/B itself.

# %%
for link, rate in {"NVLink-C2C": 400e9, "PCIe 5": 50e9, "copied twice": 10e9, "a disk": 3e9}.items():
    quorums, tiles = (3 * m * 2 / 4 * F / rate for m in (3, 6)), F / rate
    said = ", ".join(f"W = {W}: N = {N:9,.0f}" for W, N in zip((7, 31), quorums, strict=True))
    print(f"{link:12} {rate / 1e9:3.0f} GB/s, {said}; tiles: R = {tiles:7,.0f}")

plan = cqs.plan(*[(H, 2**20, D)] * 3, dtype="float16", workers=128, strategy="ring")
task = plan.task(5)  # that of a ring is a row of tiles: R queries against all keys
R = 2**20 // 128
assert np.isclose(plan.problem.flops(plan.load(task)) / plan.held_bytes(task), 2 * R / 2, rtol=0.01)

# %% [markdown]
# A model that generates text has one query at a time: R = 1, or a few. No overlap helps there: keys have to be where
# computing is. And one level down, between a GPU's memory and that on its chip, the same reasoning is FlashAttention.
#
# How to use a GPU, and what to do if something is missing, says the page [GPUs](../docs/how-to/gpu.md).
# So the answer to the question: by three queues, two slots, and events between them. It buys up to a factor of two,
# and nothing if tasks are too short.

# %% [markdown]
# ## Exercise 1
#
# W = 13 workers, so m = 4, and float32, so s = 4. The device computes 30 TFLOP/s, and the link carries 25 GB/s. From
# how many tokens N on can copying be hidden?

# %% tags=["exercise"]
n_tokens = ...

check_break_even(n_tokens)

# %% [markdown]
# ## Exercise 2
#
# Seven equal tasks, with three queues and two slots. Each takes 4 ms to copy in, 3 ms to compute and 1 ms to copy
# back. After how many ms is everything done?

# %% tags=["exercise"]
milliseconds = ...

check_two_slots(milliseconds)

# %% [markdown]
# ## References
#
# - NVIDIA, *CUDA C++ Programming Guide*, on asynchronous concurrent execution: streams, events, and pinned memory.
# - M. Harris, *How to Overlap Data Transfers in CUDA C/C++*, NVIDIA Technical Blog, 2012.
# - S. Williams, A. Waterman and D. Patterson, *Roofline*, Communications of the ACM 52(4) (2009) 65–76: arithmetic
#   intensity, and what it says of speed.
# - T. Dao et al., *FlashAttention*, arXiv 2205.14135: the same for the memory of a GPU and that of its chip.
# - Y. Bian and J. Akey, *Stream-CQSA*, arXiv 2604.20819: quorum sets on a device whose memory is too small.
# - Y. Bian and A. K. Somani, *CQS-Attention*, IEEE Access 13 (2025) 35527–35538.
