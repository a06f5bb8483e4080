"""The errors that a user can act on; only cli.py and plugin.py turn them into text and exit codes."""

from __future__ import annotations


class ConformanceError(Exception):
    """A fault with a next step: one sentence on what, where, expected and got; one on what to do.

    Args:
        message: What went wrong, where, what was expected and what was found.
        next_step: What the user does about it; empty when the message already says so.
    """

    def __init__(self, message: str, next_step: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.next_step = next_step

    def __str__(self) -> str:
        return f"{self.message} {self.next_step}".strip()


class SpecError(ConformanceError):
    """A workload, floor or check file is malformed or unknown."""


class SourceError(ConformanceError):
    """The InternEvo tree is absent, not a checkout, or not the pinned one."""


class DeviceError(ConformanceError):
    """A device plugin is unknown, broken, or finds fewer devices than asked for."""


class LaunchError(ConformanceError):
    """The training processes could not be started or were interrupted."""


class EvidenceError(ConformanceError):
    """A run directory or a log cannot be read as evidence."""


class KeyFileError(ConformanceError):
    """A signing or verification key cannot be read, or may be read by others."""


class SignatureError(ConformanceError):
    """An envelope's signature, payload type or payload is not acceptable."""


class ArchiveError(ConformanceError):
    """A bundle is not the strict archive that the reader accepts."""


class JsonError(ConformanceError):
    """A JSON text breaks the strict rules, or a value cannot be written under them."""


class PolicyError(ConformanceError):
    """A lab's policy is malformed, or not signed by the lab."""


class ChallengeError(ConformanceError):
    """A challenge is malformed, expired, or meant for another vendor or workload."""


class DataError(ConformanceError):
    """Training data or its tokenizer is absent, broken, or not what it is said to be."""
