"""``afmi app``: what is said before the page is served; tests/app opens it in a browser."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

import afmi.app as page


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Keep what would be served, and serve nothing."""
    calls: list[dict[str, Any]] = []

    def serve(model: Any, **options: Any) -> None:
        calls.append({"model": model, **options})
        options["on_ready"]("http://127.0.0.1:7860/")

    monkeypatch.setattr(page, "serve", serve)
    return calls


def test_it_is_served_to_this_machine(afmi, nets: Path, served: list[dict[str, Any]]) -> None:
    result = afmi("app", "--model", f"{nets}:build")
    assert result.exit_code == 0, result.output
    assert result.stdout == "small: open http://127.0.0.1:7860/ (Ctrl-C ends it)\n"
    assert result.stderr == ""
    (call,) = served
    assert (call["host"], call["port"], call["most_megabytes"]) == ("127.0.0.1", 7860, 20)
    assert call["accounts"] is None


def test_others_are_let_in_with_a_warning_or_a_password(
    afmi, nets: Path, served: list[dict[str, Any]], tmp_path: Path
) -> None:
    arguments = ["app", "--model", f"{nets}:build", "--host", "0.0.0.0"]
    assert "asks for no password; give --accounts FILE" in afmi(*arguments).stderr
    accounts = tmp_path / "accounts.txt"
    accounts.write_text("ada:x:y\n\nben:z\n")
    assert "warning" not in afmi(*arguments, "--accounts", accounts).stderr
    assert served[-1]["accounts"] == {"ada": "x:y", "ben": "z"}


def test_a_file_without_passwords_is_refused(afmi, tmp_path: Path) -> None:
    (tmp_path / "accounts.txt").write_text("ada\n")
    result = afmi("app", "--accounts", tmp_path / "accounts.txt")
    assert result.exit_code == 2
    assert "expected one NAME:PASSWORD a line" in result.stderr
    assert result.stderr.count("\n") == 1


def test_the_extra_is_named_where_it_is_missing(
    afmi, nets: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)
    result = afmi("app", "--model", f"{nets}:build")
    assert result.exit_code == 2
    assert "pip install 'afmi[app]'" in result.stderr.splitlines()[-1]
