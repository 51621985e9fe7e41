"""The pages under docs/ say what the code says."""

import importlib.util
import re
from pathlib import Path

import click
import pytest

from gpu_telemetry.cli import group

REPOSITORY = Path(__file__).parents[3]
DOCS = REPOSITORY / "docs"
PAGES = (REPOSITORY / "README.md", REPOSITORY / "CONTRIBUTING.md", *sorted(DOCS.glob("*.md")))


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


def anchors(page):
    """What a link to a heading of a page may end with, as GitHub makes it of the heading."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_between_the_pages_lead_somewhere(page):
    for target, anchor in re.findall(r"\]\((?!https?://)([^)#]*)#?([^)]*)\)", page.read_text(encoding="utf-8")):
        there = page.parent / target if target else page
        assert there.exists(), target
        assert not anchor or anchor in anchors(there), f"{target}#{anchor}"


def commands(text):
    """Every `gpu-telemetry ...` of a page, in a block or in a sentence, as words; a topic of the name is none."""
    for written in re.findall(r"(?<!topic )\bgpu-telemetry ((?:[a-z]|--)[^\n`#;&)]*)(?=[\n`#;&)]|$)", text):
        yield written.split()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_each_command_that_a_page_names_is_there_with_its_flags(page):
    for words in commands(page.read_text(encoding="utf-8")):
        command = group
        for word in words:
            if isinstance(command, click.Group) and not word.startswith("-"):
                command = command.get_command(click.Context(command), word)
                assert command is not None, words
            elif word.startswith("--"):
                assert word in {flag for parameter in command.params for flag in parameter.opts}, words


def test_the_commands_of_a_page_are_found():
    assert ["up", "--targets", "targets.yml"] in list(commands(PAGES[0].read_text(encoding="utf-8")))
