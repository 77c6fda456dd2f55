"""docs/notebooks/first_look.ipynb runs as it stands, on other shards."""

import base64
import io

import nbformat
import pytest
from conftest import ROOT, run_command
from nbclient import NotebookClient
from phantom import make_dataset
from PIL import Image

PATH = ROOT / "docs" / "notebooks" / "first_look.ipynb"
SHARDS = "../../data/shards"


def pictures(notebook):
    outputs = [output.get("data", {}) for cell in notebook.cells for output in cell.get("outputs", [])]
    return [base64.b64decode(data["image/jpeg"]) for data in outputs if "image/jpeg" in data]


def printed(notebook):
    return "".join(output.get("text", "") for cell in notebook.cells for output in cell.get("outputs", []))


@pytest.fixture
def shards(tmp_path):
    """Slices large enough for blocks of flat tissue."""
    make_dataset(tmp_path / "dicom", patients=("L067", "L096", "L143"), slices=1, size=320)
    run_command("shards/build.py", tmp_path / "dicom", tmp_path / "shards", "--val", "L096", "--test", "L143")
    return tmp_path / "shards"


def test_it_runs_on_any_shards(shards, tmp_path, monkeypatch):
    notebook = nbformat.read(PATH, 4)
    kept = pictures(notebook)
    for cell in notebook.cells:
        cell.source = cell.source.replace(f'"{SHARDS}"', repr(str(shards)))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    NotebookClient(
        notebook, timeout=120, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    ).execute()
    assert "test   patients: 1, slices: 1\n" in printed(notebook)
    assert "L143_0000: 320 x 320 pixels of 0.700 mm" in printed(notebook)
    assert "abd400/psnr" in printed(notebook)
    sizes = [Image.open(io.BytesIO(picture)).size for picture in pictures(notebook)]
    assert len(sizes) == len(kept) == 4
    assert all(side > 100 for size in sizes for side in size)


def test_what_is_kept_is_small_and_of_the_open_sample():
    notebook = nbformat.read(PATH, 4)
    assert PATH.stat().st_size < 200_000
    assert f'SHARDS = Path("{SHARDS}")' in notebook.cells[1].source
    assert "TotalSegmentator" in notebook.cells[0].source
    assert "sample_00" in printed(notebook)
    assert [cell.execution_count for cell in notebook.cells if cell.cell_type == "code"] == list(range(1, 10))
