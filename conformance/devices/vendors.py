"""Vendors whose torch plugin follows the usual pattern: rows of vendors.toml, and the one plugin that serves them."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from conformance.devices.redirect import namespace_answers, redirect
from conformance.errors import DeviceError, SpecError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

VENDORS_FILE = Path(__file__).with_name("vendors.toml")
# A vendor's torch plugin takes seconds to import; a driver that hangs must not hang the suite.
QUERY_TIMEOUT_SECONDS = 90


@dataclass(frozen=True)
class Vendor:
    """One row of vendors.toml, whose head says what the fields mean."""

    name: str
    title: str
    torch: str
    imports: tuple[str, ...]
    backend: str
    visible_devices: tuple[str, ...]
    nodes: tuple[str, ...]
    unverified: tuple[str, ...]
    absent: tuple[str, ...] = ()
    smi: str = ""
    debug: str = ""
    redirect: bool = False

    def absence(self) -> str:
        """Why this machine does not look like the vendor's: by driver node, else by tool; and by Python plugin.

        Returns:
            In words; empty where it does.
        """
        if other := [path for path in self.absent if Path(path).exists()]:
            return f"{other[0]} is another vendor's"
        packages = [module.partition(".")[0] for module in self.imports]
        if missing := [package for package in packages if importlib.util.find_spec(package) is None]:
            return f"there is no Python package {missing[0]}"
        if self.nodes and "nodes" not in self.unverified:
            missing = [path for path in self.nodes if not Path(path).exists()]
            return f"there is no {missing[0]}" if missing else ""
        tool = self.smi.split(" ")[0] if "smi" not in self.unverified else ""
        if not tool:
            return "nothing is confirmed by which it could be recognised"
        return "" if shutil.which(tool) else f"there is no {tool} in PATH"


@functools.cache
def load_vendors(path: Path = VENDORS_FILE) -> dict[str, Vendor]:
    """Read a table of vendors.

    Args:
        path: A TOML file of [vendor.NAME] tables.

    Returns:
        Vendors by name, in the order of the file.

    Raises:
        SpecError: The file cannot be read, or a row is malformed.
    """
    try:
        rows = tomllib.loads(path.read_text("utf-8"))["vendor"]
        return {name: _vendor(name, row) for name, row in rows.items()}
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise SpecError(
            f"{path} is no table of vendors: {error}.", "Each [vendor.NAME] has the keys of its head."
        ) from error


def _vendor(name: str, row: dict[str, Any]) -> Vendor:
    fields: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in row.items()}
    return Vendor(name=name, **fields)


class VendorDevice:
    """A device that its row in vendors.toml describes.

    Args:
        vendor: The row.
    """

    def __init__(self, vendor: Vendor) -> None:
        self.vendor = vendor
        self.name = vendor.name
        self.backend = vendor.backend
        known = vendor.visible_devices if "visible_devices" not in vendor.unverified else ()
        self.visible_devices = known[0] if known else None

    def count(self) -> int:
        """Devices that torch sees, asked in a process of its own so that this one stays free of torch.

        Returns:
            Number of devices; 0 where the vendor's driver or plugin is absent.
        """
        return 0 if self.vendor.absence() else len(self._models())

    def absence(self) -> str:
        """Why there is no device.

        Returns:
            In words; empty where the machine looks like the vendor's.
        """
        return self.vendor.absence()

    def activate(self) -> None:
        """Import the vendor's plugin and its transfer shim; where there is no shim, redirect torch.cuda.

        Raises:
            DeviceError: A module is missing or fails.
        """
        import torch

        for module in self.vendor.imports:
            try:
                importlib.import_module(module)
            except Exception as error:  # a third party's code: name it, whatever it raised
                raise DeviceError(
                    f"{self.vendor.title}: import {module} failed: {type(error).__name__}: {error}.",
                    f"Install the vendor's {module} for torch {torch.__version__}.",
                ) from error
        if self.vendor.redirect:
            namespace = getattr(torch, self.vendor.torch, None)
            if namespace is None:
                raise DeviceError(f"{self.vendor.title}: torch has no torch.{self.vendor.torch} after its imports.")
            redirect(self.vendor.torch, namespace_answers(namespace), self.vendor.backend)

    def identity(self, index: int) -> dict[str, str]:
        """Identity by torch, driver node and tool; a vendor's own plugin package can tell more.

        Args:
            index: Position among the visible devices.

        Returns:
            Vendor, model, and what shows that the model's name is true: driver nodes and the tool's path.
        """
        models = self._models()
        tool = shutil.which(self.vendor.smi.split(" ")[0]) if self.vendor.smi else None
        return {
            "vendor": self.vendor.title,
            "model": models[index] if index < len(models) else "unknown",
            "nodes": " ".join(path for path in self.vendor.nodes if Path(path).exists()),
            "tool": tool or "",
            "unverified": " ".join(self.vendor.unverified),
        }

    def health(self, index: int) -> dict[str, str]:
        """Nothing: the tools of these vendors print no format that a source confirms.

        Args:
            index: Not needed.

        Returns:
            An empty dictionary.
        """
        return {}

    def _models(self) -> list[str]:
        visible = tuple((name, os.environ.get(name)) for name in self.vendor.visible_devices)
        return _models(self.vendor.torch, self.vendor.imports, visible)


@functools.cache
def _models(device: str, imports: tuple[str, ...], visible: tuple[Any, ...]) -> list[str]:
    """Ask torch for the names of the visible devices; ``visible`` is there to ask again when it changes."""
    program = (
        "import importlib, json, sys, torch\n"
        "for module in sys.argv[2:]: importlib.import_module(module)\n"
        "namespace = getattr(torch, sys.argv[1])\n"
        "name = getattr(namespace, 'get_device_name', lambda index: 'unknown')\n"
        "print('\\n' + json.dumps([name(index) for index in range(namespace.device_count())]))\n"
    )
    try:
        answer = subprocess.run(
            [sys.executable, "-c", program, device, *imports],
            capture_output=True,
            text=True,
            timeout=QUERY_TIMEOUT_SECONDS,
            check=True,
        )
        return [str(name) for name in json.loads(answer.stdout.strip().splitlines()[-1])]
    except (subprocess.SubprocessError, OSError, ValueError, IndexError):
        return []
