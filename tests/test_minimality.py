"""Minimality: exhaustive search against brute force, obstructions, and labels that say no more than is known."""

import json
from dataclasses import replace
from functools import cache
from itertools import combinations

import pytest

from cqs.errors import CertificateError, QuorumError
from cqs.quorum.bounds import size_lower_bound
from cqs.quorum.exhaustive import exhaustive_search
from cqs.quorum.minimality import Minimality, minimality_of
from cqs.quorum.obstruction import Obstruction, obstruction

# The moduli up to 131 at which m(m - 1) >= W - 1 does not suffice, one by one
ONE_MORE = {
    *(20, 29, 30, 38, 40, 41, 42, 43, 52, 53, 54, 55, 56, 66, 67, 68, 69, 70, 71, 72, 94, 114, 115, 116),
    *(80, 81, 82, 83, 84, 85, 86, 87, 88, 89, 90, 96, 97, 98, 99, 100, 101, 102, 103, 104, 105, 106, 107, 108),
    *(109, 110, 111, 118, 119, 120, 121, 122, 123, 124, 125, 126, 127, 128, 129, 130, 131),
}
PRIME_POWERS = (2, 3, 4, 5, 7, 8, 9, 11, 13, 16, 17, 19, 23, 25, 27, 29, 31, 32)


def least_size(W: int) -> int:
    return size_lower_bound(W) + (W in ONE_MORE)


def is_cover(W: int, elements: tuple[int, ...]) -> bool:
    return {(a - b) % W for a in elements for b in elements} == set(range(W))


@cache
def least_by_brute_force(W: int) -> int:
    """Try all sets that contain 0, as some translate does; supersets of covers are covers."""
    return next(m for m in range(1, W + 1) if any(is_cover(W, (0, *rest)) for rest in combinations(range(1, W), m - 1)))


# The search


@pytest.mark.parametrize("W", range(1, 21))
def test_the_search_agrees_with_brute_force_at_every_size(W: int) -> None:
    for size in range(1, W + 2):
        found = exhaustive_search(W, size)
        assert (found is not None) == (least_by_brute_force(W) <= size <= W)
        if found is not None:
            assert found == tuple(sorted(set(found)))
            assert len(found) == size
            assert is_cover(W, found)


@pytest.mark.parametrize("W", range(21, 44))
def test_the_search_finds_a_cover_of_the_least_size_and_none_below(W: int) -> None:
    found = exhaustive_search(W, least_size(W))
    assert found is not None
    assert is_cover(W, found)
    assert [size for size in range(1, least_size(W)) if exhaustive_search(W, size)] == []


@pytest.mark.slow
@pytest.mark.parametrize("W", range(44, 80))
def test_the_search_confirms_what_is_cited(W: int) -> None:
    assert exhaustive_search(W, least_size(W) - 1) is None


@pytest.mark.parametrize(("W", "size"), [(0, 1), (7, 0), (7, 3.0), ("7", 3)])
def test_the_search_refuses_what_is_no_number(W: object, size: object) -> None:
    with pytest.raises(QuorumError, match="must be a whole number"):
        exhaustive_search(W, size)


# Obstructions


@pytest.mark.parametrize("n", [6, 10, 12, 14, 15, 18, 20, 21, 22, *range(90, 97), 98, 99, 100])
def test_an_order_that_is_no_prime_power_is_obstructed(n: int) -> None:
    found = obstruction(n)
    assert found is not None
    assert found.order == n
    found.verify()


@pytest.mark.parametrize("n", PRIME_POWERS)
def test_a_prime_power_is_not(n: int) -> None:
    assert obstruction(n) is None


@pytest.mark.parametrize("theorem", ["Bruck-Ryser", "multipliers"])
@pytest.mark.parametrize("n", [n for n in PRIME_POWERS if n <= 16])
def test_a_false_obstruction_does_not_verify(n: int, theorem: str) -> None:
    with pytest.raises(CertificateError):
        Obstruction(n, theorem).verify()


def test_a_theorem_is_not_applied_without_its_hypotheses() -> None:
    with pytest.raises(CertificateError, match="12 = 0 modulo 4"):
        Obstruction(12, "Bruck-Ryser").verify()
    with pytest.raises(CertificateError, match="10 is not a sum of two squares"):
        Obstruction(10, "Bruck-Ryser").verify()


def test_both_theorems_agree_where_both_apply() -> None:
    for n in (6, 14, 21, 22):
        Obstruction(n, "Bruck-Ryser").verify()
        Obstruction(n, "multipliers").verify()


def test_the_obstruction_agrees_with_the_search() -> None:
    assert obstruction(6) is not None
    assert exhaustive_search(43, 7) is None


# Labels


@pytest.mark.parametrize("W", range(1, 201))
def test_a_label_says_no_more_than_is_known(W: int) -> None:
    bound = size_lower_bound(W)
    assert minimality_of(W, bound).label == "proved by counting"
    label = minimality_of(W, bound + 1).label
    if W in ONE_MORE or W > 131:
        obstructed, searched, cited = W in (43, 111, 157), W <= 56, W <= 131
        reasons = ((obstructed, "proved by obstruction"), (searched, "proved by search"), (cited, "cited"))
        assert label == next((name for holds, name in reasons if holds), "unknown")
    else:
        assert label == "unknown"
    assert minimality_of(W, bound + 2).label == "unknown"


@pytest.mark.parametrize(("W", "size"), [(13, 5), (20, 7), (43, 9), (100, 13)])
def test_a_size_above_the_least_is_told_so(W: int, size: int) -> None:
    assert f"a cover of Z_{W} with {least_size(W)} elements is known" in minimality_of(W, size).reason


def test_132_is_open_and_133_is_not() -> None:
    assert minimality_of(132, 13).label == minimality_of(132, 14).label == "unknown"
    assert minimality_of(133, 12).label == "proved by counting"


@pytest.mark.parametrize(("W", "size"), [(1, 0), (7, 2), (43, 6), (133, 11), (10**6, 1000)])
def test_a_size_below_the_counting_bound_is_refused(W: int, size: int) -> None:
    with pytest.raises(QuorumError, match="`size` must be a whole number of at least"):
        minimality_of(W, size)


def test_what_is_cited_has_a_reference_and_what_is_proved_has_steps() -> None:
    for W in range(1, 201):
        for size in range(size_lower_bound(W), size_lower_bound(W) + 3):
            claim = minimality_of(W, size)
            assert bool(claim.reference) == (claim.label in ("cited", "proved by obstruction"))
            assert any(True for _ in claim.steps()) == claim.label.startswith("proved")


def test_every_label_verifies() -> None:
    for W in range(1, 201):
        minimality_of(W, least_size(W)).verify()


def test_no_search_is_run_for_a_label(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cqs.quorum.minimality.exhaustive_search", lambda W, size: pytest.fail("a search"))
    for W in range(1, 201):
        minimality_of(W, least_size(W))


def test_a_proof_is_computed_and_not_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cqs.quorum.minimality.exhaustive_search", lambda W, size: tuple(range(size)))
    with pytest.raises(CertificateError, match="no set of 5 covers Z_20"):
        minimality_of(20, 6).verify()


@pytest.mark.parametrize("claim", [minimality_of(31, 6), minimality_of(20, 6), minimality_of(43, 8)], ids=str)
@pytest.mark.parametrize(
    "changes",
    [{"label": f"proved by {way}"} for way in ("counting", "obstruction", "search")]
    + [{"size": size} for size in (1, 5, 7, 9)]
    + [{"modulus": W} for W in (1, 21, 30, 32, 42, 44, 10**9)]
    + [{"reason": ""}, {"reference": "folklore"}],
    ids=str,
)
def test_a_corrupted_proof_does_not_verify(claim: Minimality, changes: dict[str, object]) -> None:
    corrupted = replace(claim, **changes)
    if corrupted != claim:
        with pytest.raises(CertificateError):
            corrupted.verify()


def test_an_unknown_minimality_cannot_be_relabelled_as_proved() -> None:
    for label in ("proved by counting", "proved by obstruction", "proved by search"):
        with pytest.raises(CertificateError):
            replace(minimality_of(150, 14), label=label).verify()


def test_a_label_of_another_kind_is_refused() -> None:
    with pytest.raises(QuorumError, match="`label` must be one of"):
        replace(minimality_of(7, 3), label="obvious")


@pytest.mark.parametrize(("W", "size"), [(7, 3), (20, 6), (111, 12), (99, 12), (130, 13), (132, 14)])
def test_json_gives_the_same_back(W: int, size: int) -> None:
    claim = minimality_of(W, size)
    assert Minimality.from_dict(json.loads(json.dumps(claim.to_dict()))) == claim


@pytest.mark.parametrize("change", [{"size": "three"}, {"modulus": 0}, {"label": None}, {"proof": "none"}])
def test_json_of_something_else_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(QuorumError):
        Minimality.from_dict(minimality_of(7, 3).to_dict() | change)


def test_json_that_lacks_a_field_is_refused() -> None:
    with pytest.raises(QuorumError, match="`values` must have the keys"):
        Minimality.from_dict({"label": "unknown", "modulus": 7})


def test_a_person_can_read_it() -> None:
    assert (
        str(minimality_of(13, 4))
        == "proved by counting: with 3 there are at most 7 differences, and 13 residues to reach"
    )
    assert str(minimality_of(99, 12)).endswith("J. Integer Sequences 7 (2004) 04.2.6]")
    claims = [str(step) for step in minimality_of(20, 6).steps()]
    assert claims[1:] == [
        "with 4 there are at most 13 differences, and 20 residues to reach",
        "no set of 5 covers Z_20; all have been tried, up to symmetry",
    ]
