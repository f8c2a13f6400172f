"""The top command: help, version, unknown commands and options, and how errors are shown."""

from __future__ import annotations

import subprocess
import sys

import pytest

from afmi.cli import cli
from afmi.cli.group import AfmiGroup
from afmi.errors import UsageError

COMMANDS = (
    "explain",
    "explain-dataset",
    "compare",
    "evaluate",
    "report",
    "audit",
    "reproduce",
    "train",
    "export",
    "app",
    "demo",
    "models",
    "methods",
    "metrics",
    "doctor",
)


def test_help_does_not_import_torch():
    code = (
        "import sys\n"
        "from afmi.cli import cli\n"
        "for args in [], ['--help'], ['explain', '--help'], ['--version'], ['explan']:\n"
        "    cli.main(args, prog_name='afmi', standalone_mode=False)\n"
        "assert not {'torch', 'numpy', 'PIL', 'rich'} & set(sys.modules), 'heavy imports'\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("Usage: afmi")


def test_no_arguments_print_the_help(afmi):
    result = afmi()
    assert result.exit_code == 0
    assert all(command in result.stdout for command in COMMANDS)
    assert result.stdout == afmi("--help").stdout


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_helps_with_examples(afmi, command):
    result = afmi(command, "-h")
    assert result.exit_code == 0
    assert "Examples:" in result.stdout
    assert f"    afmi {command}" in result.stdout
    assert "--debug" not in result.stdout
    assert max(map(len, result.stdout.splitlines())) <= 100


def test_explain_help_shows_defaults(afmi):
    text = " ".join(afmi("explain", "--help").stdout.split())
    for default in ("imagenet", "default", "A-FMI", "afmi-out", "auto", "the predicted class"):
        assert f"[default: {default}]" in text


def test_version_names_torch_too(afmi):
    words = afmi("--version").stdout.split()
    assert words[0] == "afmi"
    assert words[2] == "torch"


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["explan", "a.png"], "no command is called 'explan'; did you mean 'explain'?"),
        (["xyz"], "no command is called 'xyz'; there are explain, explain-dataset, compare"),
        (["dog.jpg"], "did you mean `afmi explain dog.jpg`?"),
        (["explain", "a.png", "--metod", "x"], "no option is called '--metod'; did you mean '--me"),
        (["explain"], "missing argument 'IMAGE…'"),
        (["explain", "a.png", "--batch-size", "0"], "'--batch-size': 0 is not in the range"),
        (["explain", "a.png", "--crop", "3,4"], "'--crop': expected pixels, or height x width"),
        (["explain", "a.png", "--mean", "a"], "'--mean': expected numbers joined by commas"),
        (["explain", "a.png", "--target", "1", "--top-k", "2"], "--target and --top-k go one"),
        (["explain", "a.png", "--method", "gradcm"], "no method is called 'gradcm'; did you mean"),
        (["explain", "a.png", "--reference", "blak"], "did you mean 'black'?"),
        (["explain", "a.png", "--model", "resnet5"], "no model is called 'resnet5'; did you mean"),
        (["explain", "nothing/*.jpg"], "no image in the glob 'nothing/*.jpg'"),
        (["explain", "a.png", "--method", "gradient", "--layer", "x"], "--layer has no effect on"),
        (
            ["explain", "a.png", "--method", "grad-cam", "--reference", "white"],
            "--reference has no effect on Grad-CAM; leave it out, or choose --method",
        ),
        (["models", "vgg", "--labels", "--layers"], "--labels and --layers go one at a time"),
        (["models", "--layers"], "--layers needs the NAME of one network"),
        (["models", "resnt"], "no model's name contains 'resnt'; did you mean 'resnet"),
        (["models", "resnt", "--labels"], "no model is called 'resnt'"),
    ],
)
def test_unusable_commands_are_refused_in_one_line(afmi, args, message):
    result = afmi(*args)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr.startswith("afmi: ")
    assert result.stderr.count("\n") == 1
    assert message in result.stderr


def _failing(error: BaseException):
    def fail(*_: object) -> None:
        raise error

    return fail


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (UsageError("so and so"), 2, "afmi: so and so\n"),
        (ZeroDivisionError("by\nzero"), 2, "afmi: unexpected ZeroDivisionError: by zero (--debug"),
        (KeyboardInterrupt(), 130, "\nafmi: interrupted\n"),
    ],
)
def test_errors_become_one_line_unless_debugging(afmi, monkeypatch, error, code, line):
    # By the module's path: the package's attribute of that name is the command.
    monkeypatch.setattr(sys.modules["afmi.cli.methods"], "_record", _failing(error))
    result = afmi("methods")
    assert result.exit_code == code
    assert result.stderr.startswith(line)
    if code == 2:
        assert afmi("methods", "--debug").exception is error
        assert afmi("--debug", "methods").exception is error


def test_it_is_a_group_that_lists_the_commands():
    assert isinstance(cli, AfmiGroup)
    assert tuple(cli.commands) == COMMANDS
