"""Reference curves as files."""

import json
from dataclasses import replace

import pytest

from conformance.errors import SpecError
from conformance.spec.curves import Curve, load_curves, read_curve, write_curve

CURVE = Curve("tiny-accuracy", 2, 100, 1024, "a" * 64, (1, 2, 3), ((10.4, 9.0), (10.5, 9.1), (10.3, 9.2)), "a CPU")


def test_what_is_written_is_read_back(tmp_path):
    write_curve(tmp_path / "c.json", CURVE)
    assert read_curve(tmp_path / "c.json") == CURVE
    shown = json.loads((tmp_path / "c.json").read_text())
    assert shown["mean"] == [10.4, 9.1]
    assert shown["spread"] == [0.1, 0.1]


def test_twins_are_read_back_and_a_file_without_them_has_none(tmp_path):
    paired = replace(CURVE, origin="cpu", twins=((10.41,), (10.51,), (10.31,)))
    write_curve(tmp_path / "c.json", paired)
    assert read_curve(tmp_path / "c.json") == paired
    old = {name: value for name, value in CURVE.to_json().items() if name not in ("origin", "twins")}
    (tmp_path / "c.json").write_text(json.dumps(old))
    assert read_curve(tmp_path / "c.json") == CURVE


@pytest.mark.parametrize(
    "change",
    [
        {"version": 2},
        {"losses": [[1.0], [1.0]], "seeds": [1, 2]},
        {"losses": [[1.0, 2.0], [1.0], [1.0]]},
        {"losses": [[], [], []]},
        {"losses": [[1.0], [1.0], [-1.0]]},
        {"losses": [[1.0], [1.0], ["x"]]},
        {"seeds": [1, 2]},
        {"twins": [[10.41], [10.51]]},
        {"twins": [[10.41], [10.51], [10.3]]},
        {"twins": [[10.41], [10.51], [10.31, 9.1]]},
        {"workload": None, "losses": 3},
    ],
)
def test_a_broken_file_is_refused(tmp_path, change):
    path = tmp_path / "c.json"
    path.write_text(json.dumps({**CURVE.to_json(), **change}))
    with pytest.raises(SpecError, match=r"c\.json"):
        read_curve(path)


def test_files_that_are_none(tmp_path):
    with pytest.raises(SpecError, match="cannot be read"):
        read_curve(tmp_path / "absent.json")
    with pytest.raises(SpecError, match="cannot be written"):
        write_curve(tmp_path / "no" / "folder.json", replace(CURVE))
    (tmp_path / "list.json").write_text("[]")
    with pytest.raises(SpecError, match="no reference curve"):
        read_curve(tmp_path / "list.json")


def test_the_suites_own_curves_are_sound():
    found = {curve.workload: curve for curve in load_curves()}
    assert {name: len(curve.seeds) for name, curve in found.items()} == {"tiny-accuracy": 12, "slice-7b-perf": 3}
    for curve in found.values():
        assert curve.steps == 100
        assert len(set(curve.seeds)) == len(set(curve.losses)) == len(curve.seeds)
