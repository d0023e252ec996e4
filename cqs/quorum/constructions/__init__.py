"""The constructions of difference covers, each a function by name and a value that knows its proof."""

from cqs.quorum.constructions.amendments import Reduced, Repaired, drop_redundant
from cqs.quorum.constructions.bose_sets import Bose, bose
from cqs.quorum.constructions.cut import best_moves, cells_measured
from cqs.quorum.constructions.lifts import Lift, lift, partial_lift
from cqs.quorum.constructions.moves import Moved, move, moved_onto
from cqs.quorum.constructions.products import Product, product
from cqs.quorum.constructions.singer_sets import Singer, singer, singer_moduli
from cqs.quorum.constructions.wichmann_rulers import RULERS, Wichmann, reach_of_ruler, wichmann, wichmann_ruler

__all__ = [
    "RULERS",
    "Bose",
    "Lift",
    "Moved",
    "Product",
    "Reduced",
    "Repaired",
    "Singer",
    "Wichmann",
    "best_moves",
    "bose",
    "cells_measured",
    "drop_redundant",
    "lift",
    "move",
    "moved_onto",
    "partial_lift",
    "product",
    "reach_of_ruler",
    "singer",
    "singer_moduli",
    "wichmann",
    "wichmann_ruler",
]
