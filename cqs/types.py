"""The letter legend, and the names that stand for arrays of any library.

One letter means one thing in every file, docstring and test:

====  =======================================  =========================================
`B`   batch dimensions, any number of them     `q` is `(*B, H, T, D)`
`H`   query heads                              `k` is `(*B, G, S, D)`
`G`   key/value heads, a divisor of `H`        `v` is `(*B, G, S, E)`
`T`   query tokens                             `out` is `(*B, H, T, E)`
`S`   key tokens                               `lse` is `(*B, H, T)`
`D`   width of a query and of a key
`E`   width of a value
`W`   workers, the modulus of the quorum set
`m`   size of a quorum, about `sqrt(W)`
====  =======================================  =========================================

Counts are `n_*`, byte counts `*_bytes`. A log-sum-exp is `lse` and its logarithm is natural.
"""

from typing import Any, TypeAlias

__all__ = ["Array", "DType", "Namespace"]

# Array libraries share no static base type; at run time these are checked by the array API, not by name.
Array: TypeAlias = Any
DType: TypeAlias = Any
Namespace: TypeAlias = Any
