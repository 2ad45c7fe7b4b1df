import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.data.bombs import CAP, write_bombs

ALLOWED = CAP + 64 * 2**20
# These are whole, small images; what is enormous in them is left alone or never unpacked.
HARMLESS = {"gif-many-frames", "png-more-than-claimed", "idx-gzip-empty-members"}


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    bombs, scratch = tmp_path_factory.mktemp("bombs"), tmp_path_factory.mktemp("scratch")
    write_bombs(bombs)
    root = Path(__file__).parents[2]
    command = [sys.executable, "-m", "tests.data.bombs", str(bombs), str(scratch)]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_there_are_many(report):
    assert len(report) >= 40


def test_every_bomb_is_refused(report):
    loaded = {name for name, (outcome, _, _) in report.items() if outcome == "loaded"}
    assert loaded <= HARMLESS
    for name, (outcome, _, _) in report.items():
        if outcome != "loaded":
            assert f"/{name}" in outcome
            assert ": expected " in outcome
            assert ", found " in outcome


def test_memory_stays_within_the_cap(report):
    # Growth adds up over the process, so the sum is what all of them needed at the worst moment.
    assert sum(growth for _, growth, _ in report.values()) <= ALLOWED


def test_no_bomb_takes_long(report):
    slow = {name: seconds for name, (_, _, seconds) in report.items() if seconds > 2}
    assert not slow
