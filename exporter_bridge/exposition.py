"""A page of the Prometheus text format as layouts and values: in a known block a scrape reads only the numbers.

`Exposition` is the fleet's (it shares what nodes have in common and counts), a `PageParser` is one node's: it knows
the blocks of the node's newest pages, so memory is bounded by the fleet and freed when the parser goes.
"""

from collections.abc import Generator

from exporter_bridge.layouts import Page


class Exposition:
    """What the parsers of a fleet share, and what they count.

    `label_texts_parsed` and `blocks_laid_out` count slow work since the start: a page of known blocks adds nothing.
    """

    def __init__(self) -> None:
        self.label_texts_parsed = 0
        self.blocks_laid_out = 0

    def parser(self) -> "PageParser":
        """A parser for one node's pages; it is the node's memory of layouts, so keep it as long as the node."""
        return PageParser(self)


class PageParser:
    """Reads one node's pages and remembers their blocks."""

    def __init__(self, exposition: Exposition) -> None:
        self._exposition = exposition

    def parse(self, body: bytes) -> Page:
        """The page in a response's body; no body is so bad that it raises."""
        steps = self.parse_steps(body)
        while True:
            try:
                next(steps)
            except StopIteration as end:
                page: Page = end.value
                return page

    def parse_steps(self, body: bytes) -> Generator[None, None, Page]:
        """`parse` in steps: it yields after each block that had to be laid out anew, so that due work can go first."""
        yield
        raise NotImplementedError(body)

    @property
    def cached_layouts(self) -> int:
        """How many blocks it remembers: at most those of two pages."""
        return 0
