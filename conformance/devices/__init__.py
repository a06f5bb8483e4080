"""What the suite asks of a device, and how it finds one: plugins by entry point, then the vendors of vendors.toml."""

from __future__ import annotations

import threading
from importlib.metadata import entry_points
from typing import Any, Protocol

from conformance.devices.vendors import VendorDevice, load_vendors
from conformance.errors import DeviceError

ENTRY_POINT_GROUP = "conformance.devices"
# More than any plugin of ours waits for a driver, vendors.py's 90 s; a driver that hangs must not hang the suite.
COUNT_SECONDS = 100.0
MEMBERS = ("name", "backend", "visible_devices", "count", "activate", "identity", "health")


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
        """What the management tool tells of one device, by the names in devices/health.py; empty where it is silent."""


def load_device(name: str) -> Device:
    """Load a device plugin by name.

    Args:
        name: Name of an entry point in the group ``conformance.devices``, or of a vendor in vendors.toml; an installed
            plugin is preferred.

    Returns:
        The plugin's device.

    Raises:
        DeviceError: No plugin and no vendor has that name, the plugin cannot be imported, lacks a member,
            or has another name.
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
    lacking = [member for member in MEMBERS if not hasattr(device, member)]
    if lacking or device.name != name:  # a measuring process finds it by that name
        told = f"has no {' and no '.join(lacking)}" if lacking else f"has the name {device.name!r}, expected {name!r}"
        raise DeviceError(
            f"Device plugin {name!r} ({plugins[name].value}) {told}.",
            "docs/devices.md lists the members of a plugin; its name is that of its entry point.",
        )
    return device


def count_devices(device: Device) -> int:
    """Ask a plugin for its devices, whatever the plugin does.

    Args:
        device: The plugin.

    Returns:
        Devices visible on this node.

    Raises:
        DeviceError: The plugin raised, did not answer within COUNT_SECONDS, or answered with no number.
    """
    answers: list[Any] = []

    def ask() -> None:
        try:
            answers.append(device.count())
        except Exception as error:  # a third party's code: name it, whatever it raised
            answers.append(f"{type(error).__name__}: {error}")

    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(COUNT_SECONDS)
    answer = answers[0] if answers else f"no answer within {COUNT_SECONDS:.0f} s"
    if isinstance(answer, int):
        return answer
    raise DeviceError(
        f"Device plugin {device.name!r} cannot count its devices: {answer}.",
        f"`conformance device-check {device.name}` tells more; --device NAME chooses another.",
    )


def detect_device() -> Device:
    """The accelerator of this node, or the CPU.

    Returns:
        The first installed plugin, by name, that sees a device; else the first vendor of vendors.toml that does; else
        the CPU.

    Raises:
        DeviceError: A plugin cannot be loaded or asked.
    """
    plugins = sorted(entry.name for entry in entry_points(group=ENTRY_POINT_GROUP) if entry.name != "cpu")
    # By its row at once: to find each by its name, all installed packages would be looked through each time.
    vendors = (VendorDevice(row) for name, row in load_vendors().items() if name not in ("cpu", *plugins))
    for device in (*map(load_device, plugins), *vendors):
        if count_devices(device):
            return device
    return load_device("cpu")


def known_devices() -> list[tuple[str, str, int]]:
    """Every plugin and vendor by name.

    Returns:
        Name, where it comes from, and how many devices this node has of it; 0 and what is wrong of one that is broken.
    """
    plugins = {entry.name: entry.value for entry in entry_points(group=ENTRY_POINT_GROUP)}
    vendors = {name: f"vendors.toml: {vendor.title}" for name, vendor in load_vendors().items() if name not in plugins}
    rows = []
    for name, where in {**plugins, **vendors}.items():
        try:
            rows.append((name, where, count_devices(load_device(name))))
        except DeviceError as error:
            rows.append((name, error.message, 0))
    return rows
