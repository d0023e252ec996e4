"""Exercises of notebook 09: the case study."""

from checks.forms import whole_number
from checks.verdict import exercise
from cqs import difference_cover

__all__ = ["check_fewest_workers", "check_longest_subsequence"]

_SHARE = 0.2


@exercise(
    hint="13 groups of 1000 / 13 = 76.9 tokens: of 76 or of 77. A worker holds 4 groups.",
    right="12 of the 13 groups have 77 tokens, so some worker has four of those. N / sqrt(W) would be 277.",
    form=whole_number(),
)
def check_longest_subsequence(n_tokens: int) -> str | None:
    """Check the longest subsequence of 1000 tokens and 13 workers, each with 4 groups."""
    mistakes = {
        77: "That is the longest group. A worker holds four.",
        304: "That is four groups of 76. But 13 x 76 = 988: the other 12 tokens make 12 groups longer by one.",
        307: "That takes the mean group, 76.9 tokens. The longest subsequence has groups of 77 only.",
        277: "That is N / sqrt(W), which the share 4/13 comes near but does not reach.",
        231: "That is three groups. The cover of Z_13 has four elements, for 4 x 3 = 12 = 13 - 1.",
    }
    if n_tokens in mistakes:
        return mistakes[n_tokens]
    if n_tokens == 308:
        return None
    return f"Groups have 76 or 77 tokens, so four of them have 304 to 308. {n_tokens} is not it."


@exercise(
    hint="the share is m / W, and m(m - 1) >= W - 1. So m is about sqrt(W), and W about 25. See which covers exist.",
    right="6/31 = 19.4 %. The plane of order 5 is best: W = 30 needs 7 of its groups, 23.3 %.",
    form=whole_number(least=1),
)
def check_fewest_workers(n_workers: int) -> str | None:
    """Check the fewest workers of which each holds at most a fifth of the tokens."""
    cover = difference_cover(n_workers)
    share = cover.size / n_workers
    if share > _SHARE:
        return (
            f"{n_workers} workers hold {cover.size} groups each: {cover.size}/{n_workers} = {share:.1%} of the tokens."
        )
    fewer = next((W for W in range(1, n_workers) if difference_cover(W).size / W <= _SHARE), None)
    if fewer is not None:
        return f"{n_workers} workers hold {share:.1%} each, which is allowed. But fewer would do."
    return None
