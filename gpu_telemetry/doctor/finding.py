"""What a check found."""

from typing import Literal

import msgspec

State = Literal["ok", "wrong", "unchecked"]


class Finding(msgspec.Struct, frozen=True):
    """One line of the doctor's: what was looked at, how it is, and what to do unless it is well.

    `unchecked` is what could not be looked at because something that it needs is wrong.
    """

    check: str
    state: State
    said: str
    advice: str | None = None


def ok(check: str, said: str) -> Finding:
    """All is well."""
    return Finding(check, "ok", said)


def wrong(check: str, said: str, advice: str) -> Finding:
    """Something is wrong, and this may mend it."""
    return Finding(check, "wrong", said, advice)


def unchecked(check: str, need: str) -> Finding:
    """It cannot be told without something that is wrong itself."""
    return Finding(check, "unchecked", f"cannot be told: see {need}")
