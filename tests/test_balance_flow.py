"""A maximal flow says how tiles are to be shared, and when no sharing is enough."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_balance import cases, flow_reaches

from cqs.quorum import CyclicQuorumSet
from cqs.schedule.balance_flow import shared


@given(case=cases(most_workers=24), share=st.floats(1, 1.5))
def test_tiles_are_shared_by_their_holders_within_the_limit_or_no_sharing_is(case, share: float) -> None:
    quorums, weights = case
    W = quorums.modulus
    limit = int(share * weights.sum() / W)
    shares = shared(quorums, weights, np.where(weights > 0, quorums.ownership(), -1), limit)
    assert (shares is not None) == flow_reaches(quorums, weights, limit)
    if shares is not None:
        loads = [0] * W
        assert set(shares) <= set(map(tuple, np.argwhere(weights).tolist()))
        for g, h in np.argwhere(weights).tolist():
            share_of = shares.get((g, h), {quorums.owner(g, h): int(weights[g, h])})
            assert sum(share_of.values()) == weights[g, h]
            assert min(share_of.values()) > 0
            for i, amount in share_of.items():
                assert i in quorums.holders(g, h)
                loads[i] += amount
        assert max(loads) <= limit


def test_what_is_within_the_limit_stays_as_it_is() -> None:
    quorums, weights = CyclicQuorumSet(8), np.arange(64).reshape(8, 8)
    shares = shared(quorums, weights, quorums.ownership(), int(weights.sum()))
    assert shares == {}


@pytest.mark.parametrize("limit", [7, 8])
def test_a_pair_with_one_holder_leaves_no_choice(limit: int) -> None:
    weights = np.zeros((7, 7), dtype=int)
    weights[2, 4] = weights[4, 2] = 4
    owners = np.where(weights > 0, CyclicQuorumSet(7).ownership(), -1)
    assert (shared(CyclicQuorumSet(7), weights, owners, limit) is not None) == (limit == 8)
