"""Networks with their maps as files for other runtimes."""

from __future__ import annotations

from afmi.exporting.writing import Exported, export

__all__ = ["Exported", "export"]
