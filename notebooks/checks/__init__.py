"""Checkers for the exercises of the notebooks: each says what is wrong with an answer, and why.

>>> from checks.workers import check_overflow
>>> check_overflow(...)
Not answered yet. Put your answer in place of the three dots. Hint: exp(x) overflows beyond the logarithm of the largest
number, which is `np.finfo(np.float32).max`.
"""
