"""Write dashboards/*.json; with --check only say what would change.

Run by `make dashboards` after a change of a board. Needs the development requirements; nothing here runs in production.
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.dashboard import Dashboard

from grafana.boards.alerts import alerts
from grafana.boards.fleet import fleet
from grafana.boards.gpu import gpu
from grafana.boards.inventory import inventory
from grafana.boards.node import node
from grafana.boards.pipeline import pipeline
from grafana.boards.workloads import workloads

HERE: Final = Path(__file__).parent
BOARDS: Final[tuple[Callable[[], Dashboard], ...]] = (fleet, node, gpu, workloads, alerts, pipeline, inventory)


def files() -> dict[Path, str]:
    """Every dashboard's file and its text."""
    made = {}
    for build in BOARDS:
        model = build()
        document = json.loads(json.dumps(model, cls=JSONEncoder))
        made[HERE / "dashboards" / f"{str(model.uid).removeprefix('gpu-')}.json"] = _text(document)
    return made


def _text(document: dict[str, Any]) -> str:
    return json.dumps(document, indent=2, ensure_ascii=False, sort_keys=True) + "\n"


def main() -> int:
    """Write what differs; 1 if --check was given and something does."""
    differing = {path: text for path, text in files().items() if not path.exists() or path.read_text() != text}
    check = "--check" in sys.argv[1:]
    for path, text in differing.items():
        print(f"{path}: {'differs from what would be generated' if check else 'written'}")
        if not check:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
    return int(check and bool(differing))


if __name__ == "__main__":
    sys.exit(main())
