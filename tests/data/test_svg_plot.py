"""Plots stay inside their picture, whatever the values, and their texts are escaped."""

from xml.etree import ElementTree

import pytest

from dreamgen.data.svg_plot import MAX_POINTS, Line, Strip, line_plot, strip_plot, svg_document

SVG = "{http://www.w3.org/2000/svg}"


def polylines(svg):
    root = ElementTree.fromstring(svg_document(svg))
    lines = [line.get("points").split() for line in root.findall(f"{SVG}polyline")]
    return [[tuple(map(float, point.split(","))) for point in points] for points in lines]


@pytest.mark.parametrize("y", [[], [3.0], [5.0, 5.0], [float("nan"), -1e9, 1e9], [1e-12, 2e-12], [1000.0, 1.0] * 50])
def test_lines_are_drawn_inside_the_picture(y):
    for points in polylines(line_plot([Line(range(len(y)), y)], "loss", width_px=300, height_px=100)):
        assert all(0 <= x <= 300 and 0 <= y <= 100 for x, y in points)


def test_long_lines_are_thinned_to_their_ends():
    (points,) = polylines(line_plot([Line(range(5000), range(5000))], "loss"))
    assert len(points) == MAX_POINTS and points[0][0] < points[-1][0] and points[0][1] > points[-1][1]


def test_strips_have_names_and_ranges_and_a_scale_of_their_own():
    svg = strip_plot([Strip("<arm>", [[0, 1]]), Strip("gripper", [[-100, 100]])], "a & b", ("0 s", "1 s"))
    assert "<arm>" not in svg and "a &amp; b" in svg and "-100 … 100" in svg
    flat, full = polylines(svg)
    assert abs(flat[0][1] - flat[1][1]) < abs(full[0][1] - full[1][1])
