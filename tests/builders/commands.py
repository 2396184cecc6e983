"""The command line in this process."""

import sys
from typing import Any

import pytest

from safety_neurons import cli


def inside(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> Any:
    """The command in this process; its exit code."""
    monkeypatch.setattr(sys, "argv", ["safety-neurons", *arguments])
    try:
        cli.main()
    except SystemExit as stop:
        return stop.code
    return 0


def one_paragraph(text: str) -> bool:
    """Whether an error is said in one paragraph, without a traceback."""
    return bool(text.strip()) and "Traceback" not in text and "\n\n" not in text.strip()
