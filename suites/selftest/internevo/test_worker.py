"""The worker runs InternEvo's source, not what else lies in its tree."""

import os
import py_compile
import subprocess
import sys
from importlib.util import cache_from_source, find_spec
from pathlib import Path
from types import SimpleNamespace

import pytest

from conformance.errors import DeviceError
from conformance.internevo.worker import Settings, _identity, _leave


@pytest.mark.slow
@pytest.mark.skipif(find_spec("internlm") is None, reason="InternEvo is not installed; `make test` installs it")
def test_bytecode_in_the_tree_is_not_believed(tmp_path):
    tree, run = tmp_path / "internevo", tmp_path / "run"
    for folder in (tree, run / "work", run / "environment"):
        folder.mkdir(parents=True)
    (tree / "train.py").write_text("import probe\n\nprint(probe.SAID)\n")
    (tree / "probe.py").write_text("SAID = 'bytecode'\n")
    py_compile.compile(
        str(tree / "probe.py"), doraise=True, invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH
    )
    assert Path(cache_from_source(str(tree / "probe.py"))).exists()
    (tree / "probe.py").write_text("SAID = 'source'\n")
    Settings("cpu", str(tree)).write(run)
    plain = subprocess.run([sys.executable, "train.py"], cwd=tree, capture_output=True, text=True)
    assert plain.stdout == "bytecode\n"  # Python itself believes it
    environment = os.environ | {"RANK": "0", "GROUP_RANK": "0", "LOCAL_RANK": "0"}
    subprocess.run([sys.executable, "-m", "conformance.internevo.worker", str(run)], env=environment, check=True)
    assert (run / "logs/node0/rank0.log").read_text().splitlines()[-1] == "source"


def test_a_record_is_left_whole_or_not_at_all(tmp_path, monkeypatch):
    for folder in ("work", "environment"):
        (tmp_path / folder).mkdir()

    def full(path, text, real=Path.write_text):
        real(path, text[:5])
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched, pytest.raises(OSError, match="No space"):
        patched.setattr(Path, "write_text", full)
        _leave({"rank": 0}, tmp_path, "rank0.json")
    assert list((tmp_path / "environment").iterdir()) == []
    _leave({"rank": 0}, tmp_path, "rank0.json")
    assert (tmp_path / "environment/rank0.json").read_text() == '{\n "rank": 0\n}\n'


@pytest.mark.parametrize(
    ("answers", "lacking"),
    [
        ([{"vendor": "NVIDIA"}, {"vendor": "NVIDIA", "model": "H200"}], None),
        (
            [{"vendor": "NVIDIA"}, {"vendor": "NVIDIA", "model": ""}],
            r"tells no model, asked twice; it tells vendor, model",
        ),
        ([{}, {}], "tells no vendor and no model, asked twice; it tells nothing"),
    ],
    ids=["late once", "no model", "nothing"],
)
def test_a_device_that_does_not_say_who_it_is_is_asked_again_and_trains_nothing(answers, lacking):
    device = SimpleNamespace(name="cuda", identity=lambda index: answers.pop(0))
    if lacking is None:
        assert _identity(device, 1)["model"] == "H200"
        return
    with pytest.raises(DeviceError, match=rf"^Device 1 on \S+ \(cuda\) {lacking}\. `conformance device-check cuda`"):
        _identity(device, 1)
