"""``afmi explain``: results, bad files, targets, folders, and Ctrl-C."""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
import time
import unicodedata
import warnings

import numpy as np
import pytest
import tifffile
from PIL import Image

import afmi.cli
from afmi import fmi_prototypes, load_model
from afmi.cli.interrupts import interruptible
from afmi.cli.terminal import Progress, one_line_warnings
from afmi.errors import CompletenessWarning
from afmi.files import as_json

pytestmark = pytest.mark.usefixtures("small_figures")

# By its path: the package's attribute of that name is the command.
explain_module = sys.modules[f"{afmi.cli.__name__}.explain"]
# Small pictures on a busy machine: threads would only wait for each other.
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


def _command(*args: object) -> list[str]:
    return [sys.executable, "-m", "afmi", "explain", *map(str, args)]


def _records(text: str) -> list[dict]:
    return [json.loads(line) for line in text.splitlines()]


def test_one_picture_gives_one_line_and_its_files(afmi, small, pictures, tmp_path):
    result = afmi("explain", pictures / "a.png", *small)
    assert result.exit_code == 0, result.stderr
    assert result.stderr == ""
    (line,) = result.stdout.splitlines()
    source, label, method, residual, *averaging, where = line.split("  ")
    assert source == str(pictures / "a.png")
    assert label.endswith("%")
    assert method == "A-FMI at 1"
    assert residual.startswith("residual ")
    assert [text.partition(",")[0] for text in averaging] == ["averaging hides evidence"]
    figure = tmp_path / "out" / where.removeprefix(f"→ {tmp_path / 'out'}/")
    with Image.open(figure) as picture:
        assert picture.format == "PNG"
    assert len(list((tmp_path / "out").iterdir())) == 5


def test_grey_networks_and_bands(afmi, nets, pictures, tmp_path):
    bands = np.random.default_rng(0).integers(0, 65536, (20, 24, 4), dtype=np.uint16)
    np.save(pictures / "bands.npy", bands)
    tifffile.imwrite(pictures / "bands.tif", bands, photometric="minisblack", planarconfig="contig")
    pages = [Image.new("L", (20, 20), level) for level in (0, 255)]
    pages[0].save(pictures / "pages.tif", save_all=True, append_images=pages[1:])
    Image.fromarray(bands[..., 0]).save(pictures / "deep.png")
    options = ("--out", tmp_path / "out", "--method", "gradient", "--json", "--quiet")
    done = {}
    for network in ("grey", "four"):
        result = afmi("explain", pictures, "--model", f"{nets}:{network}", *options)
        assert result.exit_code == 1, result.stderr
        records = _records(result.stdout)
        done[network] = {os.path.basename(r["source"]) for r in records if "error" not in r}
        (pages_error,) = [r["error"] for r in records if "pages.tif" in r.get("error", "")]
        assert "has 2 pages; expected one picture" in pages_error
    assert done["grey"] == {"a.png", "b.png", "c.png", "deep.png"}
    assert done["four"] == {"bands.npy", "bands.tif"}


def test_bad_files_are_reported_and_the_rest_go_on(nets, pictures, tmp_path):
    (pictures / "b.png").write_text("no picture")
    done = subprocess.run(
        _command(
            *(pictures, tmp_path / "missing.png", "--json"),
            *("--model", f"{nets}:build", "--out", tmp_path / "out"),
        ),
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1, done.stderr
    records = _records(done.stdout)
    assert [record["source"] for record in records] == [
        *(str(pictures / name) for name in ("a.png", "b.png", "more/c.png")),
        str(tmp_path / "missing.png"),
    ]
    assert ["error" in record for record in records] == [False, True, False, True]
    assert records[0]["label"]
    assert json.loads((tmp_path / records[0]["files"]["record"]).read_text())["label"]
    errors = done.stderr.splitlines()
    assert len(errors) == 2
    assert all(error.startswith("afmi: ") for error in errors)
    assert "missing.png' does not exist" in errors[1]


def test_what_the_network_fails_on_is_named_and_the_rest_go_on(afmi, small, pictures, tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    Image.new("RGB", (16, 16), "white").save(pictures / "b.png")
    small[1] = small[1].replace(":build", ":nan_on_white")
    result = afmi("explain", empty, pictures, tmp_path / "*.gif", *small, "--json")
    assert result.exit_code == 1, result.stderr
    records = _records(result.stdout)
    assert ["error" in record for record in records] == [True, True, False, True, False]
    errors = result.stderr.splitlines()
    assert f"no image in the folder '{empty}'" in errors[0]
    assert "no image in the glob" in errors[1]
    assert f"'{pictures / 'b.png'}' cannot be explained: the network gives" in errors[2]
    assert "NaN" in errors[2]
    assert len(errors) == 3
    result = afmi("explain", empty, tmp_path / "*.gif", *small)
    assert result.exit_code == 2
    assert "no image in the folder" in result.stderr
    assert "no image in the glob" in result.stderr


def test_several_pictures_are_summed_up_unless_quiet(afmi, small, pictures):
    result = afmi("explain", pictures / "*.png", *small)
    assert len(result.stdout.splitlines()) == 2
    assert result.stderr.startswith("2 explanations saved in ")
    (pictures / "b.png").write_text("no picture")
    result = afmi("explain", pictures, *small, "--quiet")
    assert result.exit_code == 1
    assert result.stdout == ""
    assert result.stderr.startswith("afmi: ")
    assert result.stderr.count("\n") == 1


def test_targets_by_label_and_index(afmi, small, pictures):
    args = ["explain", pictures / "a.png", *small, "--json"]
    result = afmi(*args, "--target", "COLLIE", "--target", "tiger", "--target", "1")
    assert [record["class"] for record in _records(result.stdout)] == [2, 1]
    result = afmi(*args, "--top-k", 3)
    assert len(_records(result.stdout)) == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--target", "cat"], "fits several classes: 'tabby cat' (0), 'tiger cat' (1)"),
        (["--target", "coly"], "no class is called 'coly'; did you mean 'collie'"),
        (["--target", "4"], "expected a class from 0 to 3, got 4"),
        (["--top-k", "5"], "expected top_k up to the 4 classes"),
        (["--layer", "10"], "no layer is called '10'"),
        (["--layer", "4"], "4"),
        (["--device", "nonsense"], "the device 'nonsense' cannot be used here"),
        (["--weights", "none.pth"], "none.pth"),
        (["--labels", "none.txt"], "none.txt"),
    ],
)
def test_what_the_network_does_not_have_is_refused(afmi, small, pictures, options, message):
    result = afmi("explain", pictures / "a.png", *small, *options)
    assert result.exit_code == 2
    assert message in result.stderr
    assert result.stderr.startswith("afmi: ")
    assert result.stderr.count("\n") == 1


def test_an_unwritable_folder_is_refused(afmi, small, pictures):
    blocked = pictures / "a.png" / "out"
    result = afmi("explain", pictures / "b.png", *small, "--out", blocked)
    assert result.exit_code == 2
    assert f"cannot write into the folder {str(blocked)!r}" in result.stderr
    assert "--out" in result.stderr


def test_several_methods_take_what_they_have(afmi, small, pictures):
    result = afmi(
        *("explain", pictures / "a.png", pictures / "b.png", *small, "--json", "--layer", "0"),
        *("--method", "afmi", "--method", "Grad-CAM", "--method", "gradient"),
        *("--reference", "black+white"),
    )
    assert result.exit_code == 0, result.stderr
    records = _records(result.stdout)
    assert [r["method"] for r in records] == ["A-FMI", "Grad-CAM", "Gradient"] * 2
    assert [r["layer"] for r in records[:3]] == ["0", "0", None]
    assert [r["reference"] for r in records[:3]] == ["black+white", None, None]
    assert records[0]["source"] != records[3]["source"]


def test_prototypes_say_for_which_class_the_importance_is_usual(afmi, small, pictures, tmp_path):
    network = load_model(small[1])
    data = [(pictures / "a.png", "collie"), (pictures / "b.png", "tabby cat")]
    fmi_prototypes(network, [(Image.open(p), c) for p, c in data], tmp_path / "made")
    file = tmp_path / "made" / "prototypes.safetensors"
    methods = ["--method", "a-fmi", "--method", "gradient", "--target", "collie"]
    command = ["explain", pictures / "a.png", *small, *methods, "--prototypes", file]
    result = afmi(*command)
    assert result.exit_code == 0, result.stderr
    one, other = result.stdout.splitlines()
    words = "its feature maps are as important as is usual for 'collie' (cosine 1.00)"
    assert words in one and "usual" not in other
    records = _records(afmi(*command, "--json").stdout)
    assert records[0]["prototypes"]["nearest_label"] == "collie"
    assert records[1]["prototypes"] is None
    refused = afmi("explain", pictures, *small, "--method", "gradient", "--prototypes", file)
    assert refused.exit_code == 2
    assert "--prototypes has no effect on Gradient; leave it out, or choose" in refused.stderr


def test_a_method_in_two_spellings_explains_once(afmi, small, pictures):
    spelled = ("a-fmi", "A-FMI", "afmi:averaged=yes", "a-fmi:averaged=no")
    methods = [word for spelling in spelled for word in ("--method", spelling)]
    result = afmi("explain", pictures / "a.png", *small, "--json", "--layer", "0", *methods)
    assert result.exit_code == 0, result.stderr
    averaged = [record["parameters"]["averaged"] for record in _records(result.stdout)]
    assert averaged == [True, False]


def test_own_network_with_its_own_view(afmi, nets, pictures, tmp_path):
    labels = tmp_path / "labels.txt"
    labels.write_text("ash\nbeech\noak\nyew\n")
    result = afmi(
        *("explain", pictures / "a.png", "--model", f"{nets}:unlabelled", "--labels", labels),
        *("--mean", "0.5,0.5,0.5", "--std", "0.2,0.2,0.2", "--resize", "20", "--crop", "16x16"),
        *("--target", "oak", "--json", "--out", tmp_path / "out"),
    )
    assert result.exit_code == 0, result.stderr
    (record,) = _records(result.stdout)
    assert (record["label"], record["image"]["height"]) == ("oak", 16)


def test_running_out_of_memory_is_told_in_one_line(afmi, small, pictures, monkeypatch):
    def fail(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(explain_module._Run, "_report", fail)
    result = afmi("explain", pictures / "a.png", *small)
    assert result.exit_code == 2
    assert result.stderr == "afmi: out of memory; try a smaller --batch-size\n"


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_ctrl_c_keeps_what_is_finished(nets, pictures, tmp_path):
    for number in range(40):
        (pictures / f"{number}.png").write_bytes((pictures / "a.png").read_bytes())
    out = tmp_path / "out"
    process = subprocess.Popen(
        _command(
            *(pictures, "--crop", "16", "--batch-size", "1"),
            *("--model", f"{nets}:Slow", "--out", out),
        ),
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A shell's job in the background ignores Ctrl-C, and so would what the tests start there.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline()
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130
    last = errors.splitlines()[-1]
    assert last.startswith("afmi: interrupted; ")
    assert last.endswith(f"saved in {out}")
    assert "Traceback" not in errors
    finished = list(out.glob("*.json"))
    assert 1 <= len(finished) < 40
    for record in finished:
        files = json.loads(record.read_text())["files"]
        for name in ("figure", "overlay"):
            with Image.open(out / files[name]) as picture:
                picture.load()
    assert not list(out.glob("*.part"))


def _import_then_wait() -> None:
    with interruptible():
        assert importlib.import_module("interrupting").done
        time.sleep(5)


class _Interrupting:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGINT)


def _delete_then_wait() -> None:
    with interruptible():
        _Interrupting()
        time.sleep(5)


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
@pytest.mark.parametrize("work", [_import_then_wait, _delete_then_wait])
def test_ctrl_c_is_raised_where_python_can_stop(work, tmp_path, monkeypatch):
    (tmp_path / "interrupting.py").write_text(
        "import os, signal\nos.kill(os.getpid(), signal.SIGINT)\ndone = True\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    hook = sys.unraisablehook
    try:
        with pytest.raises(KeyboardInterrupt):
            work()
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
        assert sys.unraisablehook is hook
    finally:
        signal.signal(signal.SIGINT, before)


def test_control_characters_in_names_are_written_out(afmi, small, pictures, tmp_path):
    os.rename(pictures / "a.png", pictures / "\x1b[2J\x9b1m\u202e\na.png")
    (pictures / "b.png").rename(pictures / "\x1b]0;b.png")
    (pictures / "\x1b]0;b.png").write_text("no picture")
    labels = tmp_path / "labels.txt"
    labels.write_text("\n".join(["\x1b[31m\x07red"] * 4))
    plain = afmi("explain", pictures, *small, "--labels", labels, "--out", tmp_path / "o\x9bt")
    assert plain.exit_code == 1
    for text in (plain.stdout, plain.stderr):
        assert not any(c != "\n" and unicodedata.category(c) in ("Cc", "Cf") for c in text)
    first = plain.stdout.splitlines()[0]
    assert "/\\u001b[2J\\u009b1m\\u202e\\u000aa.png  \\u001b[31m\\u0007red" in first
    result = afmi("explain", pictures, *small, "--labels", labels, "--json")
    assert not any(c != "\n" and unicodedata.category(c) in ("Cc", "Cf") for c in result.stdout)
    records = _records(result.stdout)
    assert records[0]["source"].endswith("/\x1b[2J\x9b1m\u202e\na.png")
    assert records[0]["label"] == "\x1b[31m\x07red"


def test_json_is_strict():
    text = as_json({"a": float("nan"), "b": [1, float("inf"), True, None], 3: "caf\u00e9 \udcff"})
    assert json.loads(text) == {"a": None, "b": [1, None, True, None], "3": "café \\udcff"}


def test_warnings_are_one_line_and_told_once(capsys):
    with one_line_warnings():
        for _ in range(3):
            warnings.warn("a map\n  is blank", UserWarning, stacklevel=1)
    assert capsys.readouterr().err == "afmi: warning: a map is blank\n"


def test_three_warnings_that_differ_in_numbers_alone_stand_for_all(capsys):
    with one_line_warnings():
        for miss in (7, 7, 12, 9, 30):
            warnings.warn(f"misses by {miss}%", CompletenessWarning, stacklevel=1)
        warnings.warn("photo1.jpg is damaged", UserWarning, stacklevel=1)
        warnings.warn("photo2.jpg is damaged", UserWarning, stacklevel=1)
    assert capsys.readouterr().err.splitlines() == [
        "afmi: warning: misses by 7%",
        "afmi: warning: misses by 12%",
        "afmi: warning: misses by 9% (more of these, with other numbers, are not shown)",
        "afmi: warning: photo1.jpg is damaged",
        "afmi: warning: photo2.jpg is damaged",
    ]


class _Terminal:
    """Standard error as a terminal shows it."""

    def __init__(self) -> None:
        self.text = ""
        self.encoding = "utf-8"

    def write(self, text: str) -> int:
        self.text += text
        return len(text)

    def flush(self) -> None:
        pass

    def isatty(self) -> bool:
        return True


def test_the_bar_is_on_a_terminal_s_stderr_only(monkeypatch, capsys):
    terminal = _Terminal()
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stderr", terminal)
    with Progress(2, shown=True) as progress:
        progress.line("[bold] result")
        progress.within("RISE", 3, 9)
        progress.step("a.png")
    assert capsys.readouterr().out == "[bold] result\n"
    assert "0/2" in terminal.text
    terminal.text = ""
    with Progress(2, shown=False) as progress:
        progress.step("a.png")
    with Progress(1, shown=True) as progress:
        progress.step("a.png")
    assert terminal.text == ""
