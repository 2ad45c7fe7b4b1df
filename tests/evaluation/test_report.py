import base64
import copy
import io
import re

import pytest
from PIL import Image

from genfast.data import digits
from genfast.evaluation.compare import compare
from genfast.evaluation.report import Art, Picture, fixed, render, seconds, small, words
from tests.evaluation.families import FAMILIES
from tests.evaluation.page import Page
from tests.evaluation.stand_ins import Studio


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A report of all four families, as results and page."""
    out = tmp_path_factory.mktemp("made")
    studio = Studio()
    results = compare(
        list(FAMILIES),
        (digits("train").subset(range(120)), digits("test").subset(range(60))),
        out,
        progress=False,
        command="genfast compare --data digits",
        fit=studio.fit,
        load=studio.load,
    )
    return results, (out / "report.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def page(made):
    return Page(made[1])


def test_is_well_formed(page):
    assert page.errors == []
    assert [len(page.all(tag)) for tag in ("html", "head", "body", "title", "h1", "main")] == [
        1
    ] * 6
    assert page.all("html")[0]["lang"] == "en"


def test_needs_nothing_from_elsewhere(page):
    assert page.addresses()
    assert all(address.startswith("data:image/png;base64,") for address in page.addresses())
    assert not page.all("script")
    assert not page.all("link")
    assert not page.all("iframe")
    assert "url(" not in page.style
    assert "@import" not in page.style
    assert not [k for _, attributes in page.elements for k in attributes if k.startswith("on")]


def test_every_picture_decodes_and_is_described(page):
    assert len(page.all("img")) >= 10
    for image in page.all("img"):
        assert image["alt"]
        assert image["src"].startswith("data:image/png;base64,")
    for address in page.addresses():
        content = base64.b64decode(address.partition(",")[2], validate=True)
        Image.open(io.BytesIO(content)).load()


def test_suits_phones_and_dark_pages(page):
    viewport = [each for each in page.all("meta") if each.get("name") == "viewport"]
    assert viewport[0]["content"] == "width=device-width, initial-scale=1"
    assert "prefers-color-scheme: dark" in page.style
    assert len(page.all("source")) == 4
    assert all("dark" in source["media"] for source in page.all("source"))


def test_table_cells_say_on_phones_what_they_are(page):
    assert page.all("td")
    assert all(cell.get("data-label") for cell in page.all("td"))


def test_shows_the_figures_of_the_results(made, page):
    results, _ = made
    assert results["title"] in page.text
    for name, model in results["models"].items():
        judged = model["two_sample"]["forest"]
        assert name in page.text
        assert f"{100 * judged['accuracy']:.1f}%" in page.text
        assert f"{model['parameters']:,}" in page.text
        if model["likelihood"]:
            assert f"{model['likelihood']['bits_per_dim']['value']:.3f}" in page.text
        if model["reconstruction"]:
            assert f"{model['reconstruction']['rmse_levels']:.2f}" in page.text
    assert f"{results['control']['bits_per_dim_histogram']:.3f}" in page.text
    assert results["machine"]["processor"] in page.text
    assert "genfast compare --data digits" in page.text


@pytest.mark.parametrize(
    "said",
    [
        "At 50% it can only guess",
        "upper bound, from the ELBO",
        "dequantised",
        "Gaussian fitted to the latents",
        "Coder and Implicit assign no probability",
        "in grey levels out of 16",
        "cannot tell from crisp",
        "only repeats its training images",
        "95% intervals",
    ],
)
def test_explains_its_measures(page, said):
    assert said in " ".join(page.text.split())


def test_bars_and_marks_stay_inside_their_tracks(made):
    for edge in re.findall(r"(?:left|width):(-?[\d.]+)%", made[1]):
        assert 0 <= float(edge) <= 100


def art_of(results):
    grid = Picture("data:image/png;base64,", "a grid")
    names = list(results["models"])
    return Art(real=grid, samples=dict.fromkeys(names, grid))


def test_escapes_what_it_is_told(made):
    results = copy.deepcopy(made[0])
    results["data"]["name"] = '<script>alert("x")</script>'
    results["command"] = "a & b < c"
    html = render(results, art_of(results))
    assert "<script" not in html
    assert "a &amp; b &lt; c" in html
    assert Page(html).errors == []


def test_one_model_without_pictures_or_records_is_enough(made):
    results = copy.deepcopy(made[0])
    model = results["models"]["Implicit"]
    model["training"] = {"settings": {}, "steps": None, "seconds": None, "losses": {}}
    model["sharpness"] = {"value": None, "data": None, "ratio": None}
    model["sampling"]["forward_passes"] = model["properties"]["forward_passes"] = None
    results["models"] = {"Implicit": model}
    results["control"]["sharpness"] = model["sharpness"]
    results["machine"]["accelerator"] = "a GPU"
    results["data"]["shape"] = [3, 8, 8]
    page = Page(render(results, art_of(results)))
    assert page.errors == []
    assert "not counted" in page.text
    assert "in colour" in page.text
    assert "Reconstructions" not in page.text


def test_many_models_have_colours_again(made):
    results = copy.deepcopy(made[0])
    model = results["models"]["Coder"]
    results["models"] = {f"Coder {index}": model for index in range(8)}
    page = Page(render(results, art_of(results)))
    classes = {each["class"] for each in page.all("span") if "tag" in (each.get("class") or "")}
    assert classes == {f"tag c{index}" for index in range(6)} | {"tag real"}


@pytest.mark.parametrize(
    ("value", "text"),
    [(3.1e-5, "31 µs"), (4.12e-6, "4.1 µs"), (0.0041, "4.1 ms"), (0.35, "350 ms"), (1.5, "1.5 s"),
     (45.4, "45 s"), (99.6, "100 s"), (125.0, "2 min 5 s"), (0.0, "0 µs")],
)  # fmt: skip
def test_durations_are_written_in_a_fitting_unit(value, text):
    assert seconds(value) == text


def test_numbers_and_names_as_text():
    assert fixed(-1.005, 1) == "\N{MINUS SIGN}1.0"
    assert (small(0.0004), small(0.0216)) == ("< 0.001", "0.022")
    assert (words(["a"]), words(["a", "b"]), words(["a", "b", "c"])) == (
        "a",
        "a and b",
        "a, b and c",
    )
