"""Write the tables of docs/configuration.md from the settings classes; a test compares the two."""

import importlib
from pathlib import Path

from pydantic import SecretStr
from pydantic.fields import FieldInfo

from gpu_telemetry.settings import Settings

PAGE = Path(__file__).with_name("configuration.md")
START, END = "<!-- generated: settings -->\n", "<!-- end -->\n"

# Where settings are declared, and who reads them.
SECTIONS = {
    "gpu_telemetry.settings": "Shared",
    "exporter_bridge.settings": "Exporter bridge (`gpu-telemetry bridge`)",
    "alerting.settings": "Alert engine (`gpu-telemetry alert-engine`)",
    "api.settings": "API (`gpu-telemetry api`)",
    "emulator.settings": "Emulator (`gpu-telemetry emulator`)",
    "grafana.settings": "A Grafana that is there already (`gpu-telemetry grafana push` and `check`)",
}


def _default(field: FieldInfo) -> str:
    if field.default_factory is not None:
        return "of the machine"  # the description says which
    value = field.default
    if isinstance(value, SecretStr):
        value = value.get_secret_value()
    if value is None or value == "":
        return "not set"
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def tables() -> str:
    """One table a section, a row a setting: variable, default, meaning."""
    parts = []
    for module, title in SECTIONS.items():
        classes = [
            item
            for item in vars(importlib.import_module(module)).values()
            if isinstance(item, type) and issubclass(item, Settings) and item.__module__ == module
        ]
        rows = [
            f"| `{settings.variable(name)}` | {_default(field)} | {field.description} |"
            for settings in classes
            for name, field in settings.model_fields.items()
        ]
        parts.append(f"## {title}\n\n| variable | default | meaning |\n| --- | --- | --- |\n" + "\n".join(rows) + "\n")
    return "\n".join(parts)


def page(text: str) -> str:
    """The page with its generated part made anew."""
    before, _, rest = text.partition(START)
    _, _, after = rest.partition(END)
    return f"{before}{START}\n{tables()}\n{END}{after}"


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
