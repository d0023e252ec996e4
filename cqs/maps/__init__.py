"""Maps of attention: how much queries attend to keys, summed up over bins of them, at any length."""

from cqs.maps.adder import MapAdder
from cqs.maps.bins import Bins
from cqs.maps.call import attention_map
from cqs.maps.worker import MapResult, MapWorker

__all__ = ["Bins", "MapAdder", "MapResult", "MapWorker", "attention_map"]
