"""One self-contained HTML file of a run."""

from __future__ import annotations
