"""Plots say no more than the numbers: true axes, lines between levels alone, styles that can be told apart."""

import pytest
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from prune_lab.report import plot, plot_front
from prune_lab.report.look import COLOURS, label_points, readable, style_of, written
from prune_lab.report.metric import Metric
from prune_lab.report.pareto import Point, members
from prune_lab.report.places import places_of
from prune_lab.report.read_spec import read_table

YAML = """
title: Toy
overrides: [data=stdlib]
rows: {model: [a], method: [wanda, ria]}
columns:
  "50 %": [sparsity.level=0.5]
  "2:4": [sparsity=nm_2of4]
  "90 %": [sparsity.level=0.9]
  "60 %": [sparsity.level=0.6]
seeds: [0, 1]
metrics: {perplexity: {form: "{:.1f}", title: Perplexity, scale: log}}
fronts: [{x: prefill_seconds, y: perplexity, title: Seconds}]
"""


@pytest.fixture
def drawn(tmp_path, monkeypatch):
    """Draws a table and returns the figure."""
    figures = []
    for module in (plot, plot_front):
        monkeypatch.setattr(module, "svg_writer", lambda figure, name: figures.append(figure))

    def draw(yaml=YAML, device=lambda cell: "cpu", windows=lambda cell: 3, front=False):
        (tmp_path / "toy.yaml").write_text(yaml)
        spec = read_table(tmp_path, "toy", [])
        records = []
        for cell in spec.cells():
            metrics = {"dense/perplexity": 10.0, "evaluate/perplexity": 20.0 + cell.seed}
            metrics |= {"dense/prefill_seconds": 1.0 + cell.seed, "evaluate/prefill_seconds": 0.9 + cell.seed}
            metrics |= {"shrink/parameters": 5.0}
            data = {"evaluation": {"source": "stdlib", "windows": windows(cell), "seqlen": 8}}
            protocol = {"data": data, "model": {"dtype": "float32"}, "device": device(cell), "packages": {}}
            records.append((cell, {"metrics": metrics, "protocol": protocol}))
        if front:
            plot_front.plot_front(spec, spec.fronts[0], spec.metrics[0], records)
        else:
            plot.plot_metric(spec, spec.metrics[0], records)
        return figures[-1]

    return draw


def segments(axis):
    """The lines that join two points, by their places."""
    return [
        tuple(line.get_xdata()) for line in axis.lines if len(line.get_xdata()) == 2 and line.get_linewidth() == 1.3
    ]


def test_levels_stand_at_their_numbers_and_other_patterns_apart(drawn):
    axis = drawn().axes[0]
    ticks = dict(zip((each.get_text() for each in axis.get_xticklabels()), axis.get_xticks(), strict=True))
    assert (ticks["50 %"], ticks["60 %"], ticks["90 %"]) == (0.5, 0.6, 0.9)
    assert ticks["2:4"] > 0.9
    assert segments(axis) == [(0.5, 0.6), (0.6, 0.9)] * 2  # and none to 2:4


def test_no_line_joins_levels_that_were_evaluated_differently(drawn):
    axis = drawn(windows=lambda cell: 9 if cell.column == "90 %" else 3).axes[0]
    assert segments(axis) == [(0.5, 0.6)] * 2


def test_one_level_is_drawn_as_dots_beside_each_other(drawn):
    columns = 'columns: {"50 %": [sparsity.level=0.5]}'
    before, after = YAML[: YAML.index("columns")], YAML[YAML.index("seeds") :]
    axis = drawn(f"{before}{columns}\n{after}").axes[0]
    assert segments(axis) == []
    places = {line.get_xdata()[0] for line in axis.lines if line.get_marker() in "os" and len(line.get_xdata()) == 1}
    assert len(places) == 2 and all(0.4 < place < 0.6 for place in places)


@pytest.mark.parametrize(
    ("columns", "levels", "others"),
    [
        ({"a": ("sparsity.level=0.5",), "b": ("sparsity.level=0.5", "method.damping=1")}, [], ["a", "b"]),
        ({"a": ("sparsity=nm_2of4", "sparsity.pattern='1:4'"), "b": ("sparsity.level=0.5",)}, ["b"], ["a"]),
        ({"a": ("sparsity.pattern=2:4", "sparsity.level=0.5"), "b": ("sparsity.level=x",)}, [], ["a", "b"]),
    ],
)
def test_what_is_no_level_stands_by_itself(columns, levels, others):
    places = places_of(columns)
    assert (list(places.levels), list(places.others)) == (levels, others)


def luminance(colour):
    return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), to_rgb(colour), strict=True))


def test_series_differ_in_more_than_colour():
    styles = [style_of(place) for place in range(40)]
    assert len({tuple(style.items()) for style in styles}) == 40
    assert len({style["marker"] for style in styles[:11]}) == 11
    assert all(luminance(colour) < 0.75 for colour in COLOURS)  # light ones are lost on white paper


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (50, "50"),
        (1000, "1,000"),
        (0.02, "0.02"),
        (0, "0"),
        (1e10, "$10^{10}$"),
        (3e7, r"$3 \times 10^{7}$"),
        (1e-5, "$10^{-5}$"),
    ],
)
def test_ticks_are_written_out(value, text):
    assert written(value) == text


@pytest.mark.parametrize("limits", [(90, 110), (90, 400), (20, 6000), (10, 1e10)])
def test_a_log_axis_has_a_few_ticks(limits):
    axis = Figure().subplots()
    axis.set(yscale="log", ylim=limits)
    readable(axis.yaxis, "log")
    ticks = [tick for tick in axis.get_yticks() if limits[0] <= tick <= limits[1]]
    assert 3 <= len(ticks) <= 12


def test_labels_do_not_overlap_and_cover_no_point():
    figure = Figure()
    axis = figure.subplots()
    points = [(0.5 + number / 1000, 0.5, "70 %") for number in range(20)]
    axis.plot([x for x, *_ in points], [y for _, y, _ in points], "o")
    axis.set(xlim=(0, 1), ylim=(0, 1))
    figure.draw_without_rendering()
    label_points(axis, points, [point[:2] for point in points])
    boxes = [text.get_window_extent() for text in axis.texts]
    assert 1 < len(boxes) < 20
    for number, box in enumerate(boxes):
        assert not any(box.overlaps(other) for other in boxes[:number])


def test_a_front_is_of_runs_that_were_evaluated_alike(drawn):
    assert len(drawn(front=True).axes) == 1
    figure = drawn(front=True, windows=lambda cell: 3 + cell.row.index("ria") if "ria" in cell.row else 3)
    assert [axis.get_title() for axis in figure.axes] == ["a, stdlib, 3 x 8 (1)", "a, stdlib, 4 x 8 (2)"]


def test_what_lies_beyond_the_limit_is_marked_at_the_edge(drawn):
    limited = YAML.replace("scale: log}", "scale: log, limit: 15}")  # all cells have 20 or 21, the dense model 10
    for front in (False, True):
        cells = len(drawn(front=front).axes[0].lines)
        axis = drawn(limited, front=front).axes[0]
        marks = [line for line in axis.lines if line.get_marker() == "^" and set(line.get_ydata()) == {15}]
        assert axis.get_ylim()[1] == 15 and axis.get_ylim()[0] < 10
        assert len(marks) + 1 == len(axis.lines) - cells  # and one in the legend
        assert "beyond 15" in axis.get_legend_handles_labels()[1]
        as_before = drawn(limited.replace("15", "30"), front=front).axes[0]
        assert len(as_before.lines) == cells and as_before.get_ylim()[1] < 30


def test_a_spread_above_its_mean_leaves_a_limited_axis_as_it_is(drawn):
    limited = YAML.replace("scale: log}", "scale: log, limit: 15}").replace("seeds: [0, 1]", "seeds: [0, 100000]")
    for front in (False, True):
        low, high = drawn(limited, front=front).axes[0].get_ylim()
        assert 0 < low < 10 and high == 15


def test_a_front_without_the_dense_model_names_none(drawn):
    assert "dense" in drawn(front=True).axes[0].get_legend_handles_labels()[1]
    other = YAML.replace("fronts: [{x: prefill_seconds", "fronts: [{x: shrink/parameters")
    assert "dense" not in drawn(other, front=True).axes[0].get_legend_handles_labels()[1]


def test_noise_counts_as_the_dense_models_speed():
    dense = Point(("a",), "dense", x=1.0, y=10.0)
    lucky = Point(("a",), "50 %", x=0.9, y=20.0, x_spread=0.2, noise=True)
    faster = Point(("a",), "70 %", x=0.5, y=30.0)
    better = Point(("a",), "30 %", x=1.1, y=9.0, noise=True)
    perplexity = Metric("perplexity", "Perplexity")
    assert members([dense, lucky, faster], perplexity) == [faster, dense]
    assert members([dense, lucky, faster, better], perplexity) == [faster, better]


def test_every_way_of_training_in_a_panel_has_its_own_line(drawn):
    """Of one that all of its rows share there is one, without a name."""
    names = []
    for choices in ("[full, lora]", "[full]"):
        rows = f"rows: {{model: [a], method: [wanda], finetune: {choices}}}"
        yaml = YAML.replace("rows: {model: [a], method: [wanda, ria]}", rows + "\ncontrol: [method=dense]")
        (axis,) = drawn(yaml).axes
        lines = [line for line in axis.get_lines() if line.get_label().startswith("dense")]
        names.append([line.get_label() for line in lines])
        assert len({line.get_linestyle() for line in lines}) == len(lines)
    assert names == [
        ["dense", "dense, trained alike, full", "dense, trained alike, lora"],
        ["dense", "dense, trained alike"],
    ]
