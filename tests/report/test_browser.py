"""The page in a real browser: no console message, no network request, no overflow, and fast.

Skipped where no Chromium is installed.
"""

import json
import re
import shutil
import subprocess
import time
from pathlib import Path

import pytest
from workdirs import make_workdir

from selfloop_jax.report import write

CHROMIUM = (
    shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
)

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium")

FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-sync", "--disable-background-networking", "--disable-component-update"),
    *("--allow-file-access-from-files", "--hide-scrollbars", "--enable-logging=stderr"),
    "--host-resolver-rules=MAP * ~NOTFOUND",
)
# Loads the page in a frame of a given width and reports what a reader would notice.
PROBE = """<!DOCTYPE html><meta charset="utf-8"><body style="margin:0"><script>
console.log("probe");
const frame = document.createElement("iframe");
frame.style = "width:{width}px;height:2000px;border:0";
frame.onload = () => {{
  const page = frame.contentDocument, images = [...page.images];
  page.querySelectorAll("details").forEach(d => d.open = true);
  const asked = [...page.querySelectorAll("[src], link")].map(e => e.getAttribute("src") || e.href);
  document.body.innerHTML = "<pre>" + JSON.stringify({{
    overflow: page.documentElement.scrollWidth - {width},
    broken: images.filter(i => !i.complete || !i.naturalWidth).length,
    images: images.length, asked: asked.filter(name => !name.startsWith("data:")) }}) + "</pre>";
}};
frame.src = "{page}";
document.body.append(frame);
</script>"""


def load(page: Path, width: int, folder: Path) -> tuple[dict, list[str]]:
    """What the probe found at a width in CSS pixels, and the console messages."""
    probe = folder / f"probe_{width}.html"
    probe.write_text(PROBE.format(width=width, page=page.as_uri()))
    started = time.perf_counter()
    flags = (
        *FLAGS,
        f"--user-data-dir={folder / 'profile'}",
        "--virtual-time-budget=20000",
        "--dump-dom",
    )
    done = subprocess.run(
        [CHROMIUM, *flags, f"--window-size={width + 20},2000", probe.as_uri()],
        capture_output=True,
        text=True,
        timeout=120,
    )
    seen = re.search(r"<pre>(\{.*\})</pre>", done.stdout)
    assert seen, done.stderr[-2000:]
    console = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    return json.loads(seen[1]) | {"seconds": time.perf_counter() - started}, console


@pytest.fixture(scope="module")
def page(tmp_path_factory) -> Path:
    """Twenty generations of five seeds."""
    folder = tmp_path_factory.mktemp("browser")
    return write([make_workdir(folder / f"seed{s}", 20, s) for s in range(5)], folder / "page.html")


@pytest.mark.parametrize("width", [1280, 390])
def test_twenty_generations_of_five_seeds_fit_and_load(page, width, tmp_path):
    empty = tmp_path / "empty.html"
    empty.write_text("<p>nothing</p>")
    idle = load(empty, width, tmp_path)[0]["seconds"]
    seen, console = load(page, width, tmp_path)
    assert len(console) == 1  # the probe's own message: messages are captured
    assert "probe" in console[0]
    assert seen["overflow"] <= 0
    assert (seen["broken"], seen["asked"]) == (0, [])
    assert seen["images"] >= 10
    assert seen["seconds"] - idle < 2


def test_the_probe_finds_a_broken_page(tmp_path):
    broken = tmp_path / "broken.html"
    broken.write_text(
        '<img src="nothing.png"><div style="width:3000px">x</div><script>undefined_name()</script>'
    )
    seen, console = load(broken, 390, tmp_path)
    assert seen["overflow"] > 0
    assert seen["broken"] == 1
    assert any("nothing.png" in name for name in seen["asked"])
    assert any("undefined_name" in line for line in console)
