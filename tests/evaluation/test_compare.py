import json

import numpy as np
import pytest

import genfast.evaluation.freshness as freshness
from genfast.data import ImageDataset, digits
from genfast.errors import InputError
from genfast.evaluation import DEMO, compare
from genfast.models import MODELS, create
from genfast.training import TrainingConfig
from tests.evaluation.page import Page
from tests.evaluation.stand_ins import Studio

SMALL = {
    "pixelcnn": {"model": {"channels": 4, "blocks": 1, "head_channels": 4}},
    "gated_pixelcnn": {"model": {"channels": 4, "layers": 1, "head_channels": 4}},
    "pixelcnn_plus_plus": {"model": {"filters": 3, "resnets": 1, "mixtures": 2}},
    "autoencoder": {"model": {"latent_dim": 3, "hidden": (16,)}},
    "vae": {"model": {"latent_dim": 3, "hidden": (16,)}},
    "gan": {"model": {"latent_dim": 4, "channels": 4}},
}

FAMILIES = [name for name, (_, model) in MODELS.items() if model.domain == "images"]


@pytest.fixture(scope="module")
def data():
    return digits("train").subset(range(120)), digits("test").subset(range(60))


@pytest.fixture
def studio():
    return Studio()


@pytest.fixture
def run(studio, data, tmp_path):
    """`compare` with stand-ins, into one folder."""

    def call(names=("gan",), **options):
        given = {"settings": SMALL, "fit": studio.fit, "load": studio.load, "progress": False}
        given["classifiers"] = ("logistic",)
        return compare(list(names), data, tmp_path / "out", **{**given, **options})

    return call


def test_trains_what_is_missing_with_its_settings(run, studio, tmp_path):
    results = run(("gan", "vae"), seed=7)
    assert [call["name"] for call in studio.fits] == ["gan", "vae"]
    assert studio.fits[0]["options"] == SMALL["gan"]["model"]
    assert studio.fits[0]["seed"] == 7
    assert list(results["models"]) == ["Implicit", "Bounded"]
    assert results["models"]["Implicit"]["training"]["seconds"] == 1.5
    assert json.loads((tmp_path / "out/results.json").read_text()) == results


def test_nothing_is_done_twice(run, studio, tmp_path):
    first = run()
    before = (tmp_path / "out/report.html").stat()
    assert run() == first
    assert len(studio.fits) == len(studio.loads) == 1
    assert (tmp_path / "out/report.html").stat().st_mtime_ns == before.st_mtime_ns


def test_force_evaluates_again_but_does_not_train(run, studio):
    run()
    run(force=True)
    assert (len(studio.fits), len(studio.loads)) == (1, 2)


def test_a_missing_report_is_written_again(run, studio, tmp_path):
    run()
    (tmp_path / "out/report.html").unlink()
    run()
    assert (tmp_path / "out/report.html").is_file()
    assert len(studio.fits) == 1


def test_a_damaged_results_file_is_written_again(run, tmp_path):
    run()
    (tmp_path / "out/results.json").write_text("{")
    assert json.loads(json.dumps(run())) == json.loads((tmp_path / "out/results.json").read_text())


def test_other_code_or_weights_or_seed_evaluate_again(run, studio, tmp_path, monkeypatch):
    run()
    checkpoint = tmp_path / "out/gan/checkpoints/step-00000008"
    checkpoint.mkdir(parents=True)
    (checkpoint / "manifest.json").write_text("other")
    run()
    assert len(studio.loads) == 2
    monkeypatch.setattr(freshness, "_code_digest", lambda: "other")
    run()
    assert (len(studio.fits), len(studio.loads)) == (1, 3)


def test_other_settings_train_anew(run, studio):
    run()
    run(settings={"gan": {"model": {"latent_dim": 5}}})
    run(settings={"gan": {"model": {"latent_dim": 5}}}, seed=1)
    assert [call["options"]["latent_dim"] for call in studio.fits] == [4, 5, 5]
    assert [call["seed"] for call in studio.fits] == [0, 0, 1]


def test_an_interrupted_run_is_resumed_in_its_folder(run, studio, tmp_path):
    studio.fail_once = True
    with pytest.raises(KeyboardInterrupt):
        run()
    (tmp_path / "out/gan/half").write_text("kept")
    run()
    assert [call["resume"] for call in studio.fits] == [True, True]
    assert (tmp_path / "out/gan/half").read_text() == "kept"


def test_an_interrupted_run_with_other_settings_starts_anew(run, studio, tmp_path):
    studio.fail_once = True
    with pytest.raises(KeyboardInterrupt):
        run()
    (tmp_path / "out/gan/half").write_text("old")
    run(seed=1)
    assert not (tmp_path / "out/gan/half").exists()


def test_never_touches_a_folder_that_it_did_not_make(run, studio, tmp_path):
    precious = tmp_path / "out/gan/precious.txt"
    precious.parent.mkdir(parents=True)
    precious.write_text("mine")
    with pytest.raises(InputError, match=r"gan' to be free or a run of compare"):
        run()
    assert precious.read_text() == "mine"
    assert not studio.fits


def test_compares_finished_runs_by_their_folders(run, studio, tmp_path):
    for name in ("one", "two"):
        folder = tmp_path / name
        folder.mkdir()
        studio.fit(
            "gan", None, run=folder, valid=None, resume=False, model_options={}, progress=False
        )
    studio.fits.clear()
    results = run((tmp_path / "one", str(tmp_path / "two"), "gan"))
    assert list(results["models"]) == ["Implicit", "Implicit two", "Implicit gan"]
    assert [call["name"] for call in studio.fits] == ["gan"]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ((), "at least one family or run, got none"),
        (("pixelrnn",), r"family \(pixelcnn, gated_pixelcnn, .*gan\) or a run, got 'pixelrnn'"),
        (("wavenet",), r"family \(pixelcnn, gated_pixelcnn, .*gan\) or a run, got 'wavenet'"),
        (("gan", "vae", "gan"), "each run once, got 'gan' twice"),
    ],
)
def test_refuses_bad_names(run, names, message):
    with pytest.raises(InputError, match=message):
        run(names)


def test_refuses_an_unfinished_run_of_somebody_else(run, tmp_path):
    folder = tmp_path / "half"
    folder.mkdir()
    (folder / "run.json").write_text("{}")
    with pytest.raises(InputError, match=r"finished run, got .*half.*--resume"):
        run((folder,))


def test_refuses_training_and_test_images_of_two_shapes(studio, tmp_path, data):
    other = ImageDataset(data[1].images[:, :, :7], levels=17)
    with pytest.raises(InputError, match=r"train=\(1, 8, 8\), 17 and test=\(1, 7, 8\), 17"):
        compare(["gan"], (data[0], other), tmp_path, fit=studio.fit, load=studio.load)


def test_says_where_it_is_only_when_asked(run, capsys):
    run(progress=True)
    assert "report.html" in capsys.readouterr().err
    run(force=True)
    assert capsys.readouterr() == ("", "")


def test_a_failed_evaluation_leaves_the_old_report(run, studio, tmp_path, monkeypatch):
    run()
    old = (tmp_path / "out/report.html").read_bytes(), (tmp_path / "out/results.json").read_bytes()
    monkeypatch.setattr(studio, "load", lambda run, device: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run(force=True, load=studio.load)
    new = (tmp_path / "out/report.html").read_bytes(), (tmp_path / "out/results.json").read_bytes()
    assert new == old


def test_real_families_from_training_to_report(tmp_path, data):
    quick = {"epochs": 2, "batch_size": 40, "log_every": 1, "sample_every": 0}
    settings = {name: {**SMALL[name], "training": quick} for name in FAMILIES}
    options = {
        "settings": settings,
        "progress": False,
        "device": "cpu",
        "classifiers": ["logistic"],
    }
    results = compare(FAMILIES, data, tmp_path, **options)
    expected = ["PixelCNN", "GatedPixelCNN", "PixelCNNPlusPlus", "Autoencoder", "VAE", "GAN"]
    assert list(results["models"]) == expected
    for model in results["models"].values():
        assert model["training"]["steps"] == 6
        assert model["training"]["settings"]["batch_size"] == 40
    page = Page((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert page.errors == []
    # Test images, 6 samples, 2 reconstructions, 3 interpolations, 6 loss curves.
    assert len(page.all("img")) == 18
    assert compare(FAMILIES, data, tmp_path, **options) == results


@pytest.mark.parametrize("name", DEMO)
def test_demo_settings_are_valid(name):
    create(name, image_shape=(1, 8, 8), levels=17, **DEMO[name]["model"])
    TrainingConfig.of(DEMO[name]["training"])
    assert set(DEMO[name]) == {"model", "training"}


def test_data_may_be_a_path(studio, data, tmp_path):
    for split, part in zip(("train", "test"), data, strict=True):
        np.savez(tmp_path / f"{split}.npz", images=part.images.numpy(), levels=part.levels)
    options = {"settings": SMALL, "fit": studio.fit, "load": studio.load, "progress": False}
    options["classifiers"] = ("logistic",)
    results = compare(["gan"], tmp_path, tmp_path / "out", **options)
    assert results["data"] == compare(["gan"], str(tmp_path), tmp_path / "out", **options)["data"]
