"""Certificates: true ones pass, and every corruption of every field of every kind fails."""

import json
import pickle
from collections.abc import Iterator
from typing import Any

import pytest

from cqs.errors import CertificateError, QuorumError
from cqs.quorum import (
    Certificate,
    DifferenceCover,
    bose,
    difference_cover,
    lift,
    partial_lift,
    product,
    singer,
    wichmann,
)
from cqs.quorum.construction import KINDS, Listed
from cqs.quorum.constructions import drop_redundant, move
from cqs.quorum.constructions.lifts import Lift
from cqs.quorum.hall import hall_coefficients
from cqs.quorum.proof import Step, check_all

COVERS = {
    "listed": DifferenceCover(8, (0, 1, 2, 4)),
    "singer": singer(3),
    "singer of a prime power": singer(4),
    "bose": bose(7),
    "bose of a prime power": bose(9),
    "product": product(singer(3), singer(2)),
    "wichmann": wichmann(60),
    "lift": lift(singer(3), (0, 1, 4, 6), 150),
    "moved": move(singer(3), 2, 5),
    "repaired": partial_lift(singer(3), (0, 1, 4, 6), 180),
    "reduced": drop_redundant(DifferenceCover.of(21, {*singer(4).base, 1, 2})),
    "nested": difference_cover(4004),
}


def certificate(name: str) -> Certificate:
    return COVERS[name].certificate


def test_every_kind_of_construction_is_among_the_examples() -> None:
    found = set()

    def collect(values: Any) -> None:
        if isinstance(values, dict):
            found.update({values["kind"]} if "kind" in values else set())
            for value in values.values():
                collect(value)

    for name in COVERS:
        collect(json.loads(certificate(name).to_json()))
    assert found == set(KINDS)


@pytest.mark.parametrize("name", COVERS)
def test_a_true_certificate_passes(name: str) -> None:
    certificate(name).verify()
    assert all(step.check() for step in certificate(name).steps())


@pytest.mark.parametrize("name", COVERS)
def test_a_certificate_comes_back_from_json_and_pickle(name: str) -> None:
    before = certificate(name)
    after = Certificate.from_json(before.to_json())
    assert after == before == pickle.loads(pickle.dumps(before))
    after.verify()


@pytest.mark.parametrize("q", [2, 5, 8, 9, 16, 25, 27])
def test_singer_certificates_of_every_sort_of_field_pass(q: int) -> None:
    singer(q).certificate.verify()


@pytest.mark.parametrize("W", [*range(1, 30), 201, 257, 1000, 5000])
def test_the_certificate_of_the_smallest_cover_passes(W: int) -> None:
    difference_cover(W).certificate.verify()


def changed(value: Any) -> Iterator[Any]:
    """Values that are almost the given one: off by one, an element less, an element moved."""
    if isinstance(value, int):
        yield from (value + 1, value - 1, 2 * value + 3)
    elif value:
        yield value[:-1]
        for i in (0, len(value) // 2, len(value) - 1):
            for by in (1, -1):
                yield [*value[:i], value[i] + by, *value[i + 1 :]]
    else:
        yield [1]


def corruptions(values: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every certificate that differs in one field, with the name of the field, at any depth."""
    for field, value in values.items():
        if isinstance(value, dict):
            yield from ((f"{field}.{deeper}", values | {field: part}) for deeper, part in corruptions(value))
        elif isinstance(value, str):
            yield from ((field, values | {field: kind}) for kind in (*KINDS, "", "cqs.certificate/2") if kind != value)
        else:
            yield from ((field, values | {field: other}) for other in changed(value))


def is_refused(text: str) -> bool:
    try:
        Certificate.from_json(text).verify()
    except CertificateError:
        return True
    return False


@pytest.mark.thinned(4)
@pytest.mark.parametrize("first", range(4))
@pytest.mark.parametrize("name", [name for name in COVERS if name != "nested"])
def test_a_corrupted_certificate_fails_whatever_the_field(name: str, first: int) -> None:
    corrupted = list(corruptions(json.loads(certificate(name).to_json())))
    assert len(corrupted) > 10
    for field, values in corrupted[first::4]:
        assert is_refused(json.dumps(values)), f"{field} may be changed: {values}"


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "7", "null", '{"format": "cqs.certificate/1"}', '{"format": "x", "modulus": 7, "base": [0, 1, 3]}'],
)
def test_what_is_no_certificate_is_refused(text: str) -> None:
    with pytest.raises(CertificateError, match="`text` must be a certificate in the format"):
        Certificate.from_json(text)


@pytest.mark.parametrize("number", [1.0, True, "1", None], ids=repr)
def test_what_is_not_whole_is_refused(number: Any) -> None:
    values = json.loads(certificate("singer").to_json())
    values["base"][0] = number
    with pytest.raises(CertificateError, match="not made of whole numbers"):
        Certificate.from_json(json.dumps(values))


def test_the_step_that_fails_is_named() -> None:
    values = json.loads(certificate("singer").to_json())
    values["construction"]["polynomial"] = [1, 0, 0, 1]  # (x + 1)^3 modulo 3
    with pytest.raises(CertificateError, match=r"step 2 .* x\^3 \+ 1 is monic of degree 3e = 3 and irreducible"):
        Certificate.from_json(json.dumps(values)).verify()


def test_steps_are_checked_one_after_the_other() -> None:
    checked: list[int] = []
    steps = (Step(str(i), check=lambda i=i: checked.append(i) or i < 2) for i in range(5))
    with pytest.raises(CertificateError, match="step 3 of the proof does not hold: 2"):
        check_all(steps)
    assert checked == [0, 1, 2]


@pytest.mark.parametrize("W", [7, 8, 40, 133])
def test_hall_coefficients_count_differences(W: int) -> None:
    base = difference_cover(W).base
    expected: dict[int, int] = {}
    for a in base:
        for b in base:
            expected[(a - b) % W] = expected.get((a - b) % W, 0) + 1
    assert hall_coefficients(W, base) == expected


@pytest.mark.parametrize("name", COVERS)
def test_a_certificate_can_be_read(name: str) -> None:
    lines = [str(step) for step in certificate(name).steps()]
    assert len(set(lines)) == len(lines) or name in ("product", "bose", "bose of a prime power")
    assert lines[-1].startswith("theta(x) theta(1/x)")
    latex = certificate(name).latex()
    assert latex.startswith(r"\begin{enumerate}")
    assert latex.count(r"\item") == len(lines)
    assert latex.count("{") == latex.count("}")
    html = certificate(name)._repr_html_()
    assert html.count("<li>") == len(lines)


def test_a_cover_says_where_it_comes_from() -> None:
    assert str(singer(4).construction) == "Singer, q = 4"
    assert str(lift(singer(2), (0, 1), 15).construction) == "lift of Z_7 (Singer, q = 2) by the ruler (0, 1)"
    assert str(DifferenceCover(7, (0, 1, 3)).construction) == "listed, 3 elements"


def test_equal_covers_may_come_from_different_constructions() -> None:
    assert singer(2) == DifferenceCover(7, (1, 2, 4))
    assert hash(singer(2)) == hash(DifferenceCover(7, (1, 2, 4)))


def test_a_false_base_names_a_residue_that_it_does_not_reach() -> None:
    with pytest.raises(QuorumError, match="does not reach 4"):
        DifferenceCover(9, (0, 1, 3))


def test_a_step_without_a_computation_does_not_hold() -> None:
    with pytest.raises(CertificateError, match="step 1 of the proof does not hold: it is so"):
        check_all([Step("it is so")])


def test_a_lift_that_claims_more_than_its_ruler_measures_does_not_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    built = Lift(Listed(7, (0, 1, 3)), (0, 1, 3), 43)
    check_all(built.steps())
    monkeypatch.setattr("cqs.quorum.constructions.lifts.reach_of_ruler", lambda ruler: 10)
    with pytest.raises(CertificateError, match=r"the ruler R = .* measures every length from 1 to 10"):
        check_all(built.steps())
