"""The example page explains a photograph in a real browser as we do."""

from __future__ import annotations

import contextlib
import os
import shutil
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
from completeness import photographs
from torch import Tensor

import afmi
from afmi.exporting import export
from afmi.methods import AFMI
from afmi.pictures.transforms import to_image

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
pytest.importorskip("onnxscript", reason="the extra export is not installed")

EXAMPLE = Path(__file__).parents[2] / "examples" / "browser"
MODULES = Path(os.environ.get("AFMI_NODE_MODULES", EXAMPLE / "node_modules"))


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@contextlib.contextmanager
def _served(folder: Path) -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def page(tmp_path: Path) -> Iterator[playwright.Page]:
    """Open the example's page with the embedded network's file."""
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("needs Chromium: apt-get install chromium")
    if not (MODULES / "onnxruntime-web").is_dir():
        pytest.skip(f"needs onnxruntime-web: npm install --prefix {EXAMPLE} onnxruntime-web")
    for name in ("index.html", "explained_network.mjs"):
        shutil.copy(EXAMPLE / name, tmp_path)
    (tmp_path / "node_modules").symlink_to(MODULES.resolve())
    export(afmi.load_model("photos"), tmp_path / "net-with-map.onnx")
    with _served(tmp_path) as address, playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page()
        page.goto(address)
        page.wait_for_selector("#file:enabled")
        yield page
        browser.close()


def _answer(page: playwright.Page) -> tuple[int, Tensor]:
    """Wait for an explanation and return its class and map, which the page then forgets."""
    page.wait_for_function("globalThis.result")
    index, values = page.evaluate("[result.class, Array.from(result.map)]")
    page.evaluate("delete globalThis.result")
    return index, torch.tensor(values)


@pytest.mark.slow
def test_a_photograph_is_explained_as_by_us(page: playwright.Page, tmp_path: Path) -> None:
    model = afmi.load_model("photos")
    assert isinstance(model.resize, int)
    image = to_image(photographs(model.resize, 2)[1])  # at which nobody has to resize it
    image.save(tmp_path / "cat.png")
    page.set_input_files("#file", tmp_path / "cat.png")
    pixels = model.prepare(image)
    method = AFMI(model.eval())
    for chosen in (None, 3):
        if chosen is not None:
            page.select_option("#class", str(chosen))
        index, values = _answer(page)
        ours = method.attribution(pixels, chosen)
        assert ours.target is not None
        assert index == int(ours.target)
        maps = ours.maps.flatten()
        np.testing.assert_allclose(values, maps, rtol=0, atol=1e-5 * float(maps.abs().max()))
    assert page.inner_text("#answer").startswith(model.labels[3])
    assert page.inner_text("#note") == ""


@pytest.mark.slow
def test_what_is_no_picture_is_refused(page: playwright.Page, tmp_path: Path) -> None:
    (tmp_path / "no.png").write_text("no picture", encoding="utf-8")
    page.set_input_files("#file", tmp_path / "no.png")
    page.wait_for_function("document.getElementById('answer').textContent.includes('cannot be')")
    assert page.is_hidden("#pictures")
