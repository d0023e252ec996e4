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
# # 02 Quorums: why groups must meet
#
# **Question.** W workers share a sequence of W groups of tokens. Every two groups have to be compared, by a worker
# that holds both. How little can each worker hold?
#
# If everybody held everything, any two groups would meet W times. If everybody held one group, none would. The answer
# lies between, at about $\sqrt{W}$ groups.

# %%
from dataclasses import replace
from math import comb, exp, sqrt

import matplotlib.pyplot as plt
import numpy as np
import sympy

import cqs
from checks.quorums import check_cover, check_meeting
from cqs import CyclicQuorumSet, DifferenceCover, plot
from cqs.errors import CertificateError, QuorumError
from cqs.quorum import singer, singer_moduli, size_lower_bound

# %% [markdown]
# ## A first idea: luck
#
# Let every worker draw m of the W groups at random. Two such sets have a chance to have a group in common. This is
# the *birthday problem*, and its answer is well known to be surprising: m needs to be a few times $\sqrt{W}$ only.
#
# All choices of m groups are equally likely, so the chance that the second set misses the first is a quotient of
# binomials. For small m it is close to $e^{-m^2/W}$.

# %%
W = 133
for m in (6, 12, 18, 24, 30):
    missed = comb(W - m, m) / comb(W, m)
    print(f"m = {m:2}: no common group with probability {missed:.4f}, and exp(-m^2/W) = {exp(-m * m / W):.4f}")

# %% [markdown]
# $\sqrt{133}$ is 11.5, and with m = 12 two sets meet two times out of three. Luck gives the right size. But we need
# certainty, and for every pair. That takes structure.

# %% [markdown]
# ## A lower bound, by counting
#
# A worker that holds m groups holds m(m − 1) ordered pairs of them. W workers hold W m(m − 1) pairs, and W(W − 1)
# have to be held by someone. So m(m − 1) ≥ W − 1, whatever the structure: m is at least about $\sqrt{W}$.

# %%
assert size_lower_bound(7) == 3  # 3 * 2 = 6 = 7 - 1
assert size_lower_bound(133) == 12  # 12 * 11 = 132 = 133 - 1

# %% [markdown]
# ## A small example by hand
#
# Take W = 7. Number the groups 0 to 6, around a circle, so that 0 follows 6. Give worker 0 the groups {0, 1, 3},
# worker 1 the groups {1, 2, 4}, and so on: worker i holds $\{0, 1, 3\} + i$ modulo 7.
#
# When do two groups g and h lie in one of these sets? When two elements a, b of {0, 1, 3} have the same *difference*:
# $a - b = g - h$ modulo 7. Then worker $i = g - a$ holds $a + i = g$ and $b + i = h$. So the question is only whether
# all differences occur:

# %%
differences = {(a - b) % 7: (a, b) for a in (0, 1, 3) for b in (0, 1, 3)}
for d in range(1, 7):
    a, b = differences[d]
    print(f"{d} = {a} - {b} modulo 7")
assert len(differences) == 7

# %% [markdown]
# They do, each of the six in exactly one way. A set with all differences is a *difference cover* of $Z_W$, and its
# translates are a *cyclic quorum set*. (Bian and Somani's paper *CQS-Attention*, which brought quorums to attention
# and is "the paper" in these notebooks, says interest set for the cover.) A cover in which each difference occurs once
# is *perfect*: it meets the bound.
#
# The word quorum is from distributed computing, where a vote counts if any two voting sets share a member. Here any
# two quorums share a group as well, and that follows from the differences, too.

# %%
quorums = CyclicQuorumSet(7, (0, 1, 3))
for i in range(7):
    print(f"worker {i} holds {quorums.quorum(i)}")

# %% [markdown]
# ## A picture
#
# Left: the quorum of worker 0 on the circle. Its chords have the lengths 1, 2 and 3, and no other lengths exist on a
# circle of seven places. To find who holds two groups, turn the triangle until a chord lies on them. Right: the
# differences as a table.

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(9, 4.5), layout="constrained")
plot.quorum_circle(quorums, ax=left)
ax = plot.difference_table(quorums, ax=right)

# %% [markdown]
# The same for W = 133. Twelve of 133 groups are enough for each worker.

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(10, 5), layout="constrained")
plot.quorum_circle(CyclicQuorumSet(133), ax=left)
ax = plot.difference_table(CyclicQuorumSet(133), ax=right)

# %% [markdown]
# ## Checked by the library
#
# `holders(g, h)` names the workers that hold both groups. There is always one; and any two quorums meet.

# %%
for W in range(1, 41):
    quorums = CyclicQuorumSet(W)
    assert all(quorums.holders(g, h) for g in range(W) for h in range(W))
    held = [set(quorums.quorum(i)) for i in range(W)]
    assert all(a & b for a in held for b in held)

# %% [markdown]
# A set that is no cover is refused, with a difference that is missing. There is no way to have a quorum set that does
# not work.

# %%
try:
    DifferenceCover(7, (0, 1, 2))
except QuorumError as error:
    print(error)

# %% [markdown]
# ## Where covers come from: Singer's plane
#
# Perfect covers are rare, and beautiful. A *projective plane* has points and lines, two points lie on one line, and
# two lines meet in one point. Read "group" for point and "quorum" for line. The smallest plane, Fano's, has 7 points
# and 7 lines of 3 points: it is our example.

# %%
fano = CyclicQuorumSet(7, singer(2).base)
lines = [set(fano.quorum(i)) for i in range(7)]
assert all(len(a & b) == 1 for a in lines for b in lines if a != b)
lines

# %% [markdown]
# James Singer found in 1938 that there is such a cyclic plane for every prime power q, with $W = q^2 + q + 1$ points
# and $q + 1$ on a line. Its points are the elements of the field with $q^3$ elements, up to factors. These are the
# moduli below 200:

# %%
print([(W, cqs.difference_cover(W).size) for W in singer_moduli(200)])
assert all(cqs.difference_cover(W).is_perfect for W in singer_moduli(200))

# %% [markdown]
# ## The proof, line by line
#
# A cover in this library knows its own proof. `certificate.steps()` gives it as claims, each with a computation that
# decides it. To read them:
#
# - q is a power $p^e$ of a prime p. Here p = 2 and e = 1, so a degree of 3e is 3.
# - GF(2), the *Galois field* of two elements, is the numbers 0 and 1 with sums and products modulo 2. GF(2)[x] are the
#   polynomials with such coefficients, and GF(2)[x]/f what remains of them modulo f.
# - x has *order* 7 if $x^7$ is the first of its powers $x^1, x^2, \ldots$ that is 1.
#
# For q = 2:

# %%
certificate = singer(2).certificate
for number, step in enumerate(certificate.steps(), start=1):
    print(f"{number}. {step}")
    assert step.check()

# %% [markdown]
# Let us follow it with SymPy, on our own. **Steps 1 to 3**: $f = x^3 + x + 1$ has no factor over GF(2), so polynomials
# in x, modulo f and modulo 2, are a field. It has 8 elements: $c_2 x^2 + c_1 x + c_0$. And x has order 7: its powers
# are all of them but 0.

# %%
x = sympy.symbols("x")
f = sympy.Poly(x**3 + x + 1, x, modulus=2)
assert f.is_irreducible
powers = [sympy.Poly(x**i, x, modulus=2).rem(f) for i in range(8)]
for i, power in enumerate(powers):
    print(f"x^{i} =", power.as_expr())
assert len(set(powers[:7])) == 7
assert powers[7] == powers[0] == 1

# %% [markdown]
# **Step 4**: the trace $\mathrm{Tr}(y) = y + y^2 + y^4$ is always 0 or 1. The exponents i at which
# $\mathrm{Tr}(x^i) = 0$ are the set. In the plane they are the points of one line.

# %%
traces = [(powers[i] + powers[2 * i % 7] + powers[4 * i % 7]).as_expr() for i in range(7)]
print(dict(enumerate(traces)))
assert tuple(i for i, trace in enumerate(traces) if trace == 0) == singer(2).base == (1, 2, 4)

# %% [markdown]
# **Steps 5 and 6**: adding d to all exponents is multiplying by $x^d$, which moves the line to another. Two lines
# meet in one point: there is exactly one i with both i and i − d in the set. That says that d is a difference, in one
# way.

# %%
line = set(singer(2).base)
for d in range(1, 7):
    moved = {(i + d) % 7 for i in line}
    print(f"{sorted(line)} and {sorted(moved)} meet in {line & moved}")
    assert len(line & moved) == 1

# %% [markdown]
# **Step 7** is the smallest, and ties the theorem to these numbers. All that was said is about the set of step 4. It
# says nothing of a base that somebody wrote down, unless that base is this set: {1, 2, 4}, no more and no less.
#
# **Step 8**, the last, proves any cover, wherever it came from. Write the set as a polynomial,
# $\theta(x) = x + x^2 + x^4$, and multiply it by $\theta(1/x)$. Each pair (a, b) gives a term $x^{a - b}$. So the
# coefficient of $x^d$, exponents modulo 7, counts the pairs with difference d. This is M. Hall's identity.

# %%
theta = sum(x**a for a in (1, 2, 4))
theta_reversed = sum(x ** (-a % 7) for a in (1, 2, 4))
product = sympy.rem(sympy.expand(theta * theta_reversed), x**7 - 1, x)
print(product)
assert product == 2 + sum(x**d for d in range(7))  # every difference once; 0 three times, since 0 = a - a

# %% [markdown]
# A proof is worth something if a wrong one fails. Here the base is changed, and nothing else. Steps 1 to 6 do not
# speak of the base, and hold. Step 7 is where it comes out:

# %%
forged = replace(certificate, base=(1, 2, 5))
try:
    forged.verify()
except CertificateError as error:
    print(error)

# %% [markdown]
# ## One step further: every W, and how good
#
# Most W have no perfect cover. The library knows the smallest covers for small W, and constructs good ones for any
# other. It says how far it knows that nothing smaller exists, and why.

# %%
for W in (31, 20, 111, 110, 200, 10_000):
    cover = cqs.difference_cover(W)
    print(f"W = {W}: {cover.size} elements, at least {cover.lower_bound}. {cover.minimality}")

# %% [markdown]
# The most that a worker holds of N = 10 000 tokens, for every W to 200. Nothing lies below the dashed curve,
# $N/\sqrt{W}$: by the bound, m is a little more than $\sqrt{W}$. Perfect covers come nearest, the nearer the larger
# W is: $3/\sqrt{7}$ is 1.13, and $12/\sqrt{133}$ is 1.04. W = 1 and W = 3 are marked as perfect, too, though they
# are no planes: with one group and with two, m(m − 1) = W − 1 holds trivially. The others cost more, but not much more:

# %%
ax = plot.subsequence_lengths(10_000, range(1, 201))
for moduli in (range(1, 20), range(20, 201)):
    waste = [cqs.difference_cover(W).size / sqrt(W) for W in moduli]
    least, most, mean = min(waste), max(waste), np.mean(waste)
    print(f"W = {moduli[0]} to {moduli[-1]}: m / sqrt(W) is {least:.2f} to {most:.2f}, {mean:.2f} on average")
assert max(waste) < 1.35

# %% [markdown]
# ## Exercise 1
#
# Find a difference cover of $Z_{13}$ with four elements, other than by asking the library. Exercise 2 shows one; find
# one that is neither that nor a translate of it.

# %% tags=["exercise"]
base = ...  # four numbers, such as {0, 1, 2, 5}, which is no cover

check_cover(base)

# %% [markdown]
# ## Exercise 2
#
# W = 13 and D = {0, 1, 3, 9}. Which worker holds the groups 5 and 11? Do not list all thirteen quorums.

# %% tags=["exercise"]
worker = ...

check_meeting(worker)

# %% [markdown]
# ## References
#
# - J. Singer, *A theorem in finite projective geometry and some applications to number theory*, Trans. AMS 43 (1938)
#   377–385.
# - M. Hall, *Cyclic projective planes*, Duke Math. J. 14 (1947) 1079–1090.
# - W.-S. Luk and T.-T. Wong, *Two new quorum based algorithms for distributed mutual exclusion*, ICDCS 1997: cyclic
#   quorums.
# - Y. Bian and A. K. Somani, *CQS-Attention*, IEEE Access 13 (2025) 35527–35538.
