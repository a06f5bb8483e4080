"""Where a user's own files lie, and what a user without a home folder is told."""

import os
from pathlib import Path

import pytest

from conformance.errors import ConformanceError
from conformance.folders import user_folder
from conformance.internevo.source import PINS, fetched_path
from conformance.report.build import local_key_path


def test_a_users_folders_follow_the_xdg_base_directories(monkeypatch):
    monkeypatch.setenv("HOME", "/data/people/carol")
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    assert user_folder("XDG_CACHE_HOME", ".cache") == Path("/data/people/carol/.cache/internevo-conformance")
    monkeypatch.setenv("XDG_CACHE_HOME", "/scratch")
    assert user_folder("XDG_CACHE_HOME", ".cache") == Path("/scratch/internevo-conformance")


@pytest.mark.parametrize(
    ("find", "variable"),
    [(lambda: fetched_path(next(iter(PINS.values()))), "XDG_CACHE_HOME"), (local_key_path, "XDG_CONFIG_HOME")],
    ids=["cache", "key"],
)
def test_a_user_without_a_home_folder_is_told_what_to_set(find, variable, monkeypatch):
    for name in ("HOME", variable):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os, "getuid", lambda: 1_234_567)
    with pytest.raises(ConformanceError, match=f"user id 1234567 has no home folder.* Set {variable} to a folder"):
        find()
