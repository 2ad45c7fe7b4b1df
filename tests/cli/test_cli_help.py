import re
from dataclasses import fields

import pytest
import typer

from genfast.cli._app import app
from genfast.cli._options import MODEL_NAMES
from genfast.data._files import MAX_BYTES
from genfast.models import MODELS
from genfast.training import TrainingConfig

COMMAND = typer.main.get_command(app)
COMMANDS = ["train", "sample", "evaluate", "compare", "bench", "info"]
PARAMETERS = [
    pytest.param(command, parameter, id=f"{command}-{parameter.name}")
    for command in COMMANDS
    for parameter in COMMAND.commands[command].params
]


def default_in(help_text):
    found = re.search(r"\(default:? ([^;)]*)", help_text)
    return found and found.group(1)


def as_text(value):
    if isinstance(value, bool):
        return "yes" if value else "no"
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def test_these_are_the_commands():
    assert sorted(COMMAND.commands) == sorted(COMMANDS)


@pytest.mark.parametrize(("command", "parameter"), PARAMETERS)
def test_every_option_is_explained_in_a_sentence_with_its_default(command, parameter):
    assert parameter.help
    assert parameter.help.endswith(".")
    stops = parameter.name in ("list_settings", "as_json")
    assert default_in(parameter.help) or parameter.required or stops
    if parameter.default not in (None, False, True):
        assert default_in(parameter.help) == as_text(parameter.default)


@pytest.mark.parametrize("field", fields(TrainingConfig), ids=lambda field: field.name)
def test_every_field_of_training_is_an_option_with_the_true_default(field):
    parameters = {parameter.name: parameter for parameter in COMMAND.commands["train"].params}
    parameter = parameters[field.name]
    assert parameter.default is None
    assert default_in(parameter.help) == as_text(field.default)


def test_the_limit_on_memory_is_the_true_one():
    parameters = {parameter.name: parameter for parameter in COMMAND.commands["train"].params}
    assert f"default {MAX_BYTES}," in parameters["max_bytes"].help


def test_the_models_in_the_help_are_the_models():
    assert tuple(MODELS) == MODEL_NAMES


@pytest.mark.parametrize("words", [(), ("--help",), ("-h",), *((c, "--help") for c in COMMANDS)])
def test_help_is_plain_text_of_at_most_80_columns(genfast, words):
    result = genfast(*words)
    assert (result.code, result.err) == (0, "")
    assert result.out.startswith("Usage: genfast")
    assert max(map(len, result.out.splitlines())) <= 80
    assert result.out.isascii()


def test_help_of_train_is_in_groups(genfast):
    headings = re.findall(r"^(\w+):$", genfast("train", "--help").out, flags=re.MULTILINE)
    assert headings == ["Arguments", "Data", "Model", "Optimisation", "Run", "Options"]


EXAMPLES = re.findall(r"^ *genfast (.+)$", COMMAND.epilog.partition("\n\n")[0], flags=re.MULTILINE)


def test_the_first_help_shows_an_example_of_each_command(genfast):
    assert {example.split()[0] for example in EXAMPLES} == set(COMMANDS)
    shown = genfast("--help").out
    assert all(f"genfast {example}\n" in shown for example in EXAMPLES)


@pytest.mark.parametrize("example", EXAMPLES)
def test_examples_are_good_usage(example):
    command, *words = example.split()
    COMMAND.commands[command].make_context(command, words)


def test_list_settings_explains_every_setting_of_every_model(genfast):
    result = genfast("train", "--list-settings")
    assert (result.code, result.err) == (0, "")
    for name, (config_class, model_class) in MODELS.items():
        section = result.out.partition(f"{name}: ")[2].partition("\n\n")[0]
        listed = dict(re.findall(r"^  (\w+)=\S+  (\S.*)$", section, flags=re.MULTILINE))
        of_data = {"image_shape", "levels"} if model_class.domain == "images" else {"sample_rate"}
        expected = {field.name for field in fields(config_class)} - of_data
        assert set(listed) == expected


def test_version(genfast):
    result = genfast("--version")
    assert result.code == 0
    assert re.fullmatch(r"genfast \d+\.\d+\.\d+\S*\n", result.out)
