"""Thresholds from real clips: the rate of rejections holds on clips that they were not set from."""

import numpy as np
import pytest

from dreamgen.curate.calibration import calibrate, wilson_interval
from dreamgen.extensions.score import SCORES

METRICS = [SCORES.get(name) for name in ("frozen", "noise", "kept_sharpness", "flow_speed")]


def drawn(num, seed):
    """Values of real clips: frozen is nearly always 0, the others vary in skewed ways."""
    random = np.random.default_rng(seed)
    return {
        "frozen": np.where(random.random(num) < 0.9, 0.0, 0.05), "noise": random.gamma(2, 0.2, num),
        "kept_sharpness": 1 - random.gamma(2, 0.02, num), "flow_speed": random.lognormal(1, 0.3, num),
    }  # fmt: skip


def rejected(values, limits):
    out = np.zeros(len(values["noise"]), bool)
    for metric in METRICS:
        limit = limits[metric.threshold.setting]
        out |= np.array([metric.threshold.is_violated(value, limit) for value in values[metric.name]])
    return out


def test_new_real_clips_are_rejected_at_the_wanted_rate():
    rates = []
    for seed in range(20):
        result = calibrate(drawn(200, seed), [str(n) for n in range(200)], METRICS)
        rates.append(rejected(drawn(2000, 1000 + seed), result.limits).mean())
        assert result.num_clips == 200 and result.interval[0] < 0.03 and result.interval[1] > result.num_rejected / 200
    assert 0.001 < np.mean(rates) < 0.02


def test_few_clips_give_wider_thresholds_than_their_largest_value():
    values = drawn(12, 0)
    limits = calibrate(values, [str(n) for n in range(12)], METRICS).limits
    assert limits["max_noise"] > values["noise"].max() and limits["min_kept_sharpness"] < values["kept_sharpness"].min()
    rates = []
    for seed in range(20):
        limits = calibrate(drawn(12, seed), [str(n) for n in range(12)], METRICS).limits
        rates.append(rejected(drawn(2000, 1000 + seed), limits).mean())
    assert np.mean(rates) < 0.06


def test_a_metric_without_values_keeps_its_threshold_and_bounds_hold():
    values = drawn(50, 0)
    values["flow_speed"] = np.full(50, np.nan)
    values["frozen"] = np.full(50, 0.98)
    limits = calibrate(values, ["a"] * 25 + ["b"] * 25, METRICS).limits
    assert "max_flow_speed" not in limits and limits["max_frozen"] <= 1.0


def test_a_share_of_none_has_an_interval():
    assert wilson_interval(0, 150) == pytest.approx((0, 0.025), abs=1e-3)
    assert wilson_interval(5, 10) == pytest.approx((0.2366, 0.7634), abs=1e-3)
