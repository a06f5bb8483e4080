"""Training data: text becomes InternEvo's bin and meta files, and a folder of them becomes one fingerprint.

A prepared folder DIR holds ``train/en/NAME-00000.bin`` and ``.bin.meta``, ``tokenizer.model`` and ``fingerprint.json``.
InternEvo trains on ``train_folder(DIR)``: it takes whatever lies in its folder for a type of data, so nothing else may
lie there.
"""

from __future__ import annotations

from conformance.data.checking import check
from conformance.data.fingerprints import Fingerprint, Shard, fingerprint, read_fingerprint, train_folder
from conformance.data.inputs import find_inputs
from conformance.data.preparing import Broken, Prepared, Progress, prepare
from conformance.data.tokenizer import rehearsal_tokenizer

__all__ = [
    "Broken",
    "Fingerprint",
    "Prepared",
    "Progress",
    "Shard",
    "check",
    "find_inputs",
    "fingerprint",
    "prepare",
    "read_fingerprint",
    "rehearsal_tokenizer",
    "train_folder",
]
