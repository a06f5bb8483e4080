"""What the suite asks of a device, and how it finds one: plugins by entry point, then the vendors of vendors.toml."""

from __future__ import annotations

from importlib.metadata import entry_points
from typing import Protocol

from conformance.devices.vendors import VendorDevice, load_vendors
from conformance.errors import DeviceError

ENTRY_POINT_GROUP = "conformance.devices"


class Device(Protocol):
    """The contract of a device plugin; construction and ``count`` must not import torch."""

    name: str
    backend: str
    """torch.distributed backend that the device trains with."""
    visible_devices: str | None
    """Environment variable that chooses the visible devices by index; None where there is none."""

    def count(self) -> int:
        """Devices visible on this node; 0 when there are none."""

    def activate(self) -> None:
        """Make InternEvo's torch.cuda calls and its "nccl" process groups reach this device; call before InternEvo."""

    def identity(self, index: int) -> dict[str, str]:
        """Vendor, model, serial or uuid, driver, firmware and memory of one device, as far as they are known."""

    def health(self, index: int) -> dict[str, str]:
        """What the management tool tells of one device, by the names in devices/cuda.py; empty where it is silent."""


def load_device(name: str) -> Device:
    """Load a device plugin by name.

    Args:
        name: Name of an entry point in the group ``conformance.devices``, or of a vendor in vendors.toml; an installed
            plugin is preferred.

    Returns:
        The plugin's device.

    Raises:
        DeviceError: No plugin and no vendor has that name, or the plugin cannot be imported.
    """
    plugins = {entry.name: entry for entry in entry_points(group=ENTRY_POINT_GROUP)}
    vendors = load_vendors()
    if name not in plugins and name in vendors:
        return VendorDevice(vendors[name])
    if name not in plugins:
        raise DeviceError(
            f"Unknown device {name!r}; installed device plugins: {', '.join(sorted(plugins)) or 'none'}; "
            f"known vendors: {', '.join(vendors)}.",
            "Choose one of these with --device, or install the vendor's plugin package.",
        )
    try:
        device: Device = plugins[name].load()()
    except Exception as error:  # a third party's code: name it, whatever it raised
        raise DeviceError(
            f"Device plugin {name!r} ({plugins[name].value}) failed to load: {type(error).__name__}: {error}.",
            "Reinstall the plugin package or report this to its vendor.",
        ) from error
    return device


def detect_device() -> Device:
    """The accelerator of this node, or the CPU.

    Returns:
        The first installed plugin, by name, that sees a device; else the first vendor of vendors.toml that does; else
        the CPU.
    """
    plugins = sorted(entry.name for entry in entry_points(group=ENTRY_POINT_GROUP) if entry.name != "cpu")
    vendors = [name for name in load_vendors() if name != "cpu" and name not in plugins]
    for name in [*plugins, *vendors]:
        device = load_device(name)
        if device.count():
            return device
    return load_device("cpu")


def known_devices() -> list[tuple[str, str, int]]:
    """Every plugin and vendor by name.

    Returns:
        Name, where it comes from, and how many devices this node has of it.
    """
    plugins = {entry.name: entry.value for entry in entry_points(group=ENTRY_POINT_GROUP)}
    vendors = {name: f"vendors.toml: {vendor.title}" for name, vendor in load_vendors().items() if name not in plugins}
    return [(name, where, load_device(name).count()) for name, where in {**plugins, **vendors}.items()]
