"""The README's Python runs as it stands, only with fewer epochs."""

import re
from pathlib import Path

import pytest
import torch

README = Path(__file__).resolve().parents[1] / "README.md"


def python_blocks() -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", README.read_text(), re.DOTALL | re.MULTILINE)


@pytest.mark.slow
def test_readme_runs() -> None:
    blocks = python_blocks()
    assert len(blocks) == 4
    names: dict[str, object] = {}
    for block in blocks:
        exec(re.sub(r"epochs=\d+", "epochs=1", block), names)
        images = names["images"]
        assert images.shape == (16, 1, 8, 8)
        assert images.dtype == torch.uint8
        assert int(images.max()) <= 16
    assert names["bits"].shape == names["elbo"].shape == (297,)
    assert names["between"].shape[-3:] == (1, 8, 8)
    assert names["again"].shape == (297, 1, 8, 8)
    assert names["features"].shape == (4, 32, 28, 28)
    assert names["z"].shape == (128, 20)
    assert names["kl"].shape == (128,)
    assert names["loss"].dim() == 0


def test_readme_names_files_that_exist() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", README.read_text()):
        assert (README.parent / target).exists(), target
