"""The page in a real browser, as a visitor finds it."""

from __future__ import annotations

import json
import multiprocessing
import re
import shutil
import sys
import tempfile
import time
import urllib.error
import urllib.request
import warnings
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import matplotlib.figure  # noqa: F401, which the server would import otherwise
import pytest
import torch
from PIL import Image
from ports import free_port
from torch import nn

from afmi.app import serve
from afmi.app.choices import Choices
from afmi.explanation import Explanation
from afmi.network.classifier import Classifier

pytest.importorskip("gradio", reason="the extra app is not installed")
sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium"),
    pytest.mark.skipif(sys.platform in ("win32", "darwin"), reason="needs processes that fork"),
    pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning"),
]

ROOT = Path(__file__).parents[2]
WAIT = 60_000
"""Milliseconds, for machines that do much else."""


class Slow(nn.Module):
    """Takes its time with many pictures, so that methods of many passes can be stopped."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.inner = nn.Sequential(
                nn.Conv2d(3, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(196, 3)
            )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        time.sleep(0.003 * len(x))
        return self.inner(x)


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory, choices: Choices) -> Iterator[str]:
    """Where the page is served."""
    files = tmp_path_factory.mktemp("files")
    port = free_port()
    # A process of its own, whose warnings are no errors; forked, so that nothing is imported again.
    assert choices.methods, "and what methods import"
    fork = multiprocessing.get_context("fork")
    ready = fork.Event()
    server = fork.Process(target=serve_slow, args=(port, str(files), ready), daemon=True)
    server.start()
    assert ready.wait(60), "the page is not served"
    yield f"http://127.0.0.1:{port}"
    server.terminate()
    server.join(60)
    assert server.exitcode == 0
    assert not [*files.glob("afmi-app-*")], "what visitors brought is still there"


def serve_slow(port: int, files: str, ready: Any) -> None:
    """Serve the page of a slow network until the process is asked to end."""
    warnings.resetwarnings()
    tempfile.tempdir = files
    labels = ["tabby cat", "tiger cat", "collie"]
    model = Classifier(Slow(), labels=labels, resize=16, crop=16, output="logits", name="slow")
    serve(model, port=port, most_megabytes=0.1, on_ready=lambda _: ready.set())


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Chromium."""
    sync_api.expect.set_options(timeout=WAIT)
    with sync_api.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def visit(address: str, browser: Any) -> Iterator[Callable[[], Any]]:
    """Open the page as a new visitor, whose browser must load nothing from elsewhere."""
    strange: list[str] = []
    contexts = []

    def note(request: Any) -> None:
        if not request.url.startswith((address, "data:", "blob:")):
            strange.append(request.url)

    def opened() -> Any:
        contexts.append(browser.new_context(accept_downloads=True))
        page = contexts[-1].new_page()
        page.set_default_timeout(WAIT)
        page.on("request", note)
        page.on("pageerror", lambda error: strange.append(str(error)))
        page.goto(address)
        page.wait_for_selector("#explain")
        return page

    yield opened
    for context in contexts:
        context.close()
    assert strange == []


@pytest.fixture(scope="module")
def page(visit: Callable[[], Any]) -> Any:
    """The page as one visitor has it open."""
    return visit()


def save_picture(path: Path, color: str = "red") -> Path:
    """Write a small picture."""
    made = Image.new("RGB", (32, 20), color)
    made.paste("white", (4, 4, 12, 9))
    made.save(path)
    return path


def save_animation(path: Path) -> Path:
    """Write a GIF of three frames."""
    first, *others = (Image.new("RGB", (32, 20), color) for color in ("red", "green", "blue"))
    first.save(path, save_all=True, append_images=others)
    return path


def choose(page: Any, what: str, name: str) -> None:
    """Choose from a list by keyboard, as fast as the page follows."""
    field = page.locator(f"#{what} input")
    field.click()
    field.select_text()
    # Not all of it, so that the whole name can come from the list alone.
    field.press_sequentially(name[:-1])
    whole = re.compile(re.escape(name), re.IGNORECASE)
    first = page.locator(f"#{what} [role=option]").first
    sync_api.expect(first).to_have_text(whole)
    field.press("Enter")
    sync_api.expect(field).to_have_value(whole)


def slide(page: Any, what: str, value: int) -> None:
    """Set a slider by its number."""
    field = page.locator(f"#{what} input[type=number]")
    field.fill(str(value))
    field.press("Enter")


def bring(page: Any, path: Path) -> None:
    """Drop a file."""
    page.set_input_files("#photograph input[type=file]", str(path))


def take_example(page: Any) -> None:
    """Take the first example, and wait until its map stands where another's may have been."""
    page.locator("#examples button").first.click()
    page.wait_for_function(
        "document.querySelector('#map .afmi-stack')?.style.aspectRatio.startsWith('451')"
    )


def saved(page: Any, button: str, folder: Path) -> Path:
    """Download an archive and unpack it."""
    page.wait_for_selector(f"#{button}:not([disabled])")
    with page.expect_download() as download:
        page.click(f"#{button}")
    archive = folder / download.value.suggested_filename
    download.value.save_as(archive)
    with zipfile.ZipFile(archive) as file:
        file.extractall(unpacked := folder / archive.stem)
    return unpacked


def test_from_a_photograph_to_its_record(visit: Callable[[], Any], tmp_path: Path) -> None:
    page = visit()
    bring(page, save_picture(tmp_path / "my photo.png"))
    page.wait_for_selector("#map .afmi-stack")
    assert page.locator("#predictions tr").count() == 3
    first = page.locator("#map h3").inner_text()
    assert page.locator("#map .afmi-stack img").first.get_attribute("alt").startswith(first)
    # The browser alone makes the map stronger or weaker.
    slide(page, "strength", 20)
    strong = page.locator("#map .afmi-strong")
    sync_api.expect(strong).to_have_css("opacity", "0.2")
    # Another class rather than a second, by another method.
    choose(page, "of", "collie")
    choose(page, "versus", "tabby cat")
    choose(page, "method", "deeplift")
    sync_api.expect(page.locator("#layer input")).to_be_disabled()
    page.click("#explain")
    title = page.locator("#map h3")
    sync_api.expect(title).to_contain_text("collie rather than tabby cat")
    checks = page.locator("#map .afmi-checks").inner_text()
    assert "The map accounts for the score to within" in checks
    assert "DeepLIFT" in checks
    explanation = Explanation.load(saved(page, "record", tmp_path))
    assert explanation.source == "my photo.png"
    assert explanation.method == "DeepLIFT"
    # The pixels that it ranks first.
    page.get_by_role("tab", name="Top pixels").click()
    page.wait_for_selector("#kept svg")
    slide(page, "share", 37)
    sync_api.expect(page.locator("#kept")).to_contain_text("top 37% of the pixels")
    # Several methods.
    page.get_by_role("tab", name="Side by side").click()
    page.click("#compare")
    page.wait_for_selector("#comparison figure")
    assert page.locator("#comparison figure").count() == 4
    sync_api.expect(page.locator("#records")).to_be_enabled()


def test_frames_and_examples(page: Any, tmp_path: Path) -> None:
    bring(page, save_animation(tmp_path / "moving.gif"))
    page.wait_for_selector("#map .afmi-stack")
    before = page.locator("#map .afmi-stack img").first.get_attribute("src")
    slide(page, "frame", 3)
    page.wait_for_function("was => document.querySelector('#map img')?.src != was", arg=before)
    take_example(page)


def test_a_frame_of_a_video(page: Any) -> None:
    page.get_by_text("A video, or another kind of file").click()
    page.wait_for_selector("#video input[type=file]")
    page.evaluate(
        """async () => {
            const canvas = Object.assign(document.createElement("canvas"), {width: 64, height: 48});
            const paint = canvas.getContext("2d");
            const recorder = new MediaRecorder(canvas.captureStream(), {mimeType: "video/webm"});
            const parts = [];
            recorder.ondataavailable = (event) => parts.push(event.data);
            recorder.start();
            for (let k = 0; k < 12; k++) {
                paint.fillStyle = `rgb(${20 * k}, 80, 40)`;
                paint.fillRect(0, 0, 64, 48);
                await new Promise((then) => setTimeout(then, 30));
            }
            await new Promise((then) => { recorder.onstop = then; recorder.stop(); });
            const files = new DataTransfer();
            files.items.add(new File(parts, "clip.webm", {type: "video/webm"}));
            const input = document.querySelector("#video input[type=file]");
            input.files = files.files;
            input.dispatchEvent(new Event("change"));
        }"""
    )
    page.click("#video button:not([disabled])")
    page.wait_for_selector("#map .afmi-stack[style*='64/48']")


def test_what_is_no_photograph_is_named(page: Any, tmp_path: Path) -> None:
    take_example(page)
    page.click("#photograph [aria-label='Remove Image']")
    page.wait_for_selector("#map .afmi-stack", state="detached")
    (tmp_path / "notes.png").write_text("plain words")
    bring(page, tmp_path / "notes.png")
    toast = page.locator(".toast-body")
    sync_api.expect(toast).to_contain_text("'notes.png' is not an image that can be read")
    assert "Traceback" not in page.content()
    page.click("#explain")
    sync_api.expect(toast.last).to_contain_text("no photograph is chosen yet")


def test_visitors_neither_wait_for_each_other_nor_see_each_other(
    page: Any, visit: Callable[[], Any], tmp_path: Path
) -> None:
    ada, ben = page, visit()
    bring(ada, save_picture(tmp_path / "ada.png"))
    ada.wait_for_selector("#map .afmi-stack")
    choose(ada, "method", "rise")
    sync_api.expect(ada.locator("#explain")).to_contain_text(re.compile("about .* s"))
    ada.click("#explain")
    ada.wait_for_selector("text=/RISE|masks/")
    # While it runs, another visitor is served, and so are the first one's sliders.
    bring(ben, save_picture(tmp_path / "ben.png"))
    ben.wait_for_selector("#map .afmi-stack")
    assert "ada.png" not in ben.content()
    ada.get_by_role("tab", name="Top pixels").click()
    slide(ada, "share", 41)
    sync_api.expect(ada.locator("#kept")).to_contain_text("top 41% of the pixels")
    ada.click("#stop")
    sync_api.expect(ada.locator(".toast-body").last).to_contain_text("ends at its next step")
    ada.get_by_role("tab", name="Map").click()
    sync_api.expect(ada.locator("#map")).not_to_contain_text("RISE")


def _status(request: str | urllib.request.Request) -> int:
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code


def test_no_file_of_the_server_is_read(address: str) -> None:
    here = ROOT / "README.md"
    for path in ("/etc/passwd", here, "nets.py", "../nets.py", "https://example.org/"):
        assert _status(f"{address}/gradio_api/file={path}") == 403


def test_a_forged_upload_is_refused(address: str) -> None:
    with urllib.request.urlopen(f"{address}/config", timeout=30) as answer:
        config = json.load(answer)
    photo = next(c["id"] for c in config["components"] if c["props"].get("elem_id") == "photograph")
    event = next(d["id"] for d in config["dependencies"] if [photo, "input"] in d["targets"])
    secret = ROOT / "docs" / "images" / "two.jpg"  # a picture that the network could explain
    forged = {"path": str(secret), "orig_name": "x.jpg", "meta": {"_type": "gradio.FileData"}}
    body = {"data": [None, forged], "fn_index": event, "session_hash": "mallory"}
    request = urllib.request.Request(
        f"{address}/gradio_api/queue/join",
        json.dumps(body).encode(),
        {"content-type": "application/json"},
    )
    assert _status(request) == 200
    stream = f"{address}/gradio_api/queue/data?session_hash=mallory"
    with urllib.request.urlopen(stream, timeout=30) as answer:
        for line in answer:
            if b"process_completed" in line:
                break
    assert json.loads(line.removeprefix(b"data: "))["success"] is False


def test_uploads_are_bounded(address: str) -> None:
    form = b'--x\r\ncontent-disposition: form-data; name="files"; filename="a.png"\r\n\r\n'
    form += bytes(120_000) + b"\r\n--x--\r\n"
    kind = {"content-type": "multipart/form-data; boundary=x"}
    assert _status(urllib.request.Request(f"{address}/gradio_api/upload", form, kind)) == 413
