"""NVIDIA's telemetry as CSV, a row of each device a second, from one long-lived NVML session.

The columns are nvidia-smi's. On an H200 these questions take 0.9 ms a sample, and one call of nvidia-smi 28 ms.

    python -m conformance.devices.nvml
"""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import datetime
from typing import Any

import pynvml

INTERVAL_SECONDS = 1.0
UNKNOWN = "[N/A]"
FIELDS: dict[str, Callable[[Any], str]] = {
    "utilization.gpu [%]": lambda device: f"{pynvml.nvmlDeviceGetUtilizationRates(device).gpu} %",
    "memory.used [MiB]": lambda device: f"{pynvml.nvmlDeviceGetMemoryInfo(device).used >> 20} MiB",
    "power.draw [W]": lambda device: f"{pynvml.nvmlDeviceGetPowerUsage(device) / 1e3:.2f} W",
    "temperature.gpu": lambda device: str(pynvml.nvmlDeviceGetTemperature(device, pynvml.NVML_TEMPERATURE_GPU)),
    "clocks.current.sm [MHz]": lambda device: f"{pynvml.nvmlDeviceGetClockInfo(device, pynvml.NVML_CLOCK_SM)} MHz",
    "clocks.current.memory [MHz]": lambda device: f"{pynvml.nvmlDeviceGetClockInfo(device, pynvml.NVML_CLOCK_MEM)} MHz",
    "clocks_throttle_reasons.active": lambda device: (
        f"0x{pynvml.nvmlDeviceGetCurrentClocksThrottleReasons(device):016X}"
    ),
}


def main() -> None:
    """Print a header and then samples until ended; one line that says why where the driver does not answer."""
    try:
        pynvml.nvmlInit()
        devices = [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(pynvml.nvmlDeviceGetCount())]
        uuids = [pynvml.nvmlDeviceGetUUID(device) for device in devices]
    except pynvml.NVMLError as error:
        print(f"no telemetry: NVML does not answer ({error})", flush=True)
        return
    print(", ".join(("timestamp", "index", "uuid", *FIELDS)), flush=True)
    while True:
        for index, (device, uuid) in enumerate(zip(devices, uuids, strict=True)):
            now = datetime.now().strftime("%Y/%m/%d %H:%M:%S.%f")[:-3]
            print(", ".join((now, str(index), uuid, *(_told(field, device) for field in FIELDS.values()))), flush=True)
        time.sleep(INTERVAL_SECONDS)


def _told(field: Callable[[Any], str], device: Any) -> str:
    try:
        return field(device)
    except pynvml.NVMLError:
        return UNKNOWN


if __name__ == "__main__":
    main()
