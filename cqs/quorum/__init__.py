"""Difference covers of Z_W, their proofs, their cyclic quorum sets, and who owns which pair. Integers only."""

from cqs.quorum.bounds import size_lower_bound
from cqs.quorum.certificate import Certificate
from cqs.quorum.choice import choose_workers, difference_cover
from cqs.quorum.constructions import bose, lift, partial_lift, product, singer, singer_moduli, wichmann
from cqs.quorum.cover import DifferenceCover
from cqs.quorum.cyclic import CyclicQuorumSet
from cqs.quorum.minimality import Minimality
from cqs.quorum.tables import known_moduli
from cqs.quorum.tabu import search

__all__ = [
    "Certificate",
    "CyclicQuorumSet",
    "DifferenceCover",
    "Minimality",
    "bose",
    "choose_workers",
    "difference_cover",
    "known_moduli",
    "lift",
    "partial_lift",
    "product",
    "search",
    "singer",
    "singer_moduli",
    "size_lower_bound",
    "wichmann",
]
