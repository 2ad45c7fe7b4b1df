import json
import signal
import subprocess
import sys
import time

import pytest


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stopped_training_saves_and_says_so_in_its_exit_code(number, code, tmp_path):
    run = tmp_path / "run"
    words = ["train", "vae", "--data", "digits", "--epochs", "100000", "--sample-every", "0"]
    words += ["--set", "hidden=8", "--set", "latent_dim=2", "--log-every", "1", "--out", str(run)]
    words = [sys.executable, "-m", "genfast.cli", *words, "--no-progress"]
    with subprocess.Popen(words, stderr=subprocess.PIPE, text=True) as process:
        try:
            wait_for_a_step(run, process)
            process.send_signal(number)
            _, err = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == code
    assert err == f"genfast: stopped; --resume goes on with the run in {run}\n"
    newest = max((run / "checkpoints").glob("step-*"))
    assert int(newest.name.removeprefix("step-")) == last_row(run)["step"]


def last_row(run):
    return json.loads((run / "log.jsonl").read_bytes().splitlines()[-1])


def wait_for_a_step(run, process):
    end = time.monotonic() + 120
    while not ((run / "log.jsonl").exists() and (run / "log.jsonl").stat().st_size):
        assert process.poll() is None
        assert time.monotonic() < end
        time.sleep(0.05)
