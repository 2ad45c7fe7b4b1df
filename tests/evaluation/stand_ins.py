"""`fit` and `load` that take no time: they write and read a run's folder, and train nothing."""

import json
from pathlib import Path

import torch

from tests.evaluation.families import FAMILIES


class Studio:
    """Remembers every call; `fail_once` interrupts the next training."""

    def __init__(self) -> None:
        self.fits: list[dict] = []
        self.loads: list[Path] = []
        self.fail_once = False

    def fit(self, name, data, *, run, valid, resume, model_options, progress, **training):
        run = Path(run)
        self.fits.append({"name": name, "resume": resume, "options": model_options, **training})
        (run / "run.json").write_text(
            json.dumps({"model": {"name": name}, "training": training}), encoding="utf-8"
        )
        if self.fail_once:
            self.fail_once = False
            raise KeyboardInterrupt
        part = "generator/" if name == "gan" else ""
        rows = [{"step": step, "epoch": 1, f"{part}loss": 5.0 / step} for step in range(1, 9)]
        rows.append({"step": 8, "epoch": 1, "valid/loss": 2.0})
        (run / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        summary = {"steps": 8, "seconds": 1.5, "parameters": 1, "losses": {"loss": 0.625}}
        (run / "summary.json").write_text(json.dumps(summary))

    def load(self, run, *, device):
        self.loads.append(Path(run))
        name = json.loads((Path(run) / "run.json").read_text())["model"]["name"]
        torch.manual_seed(0)
        return FAMILIES[name]().eval()
