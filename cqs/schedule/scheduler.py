"""The Scheduler: a problem and the machine's wishes become a Plan."""

from dataclasses import dataclass

from cqs.checks import whole_number
from cqs.errors import OptionError
from cqs.machine import available_cpus
from cqs.problem import AttentionProblem
from cqs.quorum import CyclicQuorumSet, choose_workers, singer_moduli
from cqs.schedule.plan import Plan

__all__ = ["STRATEGIES", "Scheduler", "default_workers"]

STRATEGIES = ("auto", "cqs", "tiles")
_LEAST_GROUP = 256  # tokens; in smaller groups a kernel call costs more than it computes


def default_workers(n_tokens: int, n_cpus: int | None = None) -> int:
    """Return the number of workers used when none is given.

    The smallest W >= `n_cpus` with a perfect cover (1, 3, 7, 13, 21, 31, ...: those waste nothing), so
    that every CPU has a task of its own; less if groups would fall under 256 tokens.

    >>> default_workers(100_000, n_cpus=2), default_workers(100_000, n_cpus=16), default_workers(128, n_cpus=16)
    (3, 21, 1)
    """
    n_cpus = available_cpus() if n_cpus is None else n_cpus
    wanted = next(W for W in (1, 3, *singer_moduli(4 * n_cpus + 7)) if n_cpus <= W)
    return choose_workers(1, max(min(wanted, n_tokens // _LEAST_GROUP), 1))


@dataclass(frozen=True, slots=True)
class Scheduler:
    """Makes plans. Everything it refuses, it refuses before anything is allocated.

    Parameters
    ----------
    workers : int, optional
        W, the number of tasks; by default `default_workers(T)`. More workers than tokens are allowed: the groups that
        are then empty cost nothing.
    strategy : {"auto", "cqs", "tiles"}
        "cqs" cuts by a cyclic quorum set, and wants as many queries as keys. "tiles" cuts by a ragged grid.
        "auto" takes "cqs" where it can.
    """

    workers: int | None = None
    strategy: str = "auto"

    def plan(self, problem: AttentionProblem) -> Plan:
        """Return the plan for a problem.

        Raises
        ------
        OptionError
            If `workers` is not a whole number of at least 1, or the strategy is unknown or does not fit.
        """
        strategy = self._strategy(problem)
        W = default_workers(problem.n_queries) if self.workers is None else self._workers()
        return Plan(problem, strategy, W, self._base(W) if strategy == "cqs" else None)

    def _base(self, W: int) -> tuple[int, ...]:
        return CyclicQuorumSet(W).base

    def _strategy(self, problem: AttentionProblem) -> str:
        T, S = problem.n_queries, problem.n_keys
        if self.strategy not in STRATEGIES:
            raise OptionError.of(
                "strategy", f"be one of {', '.join(STRATEGIES)}", repr(self.strategy), "leave it out for auto"
            )
        if self.strategy == "cqs" and T != S:
            remedy = "for cross-attention use strategy='tiles', which reads least there"
            raise OptionError.of("strategy", "not be 'cqs' when q and k differ in tokens", f"{T} and {S}", remedy)
        return ("cqs" if T == S else "tiles") if self.strategy == "auto" else self.strategy

    def _workers(self) -> int:
        return whole_number("workers", self.workers, 1, "leave it out to let cqs choose")
