"""Pictures of quorums, plans and runs. Needs matplotlib: `pip install "cqs-attention[plot]"`.

Every function draws on the Axes it is given, or on those of a new figure, returns them, and shows nothing. Colours can
be told apart with any colour vision: viridis for workers, which is ordered by lightness, and the palette of Okabe and
Ito for kinds.
"""

from cqs.plot.growth import memory_against_tokens, time_against_tokens
from cqs.plot.heatmap import attention_heatmap
from cqs.plot.loads import load_bars, subsequence_lengths, tokens_held
from cqs.plot.quorums import difference_table, ownership_matrix, quorum_circle
from cqs.plot.tiles import tile_map
from cqs.plot.timeline import timeline

__all__ = [
    "attention_heatmap",
    "difference_table",
    "load_bars",
    "memory_against_tokens",
    "ownership_matrix",
    "quorum_circle",
    "subsequence_lengths",
    "tile_map",
    "time_against_tokens",
    "timeline",
    "tokens_held",
]
