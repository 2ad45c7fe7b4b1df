"""Progress bars and messages."""

import importlib
import logging
import sys
import types
import warnings

import pytest

from genfast.training.progress import Progress, say


def test_bar_goes_on_where_a_run_was_resumed(capsys: pytest.CaptureFixture[str]) -> None:
    bar = Progress("vae", total=10, done=8, epochs=5, show=True)
    for _ in range(2):
        bar.step(5, {"loss": 12.3456, "kl": 1.0}, 1234.5)
    bar.close()
    last = capsys.readouterr().err.replace("\r", "\n").strip().splitlines()[-1]
    assert last.startswith("vae 5/5: 100%")
    assert "10/10" in last
    assert "loss=12.35, images/s=1,23" in last
    assert "kl=" not in last


def test_unknown_total_counts_steps(capsys: pytest.CaptureFixture[str]) -> None:
    bar = Progress("vae", total=None, done=0, epochs=5, show=True)
    bar.step(1, {"loss": 1.0}, 1.0)
    bar.close()
    assert "1step" in capsys.readouterr().err


def test_messages_are_logged_and_shown_on_demand(
    capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "genfast.training"):
        say("one", show=True)
        say("two", show=False)
    assert capsys.readouterr() == ("", "one\n")
    assert caplog.messages == ["one", "two"]


def test_notebook_without_widgets_gets_a_text_bar_and_no_warning(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shell = types.SimpleNamespace(get_ipython=lambda: None)
    monkeypatch.setitem(sys.modules, "ipykernel.zmqshell", types.ModuleType("zmqshell"))
    monkeypatch.setitem(sys.modules, "IPython", shell)
    monkeypatch.setitem(sys.modules, "ipywidgets", None)
    for name in ("tqdm.auto", "tqdm.autonotebook", "tqdm.notebook", "genfast._progress"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    with pytest.warns(Warning, match="IProgress not found"):
        importlib.import_module("tqdm.auto")  # else this test would test nothing
    for name in ("tqdm.auto", "tqdm.autonotebook", "tqdm.notebook"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        progress = importlib.import_module("genfast._progress")
    assert list(progress.tqdm(range(2), disable=True)) == [0, 1]
