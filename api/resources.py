"""What the views of one app lean on: its database and its clock."""

from dataclasses import dataclass
from typing import Final

from flask import Flask, current_app

from api.database import Database
from gpu_telemetry.clock import Clock

_KEY: Final = "gpu_telemetry_api"


@dataclass(frozen=True, slots=True)
class Resources:
    """The database, and the wall clock that says which node is unheard."""

    database: Database
    clock: Clock


def attach(app: Flask, resources: Resources) -> None:
    """Give an app its resources."""
    app.extensions[_KEY] = resources


def resources(app: Flask | None = None) -> Resources:
    """The resources of an app, or of the one that answers the current request."""
    found = (app or current_app).extensions[_KEY]
    assert isinstance(found, Resources)
    return found
