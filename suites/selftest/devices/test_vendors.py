"""The table of vendors, and the one plugin that serves them, on a torch device that is made up."""

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from conformance.devices import detect_device, known_devices, load_device
from conformance.devices.vendors import Vendor, VendorDevice, load_vendors
from conformance.errors import DeviceError, SpecError

ROW = {
    "name": "abacus",
    "title": "Abacus",
    "torch": "abacus",
    "imports": ("torch_abacus",),
    "backend": "gloo",
    "visible_devices": ("ABACUS_VISIBLE_DEVICES",),
    "nodes": (),
    "unverified": (),
}


def test_every_vendor_loads_without_torch_and_counts_nothing_here():
    program = (
        "import sys; from conformance.devices import known_devices; rows = known_devices();"
        "assert 'torch' not in sys.modules; print(len(rows))"
    )
    answer = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert int(answer.stdout) >= 15


def test_the_table_is_consistent():
    vendors = load_vendors()
    assert {"cuda", "cpu", "ascend", "cambricon", "amd", "hygon", "tecorigin"} <= set(vendors)
    for vendor in vendors.values():
        assert vendor.backend
        # torch.cuda must reach the device: natively, by a shim of the vendor's, or by the suite's redirection.
        if vendor.torch not in ("cuda", "cpu"):
            assert vendor.redirect or len(vendor.imports) > 1, vendor.name
        assert set(vendor.unverified) <= {"smi", "nodes", "debug", "visible_devices"}


def test_an_installed_plugin_is_preferred_to_the_row():
    assert type(load_device("cuda")).__name__ == "CudaDevice"
    assert isinstance(load_device("ascend"), VendorDevice)
    assert {"cpu", "cuda", "ascend"} <= {name for name, _, _ in known_devices()}
    assert detect_device().name in {"cpu", "cuda"}


def test_an_unknown_device_is_one_sentence_with_what_is_known():
    with pytest.raises(DeviceError, match=r"Unknown device 'abacus'.*cpu, cuda.*ascend"):
        load_device("abacus")


@pytest.mark.parametrize("text", ["", "[vendor.x]\ntitle = 1\n", "[vendor", "[vendor.x]\ncolour = 'red'\n"])
def test_a_broken_table_is_refused(tmp_path, text):
    path = tmp_path / "vendors.toml"
    path.write_text(text)
    with pytest.raises(SpecError, match="is no table of vendors"):
        load_vendors(path)


def test_presence_needs_what_a_source_confirms(tmp_path, monkeypatch):
    node = tmp_path / "abacus0"
    row = {**ROW, "imports": (), "nodes": (str(node),)}
    assert Vendor(**row).absence() == f"there is no {node}"
    node.touch()
    assert not Vendor(**row).absence()
    assert Vendor(**row, absent=(str(node),)).absence() == f"{node} is another vendor's"
    assert "nothing is confirmed" in Vendor(**{**row, "unverified": ("nodes",)}).absence()
    assert (
        Vendor(**{**row, "imports": ("no_such_module.sub",)}).absence() == "there is no Python package no_such_module"
    )
    tool = tmp_path / "abacus-smi"
    tool.touch(mode=0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    by_tool = {**row, "nodes": ()}
    assert not Vendor(**by_tool, smi="abacus-smi info").absence()
    assert Vendor(**by_tool, smi="other-smi info").absence() == "there is no other-smi in PATH"
    assert Vendor(**{**by_tool, "unverified": ("smi",)}, smi="abacus-smi info").absence()


def test_a_missing_module_of_the_vendor_is_named():
    pytest.importorskip("torch", reason="torch is not installed; `make test` installs it")
    with pytest.raises(DeviceError, match="import torch_abacus failed"):
        VendorDevice(Vendor(**ROW)).activate()


# A vendor's plugin in the usual pattern: importing it gives torch a namespace with torch.cuda's names. Its tensors are
# the meta device's, so that what lands on it can be told from the CPU's.
PLUGIN = textwrap.dedent(
    """
    import os, sys, types
    import torch
    visible = os.environ.get("ABACUS_VISIBLE_DEVICES", "0,1,2").split(",")
    namespace = types.ModuleType("torch.abacus")
    namespace.device_count = lambda: len(visible)
    namespace.get_device_name = lambda index: f"Abacus {visible[index]}"
    namespace.current_device = lambda: 0
    namespace.is_available = lambda: True
    torch.abacus = torch.meta = namespace
    """
)


@pytest.fixture
def plugin(tmp_path, monkeypatch):
    pytest.importorskip("torch", reason="torch is not installed; `make test` installs it")
    (tmp_path / "torch_abacus.py").write_text(PLUGIN)
    tool = tmp_path / "abacus-smi"
    tool.touch(mode=0o755)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.syspath_prepend(str(tmp_path))
    return VendorDevice(Vendor(**ROW, smi="abacus-smi"))


def test_a_row_counts_and_names_devices_in_a_process_of_its_own(plugin, monkeypatch):
    assert plugin.count() == 3
    assert plugin.identity(1)["model"] == "Abacus 1"
    assert plugin.identity(1)["tool"].endswith("abacus-smi")
    monkeypatch.setenv("ABACUS_VISIBLE_DEVICES", "2")
    assert plugin.count() == 1
    assert plugin.identity(0)["model"] == "Abacus 2"


def test_redirection_sends_torch_cuda_to_the_vendors_namespace(plugin, tmp_path):
    program = textwrap.dedent(
        """
        import dataclasses
        from conformance.devices.vendors import Vendor, VendorDevice
        row = %r
        VendorDevice(Vendor(**{**row, "torch": "meta", "redirect": True})).activate()
        import torch
        assert torch.cuda.device_count() == 3
        assert torch.cuda.get_device_name(2) == "Abacus 2"
        for made in (torch.ones(2, device="cuda"), torch.ones(2, device="cuda:0"), torch.ones(2).cuda(),
                     torch.ones(2).to("cuda"), torch.ones(2).to(device="cuda"), torch.zeros(2, device=0)):
            assert made.device.type == "meta", made.device
        assert torch.ones(2, device="cpu").device.type == "cpu"
        """
    ) % (ROW,)
    subprocess.run([sys.executable, "-c", program], check=True, cwd=Path(__file__).parents[3])
