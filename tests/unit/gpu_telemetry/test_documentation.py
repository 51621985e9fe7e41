"""The pages under docs/ say what the code says."""

import importlib.util
import re
from pathlib import Path

REPOSITORY = Path(__file__).parents[3]
DOCS = REPOSITORY / "docs"


def load_generator():
    spec = importlib.util.spec_from_file_location("generate_configuration", DOCS / "generate_configuration.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_each_setting_stands_in_the_configuration_page_with_its_default():
    page = (DOCS / "configuration.md").read_text(encoding="utf-8")
    assert load_generator().page(page) == page


def test_each_direct_dependency_has_its_reason():
    page = (DOCS / "dependencies.md").read_text(encoding="utf-8").lower()
    for name in ("base", "local", "dev"):
        for line in (REPOSITORY / "requirements" / f"{name}.in").read_text(encoding="utf-8").splitlines():
            if line and not line.startswith(("#", "-r", "types-")):
                package = re.match(r"[A-Za-z0-9-]+", line).group().lower()
                assert package in page, package


def test_links_between_the_pages_lead_somewhere():
    for page in (REPOSITORY / "README.md", REPOSITORY / "CONTRIBUTING.md", *DOCS.glob("*.md")):
        for target in re.findall(r"\]\((?!https?://|#)([^)#]+)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name}: {target}"
