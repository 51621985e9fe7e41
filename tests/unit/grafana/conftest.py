"""The committed dashboards, as JSON."""

import json
from pathlib import Path

import pytest

DASHBOARDS = Path(__file__).parents[3] / "grafana" / "dashboards"


@pytest.fixture(scope="session")
def dashboards():
    """Every committed dashboard by its file's name."""
    return {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(DASHBOARDS.glob("*.json"))}
