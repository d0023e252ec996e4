"""Difference covers of Z_W, their cyclic quorum sets, and who owns which pair. Integers only."""

from cqs.quorum.cover import DifferenceCover, difference_cover, known_moduli, size_lower_bound
from cqs.quorum.cyclic import CyclicQuorumSet

__all__ = ["CyclicQuorumSet", "DifferenceCover", "difference_cover", "known_moduli", "size_lower_bound"]
