"""The text of a list of targets, JSON or YAML, as plain values: whatever it holds, it is read or it is one error."""

from typing import Any, Final

import msgspec
import yaml
from yaml.constructor import ConstructorError
from yaml.reader import ReaderError

# A list of target groups needs five. PyYAML over libyaml calls itself for each and takes the process down at 25,000.
_MOST_NESTED: Final = 100
# Longer ones cannot be written out in an error.
_MOST_BITS: Final = 64


def parse(content: bytes) -> object:
    """The one value that the text holds; None where it holds none.

    Raises:
        ValueError: it is neither JSON nor YAML; the error says what was expected and where.
    """
    try:
        return msgspec.json.decode(content)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        pass  # read as YAML, which tells more of what is wrong
    try:
        _check_nesting(content)
        result: object = yaml.load(content, Loader=_Loader)  # noqa: S506 - a safe loader
    except ReaderError as error:
        line = content.count(b"\n", 0, error.position) + 1
        raise ValueError(f"expected JSON or YAML in UTF-8: {error.reason} at line {line}") from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        place = f" at line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise ValueError(f"expected JSON or YAML: {error.problem}{place}") from None
    return result


def _check_nesting(content: bytes) -> None:
    depth = 0
    for event in yaml.parse(content, Loader=_Loader):
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            if depth > _MOST_NESTED:
                raise _wrong(f"over {_MOST_NESTED} lists or mappings in one another", event.start_mark)
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1


def _wrong(problem: str, mark: Any) -> yaml.MarkedYAMLError:  # noqa: ANN401 - libyaml has a class of its own for it
    return ConstructorError(None, None, problem, mark)


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """A safe loader that names the place of a value that is not what its tag or its form says."""

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:  # noqa: ANN401, FBT001, FBT002 - PyYAML's signature
        try:
            value = super().construct_object(node, deep)
        except (ValueError, LookupError, AttributeError):
            # In these PyYAML falls over a text that is no date, number or boolean.
            kind = node.tag.rpartition(":")[2]
            raise _wrong(f"this is no {kind}", node.start_mark) from None
        if isinstance(value, int) and value.bit_length() > _MOST_BITS:
            raise _wrong(f"a number of over {_MOST_BITS} bits", node.start_mark)
        return value
