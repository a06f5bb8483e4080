"""What the launch tests share: a display that remembers, what a run left behind, and the table of injected faults."""

import contextlib

import psutil
import pytest

from conformance.launch.torchrun import RUN_MARK


class Remembering:
    """A display that keeps what it is shown."""

    def __init__(self):
        self.steps, self.notices, self.views, self.missing = [], [], {}, []

    def step(self, step):
        self.steps.append(step)

    def nodes(self, views):
        self.views = views

    def notice(self, fault):
        self.notices.append(fault)

    def waiting(self, missing, seconds):
        self.missing.append((list(missing), seconds))


@pytest.fixture
def display():
    return Remembering()


def marked_with(*runs):
    """Processes that carry the mark of one of these runs, whatever their part in it."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            mark = process.environ().get(RUN_MARK, "")
            if any(mark.startswith(f"{run}:") for run in runs) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


@pytest.fixture
def left_over():
    return marked_with


@pytest.fixture(scope="session")
def table():
    """Rows of injected faults: what was injected, seconds to detection, what was said; printed with -s."""
    rows = []
    yield rows
    if rows:
        print("\n\n| injected | detected in | what was said |\n|---|---|---|")
        for injected, seconds, message in rows:
            print(f"| {injected} | {seconds:.1f} s | {message} |")
