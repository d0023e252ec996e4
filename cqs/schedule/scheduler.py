"""The Scheduler: a problem and the machine's wishes become a Plan."""

from dataclasses import dataclass, field, replace
from math import prod

from cqs.checks import whole_number
from cqs.errors import BudgetError, OptionError, QuorumError
from cqs.machine import available_cpus
from cqs.problem import AttentionProblem
from cqs.quorum import CyclicQuorumSet, choose_workers, singer_moduli
from cqs.quorum.choice import MOST_MODULUS
from cqs.schedule.budget import Candidate, best_within, format_bytes_up, settings_within
from cqs.schedule.call_shape import SHARED_FLOPS, effort
from cqs.schedule.cut import Cut
from cqs.schedule.grain import DEVICE_BLOCK_BYTES, Grain, Setting
from cqs.schedule.plan import Plan
from cqs.schedule.scratch import PANEL
from cqs.units import format_bytes, parse_bytes

__all__ = ["STRATEGIES", "Scheduler", "default_workers"]

STRATEGIES = ("auto", "cqs", "tiles", "ring", "tree")
_TASKS_OF_A_JOB = 31
_UNITS_A_CPU = 4  # blocks of rows of a head, of which CPUs take the next when they are done with one
_LEAST_GROUP = 256  # tokens; in smaller groups a kernel call costs more than it computes


def default_workers(n_tokens: int, n_cpus: int | None = None) -> int:
    """Return the number of workers used when none is given.

    The smallest W >= `n_cpus` with a perfect cover (1, 3, 7, 13, 21, 31, ...: those waste nothing), so
    that every CPU has a task of its own; less if groups would fall under 256 tokens.

    >>> default_workers(100_000, n_cpus=2), default_workers(100_000, n_cpus=16), default_workers(128, n_cpus=16)
    (3, 21, 1)
    """
    n_tokens = whole_number("n_tokens", n_tokens, 0, "it is the number of queries")
    n_cpus = (
        available_cpus() if n_cpus is None else whole_number("n_cpus", n_cpus, 1, "leave it out for this machine's")
    )
    wanted = next(W for W in (1, 3, *singer_moduli(4 * n_cpus + 7)) if n_cpus <= W)
    return choose_workers(1, max(min(wanted, n_tokens // _LEAST_GROUP), 1))


def _workers_of_few_queries(problem: AttentionProblem, n_cpus: int) -> int:
    """Return how many tasks cut the keys of queries that are too few to give every CPU some; 1 if they are not few.

    As where a model writes token by token, after a long text: heads alone may not be work for all CPUs.
    """
    kv_heads, rows = prod(problem.batch) * problem.n_kv_heads, problem.n_heads // problem.n_kv_heads * problem.n_queries
    if problem.n_queries == problem.n_keys or kv_heads * -(-rows // PANEL) >= _UNITS_A_CPU * n_cpus:
        return 1
    width = problem.width + problem.value_width
    return max(min(effort(kv_heads, rows, problem.n_keys, width) // SHARED_FLOPS, n_cpus), 1)


@dataclass(frozen=True, slots=True)
class Scheduler:
    """Makes plans. Everything it refuses, it refuses before anything is allocated.

    Parameters
    ----------
    workers : int, optional
        W, the number of tasks; by default `default_workers(T)`, one for each CPU if queries are too few to be cut, 1
        if a single thread computes them one by one, or with a budget what suits it; where results are kept at least 31,
        of groups of at least 256 tokens. More workers than tokens are allowed: the groups that are then empty cost
        nothing.
    strategy : {"auto", "cqs", "tiles", "ring", "tree"}
        "cqs" cuts by a cyclic quorum set, and wants as many queries as keys. "tiles" cuts by a ragged grid; under a
        budget into groups of queries that stay, while keys are streamed. "ring" and "tree" cut as ring and tree
        attention do, to compare with. "auto" takes "cqs" where it can, or under a budget, if the number of workers is
        free too, whichever of "cqs" and "tiles" is predicted to be faster.
    memory : int or str, optional
        The most bytes to hold beyond the caller's arrays, as in "256 MiB".
    setting : Setting, optional
        What the plan is to run on and with.

    Raises
    ------
    OptionError
        If `workers` is not a whole number of at least 1, `memory` no number of bytes, or the strategy unknown.
    """

    workers: int | None = None
    strategy: str = "auto"
    memory: int | str | None = None
    setting: Setting = field(default_factory=Setting)

    def __post_init__(self) -> None:
        if self.workers is not None:
            remedy = "leave it out to let cqs choose"
            object.__setattr__(self, "workers", whole_number("workers", self.workers, 1, remedy))
        if self.memory is not None:
            object.__setattr__(self, "memory", parse_bytes("memory", self.memory))
        if self.strategy not in STRATEGIES:
            raise OptionError.of(
                "strategy", f"be one of {', '.join(STRATEGIES)}", repr(self.strategy), "leave it out for auto"
            )

    def plan(self, problem: AttentionProblem) -> Plan:
        """Return the plan for a problem.

        Raises
        ------
        OptionError
            If the strategy does not fit the problem or the budget.
        QuorumError
            If there are more workers than a cover is known for, ten million.
        BudgetError
            If there is no way to hold as little as `memory`; it names the least that works.
        """
        if not isinstance(problem, AttentionProblem):
            remedy = "make one by `AttentionProblem.of(q, k, v)`, or call `cqs.plan`"
            raise OptionError.of("problem", "be an `AttentionProblem`", type(problem).__name__, remedy)
        strategies = self.strategies_for(problem)
        workers = self.workers
        if workers is not None and workers > MOST_MODULUS and "cqs" in strategies:
            rule = f"be at most {MOST_MODULUS} for the strategy 'cqs', which has no cover for more"
            raise QuorumError.of("workers", rule, workers, f"take at most {MOST_MODULUS}")
        if self.memory is not None:
            found = self._within(problem, strategies, parse_bytes("memory", self.memory))
            return _plan(problem, found.strategy, found.workers, found.grain, found.setting)
        strategy, grain = strategies[0], Grain(block_bytes=DEVICE_BLOCK_BYTES) if self.setting.is_for_gpu else Grain()
        workers = workers or self._default_workers(problem)
        setting = replace(self.setting, in_flight=1) if workers == 1 else self.setting  # one task waits for no other
        return _plan(problem, strategy, workers, grain, setting)

    def plan_cut(self, problem: AttentionProblem, cut: Cut) -> Plan:
        """Return the plan for a problem that is cut already, with as many threads as the budget allows.

        Raises
        ------
        BudgetError
            If no number of threads holds as little as `memory`; it names the least.
        """
        setting = replace(self.setting, in_flight=1) if cut.workers == 1 else self.setting
        if self.memory is None:
            return Plan(problem, cut.strategy, cut.workers, cut.base, cut.grain, setting)
        memory = parse_bytes("memory", self.memory)
        plans = [
            Plan(problem, cut.strategy, cut.workers, cut.base, cut.grain, own)
            for own in settings_within(problem, cut.strategy, replace(setting, memory=memory))
        ]
        for plan in plans:
            if plan.projected_bytes <= memory:
                return plan
        least = format_bytes_up(min(plan.projected_bytes for plan in plans))
        rule = f"be at least {least} for tasks of this size"
        raise BudgetError.of("memory", rule, format_bytes(memory), "raise it")

    def alternatives(self, problem: AttentionProblem) -> dict[str, Plan | BudgetError]:
        """Return the plan of each strategy that could be taken, or the error that says why it could not."""
        found: dict[str, Plan | BudgetError] = {}
        for strategy in ("cqs", "tiles") if problem.n_queries == problem.n_keys else ("tiles",):
            try:
                found[strategy] = replace(self, strategy=strategy).plan(problem)
            except BudgetError as error:
                found[strategy] = error
        return found

    def _within(self, problem: AttentionProblem, strategies: tuple[str, ...], memory: int) -> Candidate:
        if self.workers is None and self.setting.keeps_results:
            try:
                return best_within(problem, strategies, self._default_workers(problem), self.setting, memory)
            except BudgetError:  # so there have to be more
                pass
        return best_within(problem, strategies, self.workers, self.setting, memory)

    def _default_workers(self, problem: AttentionProblem) -> int:
        if self.setting.keeps_results:  # a break loses the tasks that are computed, so these are to be a small part
            return default_workers(problem.n_queries, max(available_cpus(), _TASKS_OF_A_JOB))
        is_alone = self.setting.threads == self.setting.in_flight == 1  # as where a GPU has the arrays
        n_cpus = 1 if is_alone else available_cpus()
        return max(default_workers(problem.n_queries, n_cpus), _workers_of_few_queries(problem, n_cpus))

    def strategies_for(self, problem: AttentionProblem) -> tuple[str, ...]:
        """Return the strategies that may be taken, the preferred one first."""
        T, S = problem.n_queries, problem.n_keys
        if self.strategy == "cqs" and T != S:
            remedy = "for cross-attention use strategy='tiles', which reads least there"
            raise OptionError.of("strategy", "not be 'cqs' when q and k differ in tokens", f"{T} and {S}", remedy)
        if self.strategy in ("ring", "tree") and self.memory is not None:
            remedy = "leave `memory` out, or take 'cqs' or 'tiles'"
            raise OptionError.of("strategy", "be 'cqs', 'tiles' or 'auto' under a budget", repr(self.strategy), remedy)
        if self.strategy != "auto":
            return (self.strategy,)
        if T != S:
            return ("tiles",)
        return ("cqs", "tiles") if self.workers is None else ("cqs",)


def _plan(problem: AttentionProblem, strategy: str, workers: int, grain: Grain, setting: Setting) -> Plan:
    base = CyclicQuorumSet(workers).base if strategy == "cqs" else None
    return Plan(problem, strategy, workers, base, grain, setting)
