"""launch/compare.py, and its page in a real browser without a network."""

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, run_command
from made import make_run
from PIL import Image

from launch.compare import main
from ldct.evaluation import results
from shards.common.command import command

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.fixture(scope="module")
def compared(tiny_shards, tmp_path_factory):
    """Two evaluated runs and the page made of them: (folder of runs, page, finished command)."""
    folder = tmp_path_factory.mktemp("compared")
    make_run(folder / "runs" / "0-none", tiny_shards, scale=0.02)
    make_run(folder / "runs" / "1-both", tiny_shards, scale=1.0, attention="both")
    run_command("launch/evaluate.py", folder / "runs", "--shards", tiny_shards, "--protocol", "abd400", "hu2000")
    done = run_command("launch/compare.py", folder / "runs", "-o", folder / "out" / "page.html")
    return folder / "runs", folder / "out" / "page.html", done


def test_it_prints_the_table_and_the_page_last(compared):
    _, page, done = compared
    assert done.stdout.splitlines()[-1] == str(page)
    assert "RED-CNN + channel + spatial" in done.stdout and "Gaussian blur" in done.stdout
    assert sorted(path.name for path in page.parent.iterdir()) == ["page.csv", "page.html", "page.tex"]


def test_bad_input_is_one_line(compared, tmp_path, monkeypatch, capsys):
    runs, _, _ = compared
    for argv, message in (
        ([tmp_path / "none"], "expected a folder of runs, found nothing at"),
        ([runs, "-o", tmp_path / "page.pdf"], "expected a name that ends in .html"),
    ):
        monkeypatch.setattr("sys.argv", ["compare.py", *map(str, argv)])
        with pytest.raises(SystemExit) as stopped:
            command(main)
        error = capsys.readouterr().err
        assert (stopped.value.code, error.count("\n")) == (2, 1)
        assert message in error


def test_a_gain_that_is_not_there_is_status_1(compared):
    runs, page, _ = compared
    done = run_command(
        "launch/compare.py", runs, "-o", page, "--require-gain", "2", "--require-best-gain", 3, check=False
    )
    assert done.returncode == 1
    assert "not reached: 1-both gains -" in done.stderr and "not reached: the best run gains" in done.stderr
    assert done.stdout.splitlines()[-1] == str(page)  # the page all the same


PROBE = """
<pre id="probe"></pre><script>
// the browser's clock is virtual and runs ahead of the threads that unpack; the loop takes real time
const wait = () => new Promise(done => setTimeout(() => { for (let i = 0; i < 1e7; i++); done(); }, 20));
const state = () => document.getElementById("viewer").dataset.ready;
const ready = async expected => { while (state() !== expected) await wait(); };
const mean = canvas => {
  const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
  return data.reduce((sum, grey, i) => i % 4 ? sum : sum + grey, 0) / canvas.width / canvas.height;
};
const pixels = () => [...document.querySelectorAll("#panels canvas")].map(mean);
const names = () => [...document.querySelectorAll("#ranking-table tbody tr")].map(row => row.cells[0].dataset.sort);
const press = (set, n) => document.querySelectorAll(`#${set} button`)[n].click();
(async () => {
  const out = {};
  while (!state()) await wait();
  const input = document.getElementById("zoom");
  out.order = names();
  document.querySelectorAll("#ranking-table th")[2].click(); out.psnr = names();
  document.querySelectorAll("#ranking-table th")[0].click(); out.down = names();
  document.querySelectorAll("#ranking-table th")[0].click(); out.up = names();
  out.labels = [...document.querySelectorAll("#panels b")].map(b => b.textContent);
  input.value = 1; input.dispatchEvent(new Event("input")); press("slice-set", 0); press("window-set", 1);
  await ready("0 1 image 1"); out.image = pixels();
  press("window-set", 3); await ready("0 3 image 1"); out.lung = pixels();
  press("window-set", 1); press("mode-set", 1); await ready("0 1 difference 1"); out.difference = pixels();
  document.getElementById("probe").textContent = JSON.stringify(out);
})();
</script></body>
"""


def browse(page, tmp_path, *flags):
    """Open ``page`` in a headless Chromium that has no network; its standard output."""
    if not BROWSER:
        message = "no Chromium here: apt-get install chromium"
        if os.environ.get("LDCT_REQUIRE_BROWSER") == "1":
            pytest.fail(message)
        pytest.skip(message)
    command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--hide-scrollbars"]
    command += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
    command += ["--proxy-server=127.0.0.1:9", f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=60000"]
    done = subprocess.run([*command, *flags, f"file://{page}"], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_page_works_in_a_browser(compared, tmp_path):
    runs, page, _ = compared
    probe = tmp_path / "probe.html"
    probe.write_text(page.read_text().replace("</body>", PROBE))
    text = re.search(r'<pre id="probe">(.*?)</pre>', browse(probe, tmp_path, "--dump-dom"), re.S)[1]
    found = json.loads(text)
    labels = ["RED-CNN", "RED-CNN + channel + spatial", "low dose", "Gaussian blur", "non-local means"]
    assert sorted(found["order"]) == sorted(labels)
    assert found["psnr"] == found["order"][::-1]  # it was sorted by PSNR already, so a click turns it over
    assert found["up"] == sorted(labels, key=str.lower) and found["down"] == found["up"][::-1]
    stored = results.load(runs / "1-both", "test")
    key = next(iter(stored.full))

    def grey(hu, centre, width):
        return np.clip(np.rint(255 * (hu - (centre - width / 2)) / width), 0, 255).mean()

    full = stored.full[key].astype(float)
    both = stored.get("1-both").pictures[key].astype(float)
    number = found["labels"].index("RED-CNN + channel + spatial")
    assert found["labels"][0] == "full dose"
    rows = shown_rows(page, full.shape)
    assert found["image"][0] == pytest.approx(grey(full[rows], 40, 400), abs=1.5)
    assert found["lung"][0] == pytest.approx(grey(full[rows], -600, 1500), abs=1.5)
    assert found["image"][number] == pytest.approx(grey(both[rows], 40, 400), abs=1.5)
    assert found["difference"][number] == pytest.approx(grey((both - full)[rows], 0, 200), abs=1.5)
    assert abs(found["difference"][number] - found["image"][number]) > 5  # the two can be told apart


def shown_rows(page, shape):
    """Rows of the first slice that are seen at zoom 1."""
    middle, aspect = (float(re.search(rf'"{name}": ([\d.]+)', page.read_text())[1]) for name in ("y", "aspect"))
    height = min(shape[1] * aspect, shape[0])
    top = min(max(middle * shape[0] - height / 2, 0), shape[0] - height)
    return slice(round(top), round(top + height))


def test_it_looks_like_something(compared, tmp_path):
    browse(compared[1], tmp_path, "--window-size=1366,2000", f"--screenshot={tmp_path / 'report.png'}")
    image = np.asarray(Image.open(tmp_path / "report.png").convert("L"))
    assert image.shape == (2000, 1366)
    assert (image < 30).mean() > 0.05  # the viewer's dark ground
    assert (image > 240).mean() > 0.3  # the page's white


ALONE = """
<script>
document.body.replaceChildren(document.getElementById("viewer"));
document.getElementById("viewer").style.borderRadius = 0;
</script></body>
"""


def test_the_viewer_is_the_picture_in_the_readme(compared, tmp_path):
    """LDCT_DEMO names the report of `make demo`: docs/images/demo.png is then made of it."""
    page, picture = compared[1], tmp_path / "viewer.png"
    if demo := os.environ.get("LDCT_DEMO"):
        page, picture = Path(demo), ROOT / "docs" / "images" / "demo.png"
        slices = re.findall(r'"key": "(\w+)"', page.read_text())
        assert slices and all(key.startswith("sample_") for key in slices)  # of the sample that may be shown
    (tmp_path / "alone.html").write_text(page.read_text().replace("</body>", ALONE))
    window = ("--window-size=1366,1500", "--force-device-scale-factor=1.25")
    browse(tmp_path / "alone.html", tmp_path, *window, f"--screenshot={tmp_path / 'window.png'}")
    image = Image.open(tmp_path / "window.png").convert("L")
    edge = np.asarray(image)[:, 0] < 30  # the viewer's ground, and below it the page's white
    height = int(edge.argmin())
    image.crop((0, 0, image.width, height)).save(picture, optimize=True)
    assert image.width == round(1366 * 1.25) and edge[:height].all() and not edge[height:].any()
    shown = np.asarray(Image.open(picture))
    assert (shown[height // 2 :] > 100).mean() > 0.1  # slices, down to the last row of panels
