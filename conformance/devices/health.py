"""What a device's health may say: the names that checks read, and the values that each of them understands."""

from __future__ import annotations

import re
from collections.abc import Mapping

SOUND = ("Not Active", "No", "0", "False")
UNSOUND = ("Active", "Yes", "1", "True")
_FLAG = re.compile("|".join((*SOUND, *UNSOUND)))
_NUMBER = re.compile(r"\d+(?:\.\d+)?")
FLAGS = (
    "remapping_pending", "remapping_failed", "throttle_thermal", "throttle_power_brake", "throttle_software_thermal",
)  # fmt: skip
NUMBERS = (
    "ecc_uncorrected", "link_width", "link_width_max", "link_generation", "link_generation_max", "memory_used_mib",
    "temperature_celsius", "clock_mhz", "clock_max_mhz",
)  # fmt: skip
# Name -> what its value looks like.
FORMS = {
    **dict.fromkeys(FLAGS, _FLAG),
    **dict.fromkeys(NUMBERS, _NUMBER),
    # Domain, bus, device and function on the PCI bus, and process ids.
    "bus": re.compile(r"(?:[0-9A-Fa-f]{4,8}:)?[0-9A-Fa-f]{2}:[0-9A-Fa-f]{2}\.[0-7]"),
    "processes": re.compile(r"(?:\d+(?: \d+)*)?"),
}


def misunderstood(health: Mapping[str, object]) -> list[str]:
    """What no check would understand of a device's health.

    Args:
        health: What ``Device.health`` returned.

    Returns:
        Each unknown name, and each value that is not of its name's form, in words.
    """
    faults = [f"{name!r} is no name that a check reads" for name in health if name not in FORMS]
    faults += [
        f"{name} is {value!r}, expected {_told(name)}"
        for name, value in health.items()
        if name in FORMS and not (isinstance(value, str) and FORMS[name].fullmatch(value))
    ]
    return faults


def _told(name: str) -> str:
    if name in FLAGS:
        return f"one of the strings {', '.join((*SOUND, *UNSOUND))}"
    return "a string of digits" if name in NUMBERS else "ids separated by spaces" if name == "processes" else "a PCI id"
