"""What `Moments` are goes with them: into copies, into files and out of files from before all of it was kept."""

from __future__ import annotations

import base64
import zlib
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
from laws import assert_same_bits, settled_bits

from leace_fast import Moments
from leace_fast._files import load_tensors, save_tensors
from leace_fast.statistics import IGNORE, Kind

# Moments(2, 2, per_class=True, nonfinite="skip", precision="low") of five rows, one of them NaN, as the first release
# wrote them, without their precision.
WITHOUT_PRECISION = """
eNqNVM2O0zAQrhDPsbJ8Wokg2Ynz1xMnJDhx4LZdBbcZt9YmdrGdIlQV8Qg8EgcOPAaPQhynaAtpFucwmW/m+8bzRcri+WI4R1xVLThec8erCi+P
uAG+gUpw6/ASH1d4o5XjUtkVXqI+a7i1qAWuLOKqRhb6eo1a3YJyFmmB3A6QV1vhqO+vZeuJsX8X2rTcVQcwVmrlYerhB6nqID6qBKbSSkglHYSa
fZD7sdC11XANsH+k92AC5hFnOvCggYY7eYAKjNFm6IWXJAulVh9gGHs8RaP8PgDDpRw3W3DVeH3VNc0JR9jueJxmvS+bZJ2USVmmxTopkjqP10Lk
dcYKnjBCGLC8yGuWC0hoFqc05aTIc8J5QktK6TrFp6g3tuuX9ZYP5mshLPj8jkQ0u49w7T7voZ/1JmNhtM/u4ntPNdpOMWl2SX19SY2IJ4dPNs0u
yAy7fwb+Tgo3QS9IVM4MH6gfO26grj6B3O4mdy/7DWj8hErXTi5P44gyNreAZ49f9roLjM3KkODiWeaKGU+qPNa4ss//SFx3cqBnZM7KE0LPwm9g
cY7Deff21eN08et9yL99CPHH9rKObMh/fgnxKxrrL859f8Wb7yHejvFmxG//6f8NDndM0g==
"""
OPTIONS: list[dict[str, Any]] = [
    {"num_classes": 3, "per_class": True, "precision": "low", "nonfinite": "skip"},
    {"target_dim": 2, "precision": "ieee"},
    {"num_classes": 2},
]


def filled(**options: Any) -> Moments:
    generator = torch.Generator().manual_seed(0)
    x, z = torch.randn(40, 4, generator=generator), torch.randn(40, 2, generator=generator)
    return Moments(4, **options).update(x, z if "target_dim" in options else torch.arange(40) % 2)


def kept(moments: Moments) -> dict[str, Any]:
    return {part.name: getattr(moments, part.name) for part in fields(Kind)}


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_copies_and_files_keep_what_moments_are(options: dict[str, Any], tmp_path: Path) -> None:
    moments = filled(**options)
    moments.save(tmp_path / "m")
    expected = {"dim": 4, "num_classes": None, "target_dim": None, "per_class": False, "precision": "high"}
    expected |= {"nonfinite": "raise"} | options
    assert kept(moments) == kept(moments.copy()) == kept(Moments.load(tmp_path / "m")) == expected
    assert expected.items() <= load_tensors(tmp_path / "m", "moments")[1].items()
    assert moments.copy().remove(moments).precision == moments.precision


def test_a_file_without_precision_is_read_with_the_default(tmp_path: Path) -> None:
    path = tmp_path / "m"
    path.write_bytes(zlib.decompress(base64.b64decode(WITHOUT_PRECISION)))
    assert "precision" not in load_tensors(path, "moments")[1]
    moments = Moments.load(path)
    expected = {"dim": 2, "num_classes": 2, "target_dim": None, "per_class": True, "precision": "high"}
    assert kept(moments) == expected | {"nonfinite": "skip"}
    assert moments.skipped == 1 and moments.relative_error == 2e-6
    assert moments.class_means.tolist() == [[4.5, 7.5], [12.0, 19.5]]
    assert moments.class_covariances[0].tolist() == [[12.25, 19.25], [19.25, 30.25]]
    again = tmp_path / "again"
    moments.save(again)
    assert_same_bits(settled_bits(Moments.load(again)), settled_bits(moments))


def test_a_file_goes_on_where_it_is_told_to(tmp_path: Path) -> None:
    filled(num_classes=2).save(tmp_path / "m")
    loaded = Moments.load(tmp_path / "m", device="meta")
    assert loaded.device.type == "meta" == loaded.copy().device.type
    assert {tensor.device.type for tensor in loaded._sums.state.tensors().values()} == {"meta"}


def test_what_is_read_in_inference_mode_goes_on_outside_of_it(tmp_path: Path) -> None:
    filled(num_classes=2).save(tmp_path / "m")
    with torch.inference_mode():
        loaded = Moments.load(tmp_path / "m")
    assert loaded.update(torch.ones(5, 4), torch.zeros(5).long()).count == 45


def test_nonfinite_may_be_set_and_nothing_else() -> None:
    moments = filled(num_classes=2, precision="low")
    moments.nonfinite = "skip"
    assert (moments.nonfinite, moments.precision) == ("skip", "low")
    before = settled_bits(moments)
    with pytest.raises(ValueError, match="nonfinite is 'ignore', expected 'raise' or 'skip'"):
        moments.nonfinite = "ignore"  # type: ignore[assignment]
    assert_same_bits(settled_bits(moments), before)
    for name in ("dim", "num_classes", "target_dim", "per_class", "precision", "device"):
        with pytest.raises(AttributeError):
            setattr(moments, name, getattr(moments, name))


def test_a_precision_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match=r"precision is 'half', expected one of \('low', 'high', 'ieee'\)"):
        Moments(4, 2, precision="half")  # type: ignore[arg-type]


def test_moments_of_other_precision_may_be_merged() -> None:
    moments, other = filled(num_classes=2, precision="low"), filled(num_classes=2, precision="ieee", nonfinite="skip")
    assert moments.merge(other).count == 80
    assert (moments.precision, moments.nonfinite, other.precision) == ("low", "raise", "ieee")


def test_the_label_of_rows_to_leave_out_is_that_of_torch() -> None:
    assert IGNORE == torch.nn.CrossEntropyLoss().ignore_index == -100


@pytest.mark.parametrize("field", ["dim", "per_class", "nonfinite", "skipped", "removed"])
def test_a_header_that_lacks_a_field_is_refused_by_name(field: str, tmp_path: Path) -> None:
    path = tmp_path / "moments.safetensors"
    Moments(3, 2, per_class=True).update(torch.randn(9, 3), torch.arange(9) % 2).save(path)
    tensors, header = load_tensors(path, "moments")
    save_tensors(path, "moments", tensors, {name: value for name, value in header.items() if name != field})
    with pytest.raises(ValueError, match=f"moments.safetensors holds no moments that can be read: .*{field}"):
        Moments.load(path)
