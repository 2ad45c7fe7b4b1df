"""Training on crops of sounds, and with labels: exact resume, refusals, samples as WAV files."""

import shutil

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from genfast.data import ImageDataset, SoundDataset, wav
from genfast.errors import CheckpointError, InputError
from genfast.models import create
from genfast.training import fit, load, read_log, read_run
from genfast.training.checkpoint import list_checkpoints
from tests.training.fakes import comparable, fingerprint

SMALL = {
    "length": 24,
    "levels": 16,
    "residual_channels": 4,
    "gate_channels": 4,
    "skip_channels": 4,
    "head_channels": 4,
    "layers": 3,
}
OPTIONS = {"batch_size": 5, "checkpoint_every": 1, "keep": 100, "log_every": 2, "progress": False}
OPTIONS |= {"sample_every": 4, "sample_count": 2, "epochs": 3, "ema_decay": 0.9}


def sounds(count=9, rate=8000, labels=False):
    noise = np.random.default_rng(count)
    items = [
        (noise.normal(0, 5000, length).clip(-32768, 32767)).astype(np.int16)
        for length in noise.integers(10, 80, count)
    ]
    return SoundDataset(items, [n % 3 for n in range(count)] if labels else None, rate, "noise")


def back_to(run, step, target):
    shutil.copytree(run, target)
    for path in list_checkpoints(target):
        if int(path.name[5:]) > step:
            shutil.rmtree(path)
    (target / "summary.json").unlink()
    return target


@pytest.mark.parametrize("labels", [False, True])
def test_a_wavenet_resumes_exactly_from_every_step(tmp_path, labels):
    data, valid = sounds(labels=labels), sounds(4, labels=labels)
    options = {**SMALL, "classes": 3 if labels else 0}

    def run_fit(run):
        return fit(
            "wavenet", data, run=run, valid=valid, resume=True, model_options=options, **OPTIONS
        )

    whole = run_fit(tmp_path / "whole")
    assert (whole.config.sample_rate, whole.config.length) == (8000, 24)
    steps = int(list_checkpoints(tmp_path / "whole")[0].name[5:])
    assert steps == 3 * (int((-(-data.offsets.diff() // 24)).sum()) // 5)
    for step in range(1, steps, 4):
        resumed = back_to(tmp_path / "whole", step, tmp_path / f"from{step}")
        torch.manual_seed(step)
        run_fit(resumed)
        assert fingerprint(resumed) == fingerprint(tmp_path / "whole"), step
        ours, theirs = (comparable(read_log(run)) for run in (resumed, tmp_path / "whole"))
        for rows in (ours, theirs):
            for row in rows:
                row.pop("sounds_per_second", None)
        assert ours == theirs
    assert any("valid/loss" in row for row in read_log(tmp_path / "whole"))
    assert any("sounds_per_second" in row for row in read_log(tmp_path / "whole"))
    loaded = load(tmp_path / "whole")
    x = torch.randint(0, 16, (2, 1, 24), dtype=torch.uint8)
    given = (torch.tensor([0, 2]),) if labels else ()
    assert torch.equal(loaded(x, *given), whole(x, *given))


def test_samples_are_wav_files(tmp_path):
    fit("wavenet", sounds(), run=tmp_path, model_options=SMALL, **{**OPTIONS, "epochs": 2})
    folders = sorted((tmp_path / "samples").iterdir())
    assert folders
    for folder in folders:
        drawn = wav(folder, "all")
        assert (len(drawn), drawn.sample_rate) == (2, 8000)
        assert drawn.offsets.diff().tolist() == [24, 24]
    described = read_run(tmp_path)["data"]
    assert (described["name"], described["count"]) == ("noise", 9)


def test_samples_are_few_and_at_most_a_second_unless_told_otherwise(tmp_path):
    data = sounds(6, rate=30)
    options = {**OPTIONS, "epochs": 1, "sample_count": 0}
    fit("wavenet", data, run=tmp_path / "a", model_options={**SMALL, "length": 50}, **options)
    (folder,) = (tmp_path / "a" / "samples").iterdir()
    assert wav(folder, "all").offsets.diff().tolist() == [30] * 8
    options["sample_count"] = 3
    fit("wavenet", data, run=tmp_path / "b", model_options={**SMALL, "length": 20}, **options)
    (folder,) = (tmp_path / "b" / "samples").iterdir()
    assert wav(folder, "all").offsets.diff().tolist() == [20] * 3


def test_a_length_that_no_sound_has_is_warned_of():
    data = sounds()
    longest = int(data.offsets.diff().max())
    settings = {"progress": False, "epochs": 1, "batch_size": 3}
    expected = f"length <= {longest}, .* got length={longest + 1}"
    with pytest.warns(UserWarning, match=expected):
        fit("wavenet", data, model_options={**SMALL, "length": longest + 1}, **settings)
    fit("wavenet", data, model_options={**SMALL, "length": longest}, **settings)
    # Of what is only measured on, short sounds are no mistake.
    fit("wavenet", data, valid=sounds(1), model_options={**SMALL, "length": longest}, **settings)


def test_the_loss_falls_on_a_tone():
    time = np.arange(4000) / 8000
    data = SoundDataset([(np.sin(2 * np.pi * 440 * time) * 0.8)], None, 8000)
    options = {**SMALL, "length": 200, "residual_channels": 8, "skip_channels": 16}
    losses = []
    for epochs in (1, 30):
        model = fit(
            "wavenet",
            data,
            epochs=epochs,
            batch_size=10,
            learning_rate=1e-2,
            model_options=options,
            progress=False,
        )
        x = torch.cat([x for x, _ in _crops(data, model)])
        with torch.no_grad():
            losses.append(model.bits_per_dim(x).mean().item())
    assert losses[1] < 0.6 * losses[0]


def _crops(data, model):
    from genfast.data import crops

    config = model.config
    return crops(data, config.length, 8, levels=config.levels, seed=0, epoch=0)


@pytest.mark.parametrize(
    ("model", "data", "fields", "message"),
    [
        ("wavenet", torch.zeros(4, 1, 24), {}, "a SoundDataset or a path of WAV files, got Tensor"),
        ("wavenet", SoundDataset([]), {}, "at least one sound, got none"),
        ("wavenet", sounds(), {"model_options": {"length": 0}}, "length"),
        ("wavenet", sounds(), {"model_options": {"sample_rate": 44100}}, "sample_rate=44100, got"),
        ("wavenet", sounds(), {"valid": sounds(4, 16000)}, "valid with sample_rate=8000, got"),
        (
            "wavenet",
            sounds(),
            {"model_options": {"classes": 3}},
            "labels, as the model has classes",
        ),
        ("pixelcnn", sounds(), {}, "items to be images|integers or floats|images of one shape"),
    ],
)
def test_refuses_what_does_not_fit(model, data, fields, message):
    options = {**SMALL, **fields.get("model_options", {})} if model == "wavenet" else {}
    with pytest.raises(InputError, match=message):
        fit(model, data, progress=False, epochs=1, **{**fields, "model_options": options})


def test_refuses_to_go_on_with_other_sounds(tmp_path):
    options = {**OPTIONS, "model_options": SMALL}
    fit("wavenet", sounds(), run=tmp_path, **options)
    for other in (sounds(8), sounds(9, 16000)):
        with pytest.raises(CheckpointError, match="same data as before"):
            fit("wavenet", other, run=tmp_path, resume=True, **options)


def test_an_instance_trains_on_sounds_of_its_rate():
    model = create("wavenet", sample_rate=8000, **SMALL)
    fit(model, sounds(), epochs=1, progress=False)
    with pytest.raises(InputError, match="sample_rate=8000, got sample_rate=16000"):
        fit(model, sounds(rate=16000), epochs=1, progress=False)


def labelled(count=24):
    labels = torch.arange(count) % 2
    images = labels[:, None, None, None].expand(count, 1, 4, 4) * 3
    return ImageDataset(images.contiguous(), labels, levels=4, name="two")


@pytest.mark.parametrize("name", ["gated_pixelcnn", "pixelcnn_plus_plus"])
@pytest.mark.parametrize("as_loader", [False, True])
def test_labels_reach_the_model(name, as_loader):
    small = {
        "gated_pixelcnn": {"channels": 4, "layers": 1, "head_channels": 8},
        "pixelcnn_plus_plus": {"filters": 4, "resnets": 1, "mixtures": 1, "dropout": 0.0},
    }[name]
    data = labelled()
    source = DataLoader(data, batch_size=8, shuffle=True) if as_loader else data
    options = {"epochs": 20, "batch_size": 8, "learning_rate": 2e-2, "progress": False}
    model = fit(name, source, model_options={"classes": 2, **small}, **options)
    with torch.no_grad():
        right = model.log_prob(data.images, data.labels).mean()
        wrong = model.log_prob(data.images, 1 - data.labels).mean()
    assert right > wrong + 1
    drawn = model.sample(20, seed=0)  # the classes in turn
    means = drawn.float().flatten(1).mean(dim=1)
    assert means[1::2].mean() > means[::2].mean() + 1


def test_classes_need_labels_in_range():
    options = {"model_options": {"classes": 2}, "epochs": 1, "progress": False}
    unlabelled = ImageDataset(labelled().images, levels=4)
    with pytest.raises(InputError, match="expected labels, as the model has classes, got none"):
        fit("gated_pixelcnn", unlabelled, **options)
    many = ImageDataset(labelled().images, torch.arange(24), levels=4)
    with pytest.raises(InputError, match=r"labels in 0 \.\. 1"):
        fit("gated_pixelcnn", many, **options)


def test_labels_are_left_alone_by_models_without_classes():
    fit("gated_pixelcnn", labelled(), epochs=1, progress=False)
