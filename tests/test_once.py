"""What is computed once: properties, which wait for nobody, and a few lists."""

import threading
from dataclasses import dataclass

from cqs.once import Few, once


@dataclass(frozen=True)
class Square:
    side: int

    @once
    def area(self) -> list[int]:
        """What it covers."""
        return [self.side**2]


def test_a_property_is_computed_once_for_each_object() -> None:
    a, b = Square(3), Square(4)
    assert a.area == [9]
    assert a.area is a.area
    assert b.area == [16]
    assert a == Square(3)


def test_it_can_be_asked_for_on_the_class() -> None:
    assert isinstance(Square.area, once)
    assert Square.area.__doc__ == "What it covers."


def test_an_object_may_wait_for_another_that_computes_it_in_another_thread() -> None:
    class Waiting(Square):
        @once
        def area(self) -> list[int]:
            if self.side > 0:
                other = threading.Thread(target=lambda: Waiting(self.side - 1).area)
                other.start()
                other.join(timeout=10)
                assert not other.is_alive()
            return [self.side]

    assert Waiting(3).area == [3]


def test_threads_that_compute_it_at_the_same_time_get_the_same_object() -> None:
    both = threading.Barrier(2)

    class Slow(Square):
        @once
        def area(self) -> list[int]:
            both.wait(timeout=10)
            return [self.side]

    slow, found = Slow(3), []
    threads = [threading.Thread(target=lambda: found.append(slow.area)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found[0] is found[1]


def test_lists_are_remembered_as_long_as_they_are_few() -> None:
    few, made = Few[int](10), []

    def make(n: int) -> list[int]:
        made.append(n)
        return list(range(n))

    for n in (4, 4, 9, 9, 4, 4, 0, 0):
        assert few.get(n, lambda n=n: make(n)) == list(range(n))
    assert made == [4, 9, 9, 0]  # 9 are too many beside 4
    few.get("other", lambda: make(4))
    few.get("other", lambda: make(4))
    assert made == [4, 9, 9, 0, 4, 4]
