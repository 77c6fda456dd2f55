"""launch/compare.py, and its page in a real browser without a network."""

import html
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

from ldct.evaluation import results

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


def test_bad_input_is_one_line(compared, tmp_path, call):
    runs, _, _ = compared
    for argv, message in (
        ([tmp_path / "none"], "expected a folder of runs, found nothing at"),
        ([runs, "-o", tmp_path / "page.pdf"], "expected a name that ends in .html"),
    ):
        status, _, error = call("launch/compare.py", *argv)
        assert (status, error.count("\n")) == (2, 1)
        assert message in error


def test_a_gain_that_is_not_there_is_status_1(compared, call):
    runs, page, _ = compared
    argv = [runs, "-o", page, "--require-gain", "2", "--require-best-gain", 3]
    status, said, errors = call("launch/compare.py", *argv)
    assert status == 1
    assert "not reached: 1-both gains -" in errors and "not reached: the best run gains" in errors
    assert said.splitlines()[-1] == str(page)  # the page all the same


PROBE = """
<pre id="probe"></pre><script>
// the browser's clock is virtual and runs ahead of the threads that unpack; the loop takes real time
const wait = () => new Promise(done => setTimeout(() => { for (let i = 0; i < 1e7; i++); done(); }, 20));
const view = document.getElementById("viewer"), at = id => document.getElementById(id);
const state = () => view.dataset.ready;
const ready = async expected => { for (let i = 0; i < 200 && state() !== expected; i++) await wait(); return state(); };
const mean = canvas => {
  const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
  return data.reduce((sum, grey, i) => i % 4 ? sum : sum + grey, 0) / canvas.width / canvas.height;
};
const canvases = () => [...document.querySelectorAll("#panels canvas")];
const pixels = () => canvases().map(mean);
const names = () => [...document.querySelectorAll("#ranking-table tbody tr")].map(row => row.cells[0].dataset.sort);
const press = (set, n) => document.querySelectorAll(`#${set} button`)[n].click();
const key = name => view.dispatchEvent(new KeyboardEvent("keydown", { key: name, bubbles: true, cancelable: true }));
const drag = (movementX, movementY) =>
  canvases()[0].dispatchEvent(new PointerEvent("pointermove", { buttons: 1, movementX, movementY }));
const wheel = by => canvases()[0].dispatchEvent(new WheelEvent("wheel", { deltaY: by, cancelable: true }));
const out = { states: [] };
const expect = async expected => { out.states.push([await ready(expected), expected]); };
const steps = async () => {
  while (!state()) await wait();
  STEPS
};
steps().catch(error => { out.error = String(error.stack); }).finally(() => {
  at("probe").textContent = JSON.stringify(out);
});
</script></body>
"""


def browse(page, tmp_path, *flags):
    """Open ``page`` in a headless Chromium that has no network; its standard output."""
    if not BROWSER:
        pytest.skip("no Chromium here: apt-get install chromium")
    command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--hide-scrollbars"]
    command += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
    command += ["--proxy-server=127.0.0.1:9", f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=60000"]
    done = subprocess.run([*command, *flags, f"file://{page}"], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def drive(page, tmp_path, steps):
    """What ``steps`` of JavaScript put into ``out`` on ``page``; all states that they expect were reached."""
    probe = tmp_path / "probe.html"
    probe.write_text(page.read_text().replace("</body>", PROBE.replace("STEPS", steps)))
    text = re.search(r'<pre id="probe">(.*?)</pre>', browse(probe, tmp_path, "--dump-dom"), re.S)[1]
    out = json.loads(html.unescape(text))
    assert "error" not in out, out["error"]
    assert all(found == expected for found, expected in out["states"]), out["states"]
    return out


START = 'at("slice").value = 0; at("slice").dispatchEvent(new Event("input"));'
FIRST = START + 'at("zoom").value = 1; at("zoom").dispatchEvent(new Event("input")); press("window-set", 1);'
FIRST += 'await expect("0 0 40 400 image 1.00 all 0 false");'
LABELS = ["RED-CNN", "RED-CNN + channel + spatial", "low dose", "Gaussian blur", "non-local means"]


def test_tables_sort_at_a_click(compared, tmp_path):
    out = drive(
        compared[1],
        tmp_path,
        """out.order = names(); const heads = document.querySelectorAll("#ranking-table th");
        heads[2].click(); out.psnr = names(); heads[0].click(); out.down = names();
        heads[0].dispatchEvent(new KeyboardEvent("keydown", { key: "Enter" })); out.up = names();""",
    )
    assert sorted(out["order"]) == sorted(LABELS)
    assert out["psnr"] == out["order"][::-1]  # it was sorted by PSNR already, so a click turns it over
    assert out["up"] == sorted(LABELS, key=str.lower) and out["down"] == out["up"][::-1]


def test_pixels_are_those_of_the_evaluation(compared, tmp_path):
    runs, page, _ = compared
    out = drive(
        page,
        tmp_path,
        FIRST
        + """out.image = pixels(); out.labels = [...document.querySelectorAll("#panels b")].map(b => b.textContent);
        press("window-set", 3); await expect("0 0 -600 1500 image 1.00 all 0 false"); out.lung = pixels();
        press("window-set", 1); press("mode-set", 1);
        await expect("0 0 40 400 difference 1.00 all 0 false"); out.difference = pixels();
        press("mode-set", 2); await expect("0 0 40 400 removed 1.00 all 0 false"); out.removed = pixels();""",
    )
    stored = results.load(runs / "1-both", "test")
    key = min(stored.full)
    full = stored.full[key].astype(float)
    both, low = (stored.get(name).pictures[key].astype(float) for name in ("1-both", "low dose"))
    rows, number = shown_rows(page, full.shape), out["labels"].index("RED-CNN + channel + spatial")

    def grey(hu, centre, width):
        return np.clip(np.rint(255 * (hu[rows] - (centre - width / 2)) / width), 0, 255).mean()

    assert out["labels"][:2] == ["full dose", "low dose"]
    assert out["image"][0] == pytest.approx(grey(full, 40, 400), abs=1.5)
    assert out["lung"][0] == pytest.approx(grey(full, -600, 1500), abs=1.5)
    assert out["image"][number] == pytest.approx(grey(both, 40, 400), abs=1.5)
    assert out["difference"][number] == pytest.approx(grey(both - full, 0, 200), abs=1.5)
    assert out["removed"][number] == pytest.approx(grey(low - both, 0, 200), abs=1.5)
    assert out["removed"][1] == pytest.approx(127.5, abs=1)  # nothing was removed from the low dose
    assert abs(out["difference"][number] - out["image"][number]) > 5  # the two can be told apart


def test_the_keyboard_alone_drives_the_viewer(compared, tmp_path):
    out = drive(
        compared[1],
        tmp_path,
        FIRST
        + """const end = at("slice").max;
        key("ArrowDown"); await expect("0 1 40 400 image 1.00 all 0 false");
        key("End"); await expect(`0 ${end} 40 400 image 1.00 all 0 false`);
        key("ArrowRight"); key("4"); await expect(`0 ${end} -600 1500 image 1.00 all 0 false`);
        key("]"); await expect(`0 ${end} -600 1650 image 1.00 all 0 false`);
        key("m"); key("m"); await expect(`0 ${end} -600 1650 removed 1.00 all 0 false`);
        key("m"); key("b"); await expect(`0 ${end} -600 1650 image 1.00 all 0 true`);
        out.caption = document.querySelectorAll("#panels span")[1].textContent;
        key("b"); key("f"); await expect(`0 ${end} -600 1650 image 1.00 two 0 false`);
        out.count = canvases().length; out.first = document.querySelector("#panels b").textContent;
        key(" "); await expect(`0 ${end} -600 1650 image 1.00 two 1 false`);
        out.second = document.querySelector("#panels b").textContent;
        key("Enter"); await expect(`0 ${end} -600 1650 image 1.00 two 0 false`);  // by itself
        key("Enter"); key("f"); key("+"); await expect(`0 ${end} -600 1650 image 1.25 all 0 false`);
        out.labels = canvases().map(c => c.getAttribute("aria-label"));
        out.said = at("shown").textContent; out.reachable = view.tabIndex;""",
    )
    assert (out["count"], out["first"].split()[0], out["second"], out["reachable"]) == (1, "RED-CNN", "full dose", 0)
    assert re.fullmatch(r"RMSE in the body \d+\.\d\d HU", out["caption"])
    assert len(out["labels"]) == 6 and all("window C-600 W1650" in label for label in out["labels"])
    assert "window C-600 W1650" in out["said"]


def test_the_pointer_and_numbers_drive_the_viewer(compared, tmp_path):
    out = drive(
        compared[1],
        tmp_path,
        FIRST
        + """drag(20, -10); await expect("0 0 30 420 image 1.00 all 0 false");
        wheel(1); await expect("0 1 30 420 image 1.00 all 0 false");
        wheel(-1); wheel(-1); await expect("0 0 30 420 image 1.00 all 0 false");
        at("centre").value = -500; at("width").value = 1200; at("width").dispatchEvent(new Event("change"));
        await expect("0 0 -500 1200 image 1.00 all 0 false");
        for (const button of document.querySelectorAll("#extremes-table tbody tr:first-child button:not([disabled])")) {
          button.click(); for (let i = 0; i < 5; i++) await wait();
          out.states.push([at("slice-name").textContent.split(" ")[0], button.dataset.slice]);
        }
        out.ground = getComputedStyle(document.body).backgroundColor;
        at("theme").click(); out.other = getComputedStyle(document.body).backgroundColor;""",
    )
    assert {out["ground"], out["other"]} == {"rgb(255, 255, 255)", "rgb(18, 23, 29)"}


NARROW = """
<script>addEventListener("load", () => setTimeout(() => {
  const wide = [...document.querySelectorAll("body *")].filter(
    e => e.getBoundingClientRect().right > innerWidth + 1 && !e.closest(".scroll") && !e.closest("[hidden]"));
  const texts = wide.map(e => e.outerHTML.slice(0, 80));
  parent.postMessage(JSON.stringify([innerWidth, document.documentElement.scrollWidth, texts]), "*");
}, 1000));</script></body>
"""


def test_nothing_overflows_on_a_telephone(compared, tmp_path):
    """A headless window is at least 500 pixels wide, a frame in it need not be."""
    (tmp_path / "page.html").write_text(compared[1].read_text().replace("</body>", NARROW))
    frame = '<iframe src="page.html" style="width: 400px; height: 900px; border: 0"></iframe><pre></pre>'
    script = '<script>onmessage = e => { document.querySelector("pre").textContent = e.data; }</script>'
    (tmp_path / "frame.html").write_text(frame + script)
    text = re.search(r"<pre>(.*?)</pre>", browse(tmp_path / "frame.html", tmp_path, "--dump-dom"), re.S)[1]
    assert json.loads(html.unescape(text)) == [400, 400, []]


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
