"""Draw the pictures of the README and the docs: `python docs/pictures/make.py`."""

from pathlib import Path

import matplotlib.pyplot as plt

from cqs import CyclicQuorumSet
from cqs.plot import ownership_matrix

HERE = Path(__file__).parent


def main() -> None:
    """Write every picture beside this file, the same bytes each time."""
    plt.rcParams["svg.hashsalt"] = "cqs"
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 4.8), layout="constrained")
    quorums = CyclicQuorumSet(13)
    ownership_matrix(quorums, ax=left)
    ownership_matrix(quorums, worker=2, ax=right)
    figure.savefig(HERE / "ownership.svg", metadata={"Date": None})


if __name__ == "__main__":
    main()
