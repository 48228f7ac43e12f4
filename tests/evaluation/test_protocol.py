"""Protocols: filled in, stored with results, and compared only with their like."""

import json
import math

import pytest

from maetok_lab.evaluation.protocol import EvalProtocol, EvalResult, compare


def result(value=1.0, **fields):
    protocol = EvalProtocol(num_images=100, sampler="heun", steps=50).filled()
    return EvalResult(
        metrics={"kid_efflite2": value},
        intervals={"kid_efflite2": (value - 0.1, value + 0.1)},
        floor={"kid_efflite2": 0.2},
        protocol=EvalProtocol(
            **{"num_images": 100, "sampler": "heun", "steps": protocol.steps} | fields
        ),
        preview=True,
    )


def test_a_result_and_its_protocol_survive_json(tmp_path):
    before = result(guidance_scale=1.5, guidance_low=0.1)
    json.dumps(before.to_json())
    before.save(tmp_path / "result.json")
    assert EvalResult.load(tmp_path / "result.json") == before
    infinite = EvalResult(metrics={"psnr": math.inf}, protocol=EvalProtocol())
    assert json.loads(json.dumps(infinite.to_json()))["metrics"] == {"psnr": None}
    assert math.isnan(EvalResult.from_json(infinite.to_json()).metrics["psnr"])


def test_equal_protocols_share_a_table():
    table = compare({"mine": result(1.0), "yours": result(2.0)})
    assert table.loc["yours"].to_dict() == {
        "preview": True,
        "kid_efflite2": 2.0,
        "kid_efflite2_floor": 0.2,
        "kid_efflite2_over_floor": 10.0,
    }
    assert compare([result()]).index.tolist() == ["0"]
    assert result().table().loc["kid_efflite2"].to_dict() == {
        "value": 1.0,
        "low": 0.9,
        "high": 1.1,
        "floor": 0.2,
        "over_floor": 5.0,
    }


def test_an_interval_has_the_standard_error_that_made_it():
    assert result().standard_error("kid_efflite2") == pytest.approx(0.1 / 1.96)
    assert math.isnan(result().standard_error("psnr"))


def test_a_ratio_needs_a_floor_above_zero():
    def ratio(metric, floor, interval=(0.9, 1.1)):
        only = {"intervals": {metric: interval} if interval else {}, "floor": {metric: floor}}
        one = EvalResult(metrics={metric: 1.0}, protocol=EvalProtocol(), **only)
        return one.over_floor(metric)

    assert ratio("fd_efflite2", 0.01) == ratio("fid", 0.01) == ratio("mind_colours", 0.01) == 100.0
    # an unbiased distance of real images lies around 0: within the error it is 0
    assert ratio("kid", 0.125) == 8.0
    for floor in (0.05, 0.0, -0.01, math.nan):
        assert math.isnan(ratio("kid_efflite2", floor))
    assert math.isnan(ratio("fd_efflite2", 0.0))
    assert ratio("kid_efflite2", 0.05, interval=None) == 20.0
    # shares and scores are no distances
    assert math.isnan(ratio("precision_efflite2", 0.5))
    assert math.isnan(ratio("is", 0.5))
    without = EvalResult(metrics={"kid": 1.0}, protocol=EvalProtocol())
    assert math.isnan(without.over_floor("kid"))
    assert "precision_over_floor" not in compare(
        [EvalResult(metrics={"precision": 1}, floor={"precision": 1}, protocol=EvalProtocol())]
    )


def test_different_protocols_are_refused_with_the_fields_that_differ():
    with pytest.raises(ValueError, match="differ in") as caught:
        compare({"mine": result(), "yours": result(steps=250, sampler="euler")})
    message = str(caught.value)
    assert "sampler: 'heun' (mine), 'euler' (yours)" in message
    assert "steps: 50 (mine), 250 (yours)" in message
    assert "seed" not in message


def test_a_sweep_may_vary_what_it_sweeps():
    results = {"a": result(), "b": result(sampler="euler")}
    assert compare(results, allow="sampler").sampler.tolist() == ["heun", "euler"]
    results["c"] = result(steps=250)
    with pytest.raises(ValueError, match="steps"):
        compare(results, allow="sampler")
    assert list(compare(results, allow=["sampler", "steps"]).columns[:2]) == ["sampler", "steps"]
    with pytest.raises(ValueError, match="no field 'samplr'; did you mean 'sampler'"):
        compare(results, allow="samplr")
    with pytest.raises(ValueError, match="no results"):
        compare({})


def test_a_protocol_is_said_in_one_line():
    protocol = EvalProtocol(
        num_images=50_000,
        labels="equal",
        sampler="heun",
        steps=50,
        guidance_scale=1.5,
        guidance_low=0.1,
        guidance_high=0.8,
        ema=0.9999,
        rounding="uint8",
    )
    assert protocol.describe() == (
        "50,000 images, equal labels, heun, 50 steps, guidance 1.5 on t in [0.1, 0.8], EMA 0.9999, "
        "fp32, rounded to uint8"
    )
    assert (
        EvalProtocol(task="reconstruction", precision="bf16").describe()
        == "reconstruction, bf16, rounded to uint8"
    )


def test_a_stated_field_is_not_overwritten():
    assert EvalProtocol(num_images=5).filled(num_images=5, net="x").net == "x"
    with pytest.raises(ValueError, match="num_images = 50000, but it is 10"):
        EvalProtocol(num_images=50_000).filled(num_images=10)
