"""The pictures show what is so: colours, labels and limits are read back from the Axes. No pixel is looked at."""

from collections.abc import Iterator
from enum import Enum

import numpy as np
import pytest
from matplotlib import colors, container
from matplotlib import pyplot as plt

import cqs
from cqs import CyclicQuorumSet, DifferenceCover, plot
from cqs.masks import Causal, NoMask, SlidingWindow
from cqs.plot.style import EMPTY, ink_on, worker_colours

plt.switch_backend("agg")

MODULI = (1, 2, 7, 8, 31, 57, 133)


@pytest.fixture(autouse=True)
def figures_are_closed() -> Iterator[None]:
    yield
    plt.close("all")


def make_plan(W: int, mask: cqs.masks.Mask, n_tokens: int = 700) -> cqs.Plan:
    return cqs.plan(*[(1, n_tokens, 8)] * 3, workers=W, mask=mask)


def written(ax: plt.Axes) -> list[str]:
    return [text.get_text() for text in ax.texts]


@pytest.mark.parametrize(
    "draw",
    [
        lambda ax: plot.ownership_matrix(CyclicQuorumSet(7), ax=ax),
        lambda ax: plot.quorum_circle(CyclicQuorumSet(7), ax=ax),
        lambda ax: plot.difference_table(CyclicQuorumSet(7), ax=ax),
        lambda ax: plot.tile_map(make_plan(7, NoMask()), ax=ax),
        lambda ax: plot.load_bars([1, 2, 3], ax=ax),
        lambda ax: plot.tokens_held(CyclicQuorumSet(7), 100, ax=ax),
        lambda ax: plot.subsequence_lengths(100, [3, 7], ax=ax),
        lambda ax: plot.memory_against_tokens({"a": ([1, 2], [3, 4])}, ax=ax),
        lambda ax: plot.time_against_tokens({"a": ([1, 2], [3, 4])}, ax=ax),
        lambda ax: plot.timeline([], ax=ax),
        lambda ax: plot.attention_heatmap(np.eye(3), 30, 60, ax=ax),
    ],
)
def test_a_picture_is_drawn_on_the_axes_given_or_on_new_ones(draw, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plt, "show", lambda *args, **kwargs: pytest.fail("a picture is returned, not shown"))
    _, given = plt.subplots()
    assert draw(given) is given
    fresh = draw(None)
    assert isinstance(fresh, plt.Axes)
    assert fresh is not given
    fresh.figure.canvas.draw()  # every label can be laid out


@pytest.mark.parametrize("W", [7, 31, 133])
def test_nothing_of_a_picture_is_cut_off(W: int) -> None:
    quorums, plan = CyclicQuorumSet(W), make_plan(W, Causal())
    for ax in (
        plot.ownership_matrix(quorums),
        plot.ownership_matrix(quorums, worker=1),
        plot.quorum_circle(quorums),
        plot.quorum_circle(quorums, worker=0, other=1),
        plot.difference_table(quorums),
        plot.tile_map(plan),
        plot.load_bars(plan),
        plot.tokens_held(quorums, 1000),
        plot.subsequence_lengths(1000, range(1, W + 1)),
    ):
        ax.figure.canvas.draw()
        (left, bottom), (right, top) = ax.get_tightbbox().get_points()
        width, height = ax.figure.bbox.size
        assert min(left, bottom) >= -2, ax.get_title()
        assert right <= width + 2, ax.get_title()
        assert top <= height + 2, ax.get_title()


def test_a_heatmap_shows_each_bin_and_leaves_out_what_is_hidden() -> None:
    ax = plot.attention_heatmap(np.array([[1.0, 0.0], [0.25, 0.75]]), 100, 200)
    (image,) = ax.get_images()
    assert image.get_array().mask.tolist() == [[False, True], [False, False]]
    assert list(image.get_extent()) == [0, 200, 100, 0]  # query 0 at the top
    assert image.norm.vmax == 1
    with pytest.raises(cqs.errors.ShapeError, match="take one head"):
        plot.attention_heatmap(np.ones((2, 3, 3)), 10, 10)
    plot.attention_heatmap(np.zeros((2, 2)), 10, 10).figure.canvas.draw()


def test_every_public_function_is_tried_above() -> None:
    assert len(plot.__all__) == 11


def test_workers_differ_in_lightness_and_labels_can_be_read() -> None:
    shades = worker_colours(133)
    lightness = shades[:, :3] @ (0.2126, 0.7152, 0.0722)
    assert (np.diff(lightness) > 0).all()  # told apart in grey, too
    assert [ink_on(shades[0]), ink_on(shades[-1])] == ["white", "black"]


@pytest.mark.parametrize("W", MODULI)
def test_the_ownership_matrix_is_coloured_by_owner(W: int) -> None:
    quorums = CyclicQuorumSet(W)
    ax = plot.ownership_matrix(quorums)
    (image,) = ax.images
    np.testing.assert_array_equal(image.get_array(), worker_colours(W)[quorums.ownership()])
    assert written(ax) == ([str(owner) for owner in quorums.ownership().ravel()] if W <= 31 else [])
    assert len(np.unique(worker_colours(W), axis=0)) == W


@pytest.mark.parametrize("W", [7, 8, 133])
def test_one_workers_tiles_alone_are_in_colour_between_the_frames_of_its_groups(W: int) -> None:
    quorums, worker = CyclicQuorumSet(W), W - 2
    ax = plot.ownership_matrix(quorums, worker=worker)
    (image,) = ax.images
    coloured = (image.get_array() != EMPTY).any(axis=-1)
    assert sorted(zip(*coloured.nonzero(), strict=True)) == list(quorums.tiles(worker))
    assert len(ax.patches) == 2 * quorums.cover.size  # a row and a column for each group


@pytest.mark.parametrize("W", [3, 7, 31, 133])
def test_the_circle_has_the_quorum_and_a_chord_for_each_two_of_its_groups(W: int) -> None:
    quorums = CyclicQuorumSet(W)
    ax, m = plot.quorum_circle(quorums, worker=1), quorums.cover.size
    groups, held = ax.collections
    assert len(groups.get_offsets()) == W
    angles = np.arctan2(*np.asarray(held.get_offsets()).T)
    assert tuple(sorted(np.round(angles * W / (2 * np.pi)).astype(int) % W)) == quorums.quorum(1)
    assert len(ax.lines) == 1 + m * (m - 1) // 2  # and the circle
    if W == 7:
        assert sorted(written(ax)[:3]) == ["1", "2", "3"]  # the chords of {0, 1, 3}: each distance once


def test_two_quorums_meet_where_the_ring_is() -> None:
    quorums = CyclicQuorumSet(13)
    ax = plot.quorum_circle(quorums.cover, worker=2, other=7)
    met = set(quorums.quorum(2)) & set(quorums.quorum(7))
    labels = [text.get_text() for text in ax.get_legend().get_texts()]
    assert labels == ["worker 2", "worker 7", f"met at {', '.join(map(str, sorted(met)))}"]
    assert len(ax.collections[-1].get_offsets()) == len(met)


def test_the_difference_table_shows_what_is_reached_once_twice_and_more_often() -> None:
    cover = DifferenceCover(5, (0, 1, 2, 3))
    ax = plot.difference_table(cover)
    assert written(ax) == [str((a - b) % 5) for a in cover.base for b in cover.base]
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["more often"]
    perfect = plot.difference_table(CyclicQuorumSet(133))
    assert [text.get_text() for text in perfect.get_legend().get_texts()] == ["reached once"]
    (image,) = perfect.images
    assert len(np.unique(image.get_array().reshape(-1, 4), axis=0)) == 2  # one colour, and white for a - a
    mixed = plot.difference_table(CyclicQuorumSet(8, (0, 1, 2, 4)))
    assert [text.get_text() for text in mixed.get_legend().get_texts()] == ["reached once", "twice"]


@pytest.mark.parametrize("mask", [NoMask(), Causal(), SlidingWindow(100)])
@pytest.mark.parametrize("W", [7, 133])
def test_the_tile_map_has_each_tile_where_it_lies_in_the_colour_of_its_task(W: int, mask: cqs.masks.Mask) -> None:
    plan = make_plan(W, mask)
    ax = plot.tile_map(plan)
    (collection,) = ax.collections
    tiles = [(tile, task.index) for task in plan.tasks() for tile in task.tiles]
    corners = np.array([path.vertices[:4] for path in collection.get_paths()])
    drawn = np.concatenate([corners.min(axis=1), corners.max(axis=1)], axis=1)  # left, top, right, bottom
    assert drawn.tolist() == [[t.key.start, t.query.start, t.key.stop, t.query.stop] for t, _ in tiles]
    np.testing.assert_array_equal(collection.get_facecolor(), worker_colours(W)[[index for _, index in tiles]])
    assert (ax.get_xlim(), ax.get_ylim()) == ((0, 700), (700, 0))  # query 0 at the top
    assert len(plot.tile_map(plan, worker=3).collections[0].get_paths()) == sum(i == 3 for _, i in tiles)


@pytest.mark.parametrize("W", [1, 8, 133])
def test_load_bars_are_the_loads_of_the_plan(W: int) -> None:
    plan = make_plan(W, Causal())
    ax = plot.load_bars(plan)
    (bars,) = (c for c in ax.containers if isinstance(c, container.BarContainer))
    assert [bar.get_height() for bar in bars] == plan.loads()
    assert ax.get_ylim()[0] == 0
    (mean,) = ax.lines
    assert mean.get_ydata()[0] == pytest.approx(np.mean(plan.loads()))
    assert f"{max(plan.loads()) / np.mean(plan.loads()):.3f}" in ax.get_title()
    assert "visible pairs" in ax.get_ylabel()


def test_tokens_held_are_those_of_the_case_study() -> None:
    ax = plot.tokens_held(CyclicQuorumSet(7, (0, 1, 3)), 10)
    assert [bar.get_height() for bar in ax.patches] == [3, 5, 4, 5, 4, 4, 5]
    assert ax.lines[0].get_ydata()[0] == pytest.approx(10 / 7**0.5)


def test_subsequence_lengths_are_on_or_above_the_curve_and_perfect_covers_are_marked() -> None:
    ax = plot.subsequence_lengths(7 * 13 * 31 * 8, [31, 7, 8, CyclicQuorumSet(13)])
    points = {line.get_label(): (list(line.get_xdata()), list(line.get_ydata())) for line in ax.lines}
    assert points["perfect cover"] == ([7, 13, 31], [3 * 13 * 31 * 8, 4 * 7 * 31 * 8, 6 * 7 * 13 * 8])
    assert points["other cover"] == ([8], [4 * 7 * 13 * 31])
    assert f"{3 * 13 * 31 * 8:,}" in written(ax)
    assert not written(plot.subsequence_lengths(10_000, range(1, 134)))


def test_growth_is_drawn_on_logarithmic_axes_with_units_and_the_limit() -> None:
    ax = plot.memory_against_tokens({"scores": ([1024, 4096], [2**22, 2**26])}, limit=2**24)
    data, limit = ax.lines
    assert list(data.get_ydata()) == [2**22, 2**26]
    assert limit.get_ydata()[0] == 2**24
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["scores", "limit 16.0 MiB"]
    assert (ax.get_xscale(), ax.get_yscale()) == ("log", "log")
    assert ax.yaxis.get_major_formatter()(2**20, 0) == "1.0 MiB"
    timed = plot.time_against_tokens({"a": ([1024], [0.5]), "b": ([1024], [2.0])})
    assert timed.yaxis.get_major_formatter()(0.5, 0) == "500 ms"
    first, second = (line.get_color() for line in timed.lines)
    assert first != second


class Span:
    def __init__(self, lane: str, name: object, kind: object, start: float, stop: float) -> None:
        self.lane, self.name, self.kind, self.start, self.stop = lane, name, kind, start, stop


def test_the_timeline_has_a_bar_for_each_span_on_its_lane_in_the_colour_of_its_kind() -> None:
    spans = [
        Span("gpu", "task 1", "compute", 12.0, 14.0),
        Span("copies", "task 1", "copy in", 10.0, 12.0),
        Span("copies", "tiny", "copy in", 14.0, 14.01),
    ]
    ax = plot.timeline(iter(spans))
    assert [label.get_text() for label in ax.get_yticklabels()] == ["copies", "gpu"]  # in the order of their start
    bars = [(bar.get_x(), bar.get_width(), bar.get_y() + bar.get_height() / 2) for bar in ax.patches]
    assert bars == [(0.0, 2.0, 0.0), (4.0, pytest.approx(0.01), 0.0), (2.0, 2.0, 1.0)]  # kind by kind
    colours = [colors.to_hex(bar.get_facecolor()) for bar in ax.patches]
    assert colours[0] == colours[1] != colours[2]
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["copy in", "compute"]
    assert written(ax) == ["task 1", "task 1"]  # a name is written where there is room
    assert ax.get_xlim() == (0, pytest.approx(4.01))


def test_what_lies_within_a_span_is_drawn_upon_it_and_narrower() -> None:
    spans = [
        Span("a", "read", "read", 0.0, 1.0),
        Span("a", "tile 1", "tile", 1.0, 4.0),
        Span("a", "task", "task", 0.0, 5.0),
        Span("a", "next", "task", 5.0, 9.0),
        Span("b", "elsewhere", "tile", 2.0, 3.0),
    ]
    ax = plot.timeline(spans)
    heights = {(bar.get_x(), bar.get_x() + bar.get_width()): bar.get_height() for bar in ax.patches}
    assert heights[0.0, 5.0] == heights[5.0, 9.0] == heights[2.0, 3.0] > heights[1.0, 4.0] == heights[0.0, 1.0]
    assert written(ax) == ["next", "read", "tile 1", "elsewhere"]  # "task" has others upon it


def test_the_events_of_a_run_are_spans() -> None:
    events: list[object] = []
    x = np.ones((1, 70, 4), dtype=np.float32)
    cqs.attention(x, x, x, workers=7, on_event=events.append)
    ax = plot.timeline(events)
    assert len(ax.patches) == len(events)
    assert ax.get_xlim()[1] == max(event.stop for event in events) - min(event.start for event in events)


def test_a_plan_that_is_cut_by_heads_shows_one_block_of_them() -> None:
    plan = cqs.plan(*[(8, 2048, 64)] * 3, workers=7, memory="12 MiB")
    assert len(plan) > plan.workers
    assert len(plot.tile_map(plan).collections[0].get_paths()) == plan.workers**2


def test_a_timeline_of_many_spans_and_of_none_can_be_drawn() -> None:
    class Kind(Enum):
        COPY = 1
        COMPUTE = 2

    spans = [Span(f"lane {n % 3}", n, Kind(1 + n % 2), n * 0.1, n * 0.1 + 0.05) for n in range(300)]
    ax = plot.timeline(spans)
    assert len(ax.patches) == 300
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["Kind.COPY", "Kind.COMPUTE"]
    assert not written(ax)  # no name has room
    assert not plot.timeline([]).patches
