"""The statements of queries.sql by their names."""

import importlib.resources
import re
from typing import Final

from gpu_telemetry.fields import FIELDS

_NAME: Final = re.compile(r"^-- name: (\w+)$", re.MULTILINE)


def _load() -> dict[str, bytes]:
    text = (importlib.resources.files("alerting") / "queries.sql").read_text(encoding="utf-8")
    # The one list that is not written out: the field table's columns.
    text = text.replace("{fields}", ", ".join(field.name for field in FIELDS))
    # Arrays go in binary form: as text, psycopg would escape each element by a regular expression.
    text = re.sub(r"%\((\w+)\)s::(\w+)\[\]", r"%(\1)b::\2[]", text)
    _, *parts = _NAME.split(text)
    statements = dict(zip(parts[::2], (part.strip().removesuffix(";").encode() for part in parts[1::2]), strict=True))
    if 2 * len(statements) != len(parts):
        raise ValueError("queries.sql: a name stands twice")
    return statements


SQL: Final = _load()
