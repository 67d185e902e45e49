"""What the quality benchmark of mini compares."""

from __future__ import annotations

from mini_quality import level_samplings, passes_of


def test_each_level_stands_beside_exact_steps_that_cost_as_much():
    samplings = level_samplings(0)
    assert len(set(samplings)) == len(samplings)
    exact = {(one.guidance_scale, passes_of(one)) for one in samplings if one.level == "exact"}
    levels = [one for one in samplings if one.level != "exact"]
    assert {one.level for one in levels} == {"balanced", "turbo"}
    assert all((one.guidance_scale, passes_of(one)) in exact for one in levels)
