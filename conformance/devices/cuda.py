"""NVIDIA GPUs."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

# nvidia-smi answers in well under a second; a driver that hangs must not hang the suite.
SMI_TIMEOUT_SECONDS = 20
IDENTITY_FIELDS = {
    "model": "name",
    "uuid": "uuid",
    "serial": "serial",
    "driver": "driver_version",
    "firmware": "vbios_version",
    "memory": "memory.total",
}
# Our name, as in devices/health.py -> nvidia-smi's. A driver that does not know one of them refuses the whole query;
# then each is asked alone.
HEALTH_FIELDS = {
    "ecc_uncorrected": "ecc.errors.uncorrected.volatile.total",
    "remapping_pending": "remapped_rows.pending",
    "remapping_failed": "remapped_rows.failure",
    "throttle_thermal": "clocks_throttle_reasons.hw_thermal_slowdown",
    "throttle_power_brake": "clocks_throttle_reasons.hw_power_brake_slowdown",
    "throttle_software_thermal": "clocks_throttle_reasons.sw_thermal_slowdown",
    "link_width": "pcie.link.width.current",
    "link_width_max": "pcie.link.width.max",
    "link_generation": "pcie.link.gen.current",
    "link_generation_max": "pcie.link.gen.max",
    "bus": "pci.bus_id",
    "memory_used_mib": "memory.used",
    "temperature_celsius": "temperature.gpu",
    "clock_mhz": "clocks.sm",
    "clock_max_mhz": "clocks.max.sm",
}
UNKNOWN = ("", "[N/A]", "N/A", "[Not Supported]", "[Unknown Error]")


def _smi(query: str) -> list[list[str]]:
    if shutil.which("nvidia-smi") is None:
        return []
    try:
        answer = subprocess.run(
            ["nvidia-smi", query, "--format=csv,noheader,nounits"],
            capture_output=True,
            text=True,
            timeout=SMI_TIMEOUT_SECONDS,
            check=True,
        )
    except (subprocess.SubprocessError, OSError):
        return []
    return [[cell.strip() for cell in line.split(",")] for line in answer.stdout.splitlines() if line.strip()]


class CudaDevice:
    """Devices that torch.cuda drives natively."""

    name = "cuda"
    backend = "nccl"
    visible_devices = "CUDA_VISIBLE_DEVICES"

    def count(self) -> int:
        """Devices that nvidia-smi lists and CUDA_VISIBLE_DEVICES lets through.

        Returns:
            Number of devices.
        """
        return len(self._visible())

    def absence(self) -> str:
        """Why there is no device.

        Returns:
            In words.
        """
        if shutil.which("nvidia-smi") is None:
            return "there is no nvidia-smi in PATH"
        return f"of {len(_smi('--query-gpu=index'))} devices that nvidia-smi lists, CUDA_VISIBLE_DEVICES shows none"

    def _visible(self) -> list[list[str]]:
        rows = _smi("--query-gpu=index,uuid," + ",".join(IDENTITY_FIELDS.values()))
        chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
        if chosen is None:
            return rows
        wanted = [token.strip() for token in chosen.split(",") if token.strip()]
        return [row for token in wanted for row in rows if token == row[0] or row[1].startswith(token)]

    def activate(self) -> None:
        """Nothing to do: InternEvo calls torch.cuda and NCCL itself."""

    def telemetry_command(self) -> list[str]:
        """Samples of every device of the node, by NVML.

        Returns:
            Command that prints CSV until it is ended.
        """
        return [sys.executable, "-m", "conformance.devices.nvml"]

    def identity(self, index: int) -> dict[str, str]:
        """Identity from nvidia-smi.

        Args:
            index: Position among the visible devices.

        Returns:
            Vendor, model, uuid, serial, driver, firmware, memory.
        """
        rows = self._visible()
        if index >= len(rows):
            return {"vendor": "NVIDIA"}
        known = dict(zip(IDENTITY_FIELDS, rows[index][2:], strict=False))
        if "memory" in known:
            known["memory"] += " MiB"
        return {"vendor": "NVIDIA", **{name: value for name, value in known.items() if value not in UNKNOWN}}

    def health(self, index: int) -> dict[str, str]:
        """Error counters, throttle reasons, link and other processes, from nvidia-smi.

        Args:
            index: Position among the visible devices.

        Returns:
            What nvidia-smi knows, by the names of HEALTH_FIELDS; ``processes`` holds process ids, separated by spaces.
        """
        rows = self._visible()
        if index >= len(rows):
            return {}
        position, uuid = int(rows[index][0]), rows[index][1]
        answers = _smi("--query-gpu=index," + ",".join(HEALTH_FIELDS.values()))
        if answers:
            named = {row[0]: dict(zip(HEALTH_FIELDS, row[1:], strict=False)) for row in answers}[str(position)]
        else:
            named = {ours: _one(theirs, position) for ours, theirs in HEALTH_FIELDS.items()}
        known = {name: value for name, value in named.items() if value not in UNKNOWN}
        busy = [row[0] for row in _smi("--query-compute-apps=pid,gpu_uuid") if row[1:] == [uuid]]
        return {**known, "processes": " ".join(busy)}


def _one(field: str, position: int) -> str:
    rows = _smi(f"--query-gpu={field}")
    return rows[position][0] if position < len(rows) else ""
