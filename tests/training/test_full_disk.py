"""Training on a real filesystem that fills up."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

TRAIN = """
import os, sys
from pathlib import Path
import genfast
from genfast.errors import CheckpointError
from genfast.training.checkpoint import load_latest
from tests.training.fakes import Fake, FakeConfig, images

run = sys.argv[1]
try:
    model = Fake(FakeConfig(width=2000))  # 300 kB, and three times that with Adam's moments
    genfast.fit(model, images(), run=run, epochs=5, batch_size=10, checkpoint_every=3,
                sample_every=0, progress=False)
except CheckpointError as error:
    print(error)
genfast.load(run, model=Fake(FakeConfig(width=2000)))
print(load_latest(Path(run)).step, *os.listdir(run + "/checkpoints"))
"""


def test_full_disk_keeps_the_checkpoint_and_says_what_is_missing(tmp_path: Path) -> None:
    if shutil.which("unshare") is None:
        pytest.skip("no unshare here, which mounts a small filesystem for one process")
    mount = f"mount -t tmpfs -o size=700k none {tmp_path}"
    probe = subprocess.run(["unshare", "-rm", "sh", "-c", mount], capture_output=True)
    if probe.returncode != 0:
        pytest.skip("not allowed to mount a small filesystem here")
    command = f'{mount} && exec "$0" -c "$1" {tmp_path}/run'
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        ["unshare", "-rm", "sh", "-c", command, sys.executable, TRAIN],
        capture_output=True,
        text=True,
        env=environment,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    message, found = done.stdout.splitlines()
    assert f"cannot write {tmp_path}/run/checkpoints/step-00000003: No space left" in message
    assert "bytes needed" in message
    assert "kept: step-00000000" in message
    assert found == "0 step-00000000"
