"""The constructions of difference covers, each a function by name and a value that knows its proof."""

from cqs.quorum.constructions.amend import Reduced, Repaired, drop_redundant
from cqs.quorum.constructions.bose import Bose, bose
from cqs.quorum.constructions.lift import Lift, lift, partial_lift
from cqs.quorum.constructions.move import Moved, move, moved_onto
from cqs.quorum.constructions.product import Product, product
from cqs.quorum.constructions.singer import Singer, singer, singer_moduli
from cqs.quorum.constructions.wichmann import RULERS, Wichmann, reach_of_ruler, wichmann, wichmann_ruler

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
    "bose",
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
