import re
import xml.etree.ElementTree as ET

import pandas as pd
import pytest

from flexgen_helm.errors import TablesError
from flexgen_helm.tables import plots
from flexgen_helm.tables.columns import COMPARISON, EFFICIENCY, OVERALL, frame_of
from flexgen_helm.tables.compare import compare
from flexgen_helm.tables.report import write_report

TASKS = ["mmlu:subject=a,model={model}", "mmlu:subject=b<c,model={model}"]


@pytest.fixture
def compared(make_answered, output):
    for task in TASKS:
        make_answered("flexgen/opt-30b", ["yes"] * 8 + ["no"] * 2, name=task)
        make_answered("flexgen/opt-30b-w4", ["yes"] * 6 + ["no"] * 4, name=task)
        make_answered("flexgen/opt-30b-w2-kv2", ["no"] * 10, name=task)
    return compare(output)


def texts(figure):
    """All that is written in a figure."""
    return [text.get_text() for text in figure.findobj(lambda x: hasattr(x, "get_text"))]


def test_scores_are_drawn_against_bytes_and_throughput(compared):
    figure = plots.pareto(compared.overall)
    assert [panel.get_xlabel() for panel in figure.axes] == [axis.label for axis in plots.PARETO]
    for panel in figure.axes:
        [points] = [line for line in panel.lines if line.get_marker() == "o"]
        assert points.get_ydata().tolist() == [0.8, 0.6, 0.0]
    assert texts(figure).count("w2-kv2") == len(plots.PARETO)


def test_differences_have_a_panel_for_each_task(compared):
    figure = plots.differences(compared.settings)
    assert [panel.get_title() for panel in figure.axes[:2]] == [
        "mmlu:subject=a",
        "mmlu:subject=b<c",
    ]
    for panel in figure.axes[:2]:
        [points] = [line for line in panel.lines if line.get_marker() == "o"]
        assert points.get_xdata().tolist() == pytest.approx([-0.2, -0.8])


def test_times_add_up(compared):
    costs = compared.costs
    costs["disk_wait_s"] = 1.0
    [panel] = plots.times(costs).axes
    seconds = [patch.get_width() for patch in panel.patches]
    assert sum(seconds) == pytest.approx(costs["request_s"].sum())
    assert sum(seconds[len(costs) : 2 * len(costs)]) == pytest.approx(len(costs))


@pytest.mark.parametrize(
    ("draw", "columns"),
    [
        (plots.pareto, OVERALL),
        (plots.differences, COMPARISON),
        (plots.times, EFFICIENCY),
    ],
)
def test_nothing_is_drawn_of_nothing(draw, columns):
    assert draw(frame_of(columns, [])) is None


def test_a_report_needs_nothing_else_and_shows_every_setting(compared, tmp_path):
    written = write_report(compared, tmp_path / "out", title="A <title>")
    assert [path.name for path in written] == [
        *("pareto.png", "pareto.svg", "differences.png", "differences.svg"),
        *("times.png", "times.svg", "report.html"),
    ]
    page = written[-1].read_text()
    assert "<h1>A &lt;title&gt;</h1>" in page
    assert "mmlu:subject=b&lt;c" in page
    assert page.count("<svg") == 3
    for label in ("none", "w4", "w2-kv2"):
        assert page.count(f"<td>{label}</td>") == 1 + 2 + 2  # overall, two tasks, two runs
    without_names = re.sub(r'xmlns(:\w+)?="[^"]*"|href="#|url\(#', "", page)
    assert not re.search(r'src=|href="http|url\(http|@import|<script', without_names)


def test_numbers_have_at_most_three_decimals(compared, tmp_path):
    page = write_report(compared, tmp_path, title="t")[-1].read_text()
    numbers = re.findall(r'<td class="number">([^<]*)</td>', page)
    significant = [re.sub(r"e.*|[^0-9]", "", n.split(" ")[0]).lstrip("0") for n in numbers]
    assert len(numbers) > 100
    assert all(len(digits) <= 3 for digits in significant if digits), significant


def test_pictures_are_well_formed_and_the_same_every_time(compared, tmp_path):
    once, again = (write_report(compared, tmp_path / name, title="t") for name in ("once", "again"))
    for first, second in zip(once, again, strict=True):
        assert first.read_bytes() == second.read_bytes()
    ET.parse(tmp_path / "once" / "pareto.svg")


def test_a_place_that_cannot_be_written_to(compared, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(TablesError, match=r"cannot be written to .*: name another directory"):
        write_report(compared, tmp_path / "file" / "out", title="t")


def test_times_are_in_the_order_of_settings(compared):
    [panel] = plots.times(compared.costs).axes
    labels = [label.get_text() for label in panel.get_yticklabels()]
    assert labels[:3] == [f"mmlu:subject=a, {s}" for s in ("none", "w4", "w2-kv2")]


def test_points_in_one_place_have_one_label(make_answered, output):
    for suffix in ("", "-w8", "-w4"):
        make_answered(f"flexgen/opt-30b{suffix}", ["yes"] * 4)
    figure = plots.pareto(compare(output).overall)
    assert texts(figure).count("none, w8, w4") == len(plots.PARETO)


def test_suites_of_different_tasks_are_drawn_together(make_answered, output):
    for suite, task in (("one", "a"), ("two", "b")):
        name = f"mmlu:subject={task},model={{model}}"
        make_answered("flexgen/opt-30b", ["yes"] * 4, suite=suite, name=name)
        make_answered("flexgen/opt-30b-w4", ["no"] * 4, suite=suite, name=name)
    figure = plots.differences(compare(output).settings)
    labels = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert labels == ["w4, one", "w4, two"]


def test_labels_say_what_differs():
    rows = pd.DataFrame(
        {"compression": ["w4", "w4"], "model": ["m", "m"], "dtype": ["a", "b"], "suite": ["s", "s"]}
    )
    assert plots.setting_labels(rows) == ["w4, a", "w4, b"]
