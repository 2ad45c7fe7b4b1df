"""The results folder: few files, written again after every step, so that a run cut off leaves them.

    summary.json  what the machine is, and how every step went
    summary.md    the same for readers, with the tables of the benchmarks
    logs.txt      the output of every command, each cut in its middle if it is long
    ops-float32.json, ops-bfloat16.json, sampling.json   the benchmarks' own results

Never more files and no folders, and none above 16 MiB: such a folder travels anywhere.
"""

import json
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.cuda_machine.processes import Outcome
from benchmarks.cuda_machine.steps import RESULTS

_MOST_LOG = 1_500_000  # characters of a step's output, of which there are less than ten
_TOLD = re.compile(
    r"^(?:=+ )?(\d+ (?:passed|failed|error|skipped|deselected|no tests).*?)(?: =+)?$"
)
_SANITIZER = re.compile(r"^=+ ((?:ERROR|RACECHECK) SUMMARY: .*)$")
_TRAINED = re.compile(r"^(\w+: (?:\d+ steps and samples in .* s|failed))")


class Folder:
    """A results folder; a second run into the same one keeps the steps that it does not repeat."""

    def __init__(self, path: Path, facts: Mapping[str, Any], run: Mapping[str, Any]) -> None:
        path.mkdir(parents=True, exist_ok=True)
        self._path = path
        self._content: dict[str, Any] = {**run, "machine": dict(facts), "steps": {}}
        before = path / "summary.json"
        if before.exists():
            self._content["steps"] = json.loads(before.read_text())["steps"]
        self._write()

    def add(self, name: str, step: Mapping[str, Any], log: str, scratch: Path) -> None:
        """Take in a step: how it went, its output, and what it left in scratch."""
        self._content["steps"][name] = dict(step)
        with (self._path / "logs.txt").open("a", encoding="utf-8") as logs:
            logs.write(f"##### {name}: {step['result']}, {step['seconds']} s\n{_cut(log)}\n")
        for file in RESULTS:
            if (scratch / file).is_file():
                shutil.move(scratch / file, self._path / file)
        self._write()

    def _write(self) -> None:
        (self._path / "summary.json").write_text(json.dumps(self._content, indent=1) + "\n")
        (self._path / "summary.md").write_text("\n".join(self._lines()) + "\n")

    def _lines(self) -> list[str]:
        content, machine = self._content, self._content["machine"]
        gpu, peaks = machine["gpu"], machine["peaks"] or {}
        where = f"{gpu['name']}, {gpu['memory_gib']} GiB" if gpu else "the CPU: a dry run"
        versions = ", ".join(f"{name} {found}" for name, found in machine["versions"].items())
        lines = [
            f"{where}; driver {machine['driver'] or 'unknown'}; {machine['cores']} cores; "
            f"{machine['system']}; Python {machine['python'].split()[0]}, nvcc {machine['nvcc']}, "
            f"{versions}; commit {content['commit'] or 'unknown'}; {content['started']}.",
            "",
            ", ".join(f"{name} {value:g}" for name, value in peaks.items()) or "No peaks measured.",
        ]
        if machine["missing"]:
            lines += ["", f"Packages that are not installed: {', '.join(machine['missing'])}."]
        lines += ["", "| step | result | seconds | what it told |", "| --- | --- | ---: | --- |"]
        for name, step in content["steps"].items():
            told = "; ".join(step["told"]).replace("|", "/")
            lines.append(f"| {name} | {step['result']} | {step['seconds']} | {told} |")
        for file in RESULTS:
            if (self._path / file).is_file():
                lines += ["", f"## {file.removesuffix('.json')}", "", *_table(self._path / file)]
        return lines


def _table(file: Path) -> list[str]:
    """The table of a file of results, where what renders it can be imported."""
    try:
        results = json.loads(file.read_text())
        if file.name == "sampling.json":
            from genfast.bench.render import render

            return render(results).splitlines()
        from benchmarks.render import table

        return table(results)
    except (ImportError, OSError, ValueError, KeyError) as error:
        return [f"{file.name}: no table: {error}"]


def told(outcomes: Sequence[Outcome]) -> list[str]:
    """The lines in which tests, sanitizers and training runs sum up what they found."""
    found = []
    for outcome in outcomes:
        for line in outcome.output.splitlines():
            for pattern in (_TOLD, _SANITIZER, _TRAINED):
                if match := pattern.match(line.strip()):
                    found.append(f"{outcome.command.name}: {match.group(1)}")
    return found


def log_of(outcomes: Sequence[Outcome]) -> str:
    """The output of commands, each below a line that says how it ended."""
    share = _MOST_LOG // max(1, len(outcomes))
    return "\n".join(
        f"#### {each.command.name}: exit code {each.code}"
        f"{', stopped at the limit' if each.stopped else ''}, {each.seconds} s\n"
        f"{_cut(each.output, share)}"
        for each in outcomes
    )


def _cut(text: str, most: int = _MOST_LOG) -> str:
    """The beginning and, three times as long, the end of a long text."""
    if len(text) <= most:
        return text
    left_out = len(text) - most
    return f"{text[: most // 4]}\n[... {left_out} characters ...]\n{text[-(most - most // 4) :]}"
