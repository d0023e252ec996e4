"""Draw the pictures of the README and the docs: `python docs/pictures/make.py`."""

from importlib import resources
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

import cqs
from cqs import CyclicQuorumSet
from cqs.plot import attention_heatmap, ownership_matrix

HERE = Path(__file__).parent


def main() -> None:
    """Write every picture beside this file; on one machine the same bytes each time."""
    plt.rcParams["svg.hashsalt"] = "cqs"
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 4.8), layout="constrained")
    quorums = CyclicQuorumSet(13)
    ownership_matrix(quorums, ax=left)
    ownership_matrix(quorums, worker=2, ax=right)
    figure.savefig(HERE / "ownership.svg", metadata={"Date": None})
    with resources.files("cqs").joinpath("data/text_qkv_4096.npz").open("rb") as file, np.load(file) as arrays:
        q, k = arrays["q"], arrays["k"]
    found = cqs.attention_map(q, k, rows=128, columns=128)
    figure, places = plt.subplots(1, 2, figsize=(9, 3.8), layout="constrained")
    for head, ax in zip((1, 3), places, strict=True):
        attention_heatmap(found[head], q.shape[-2], k.shape[-2], ax=ax).set_title(f"Head {head}")
    figure.savefig(HERE / "attention_maps.svg", metadata={"Date": None})


if __name__ == "__main__":
    main()
