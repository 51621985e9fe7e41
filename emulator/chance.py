"""Everything random in the fleet comes from its seed, through streams that do not disturb one another."""

import random
import uuid


def stream(seed: int, *names: object) -> random.Random:
    """A source of random numbers that depends on the seed and the names alone, on every machine and Python."""
    return random.Random("/".join(map(str, (seed, *names))))  # noqa: S311 - physics needs repeatable, not secret


def random_uuid(source: random.Random) -> str:
    """A version-4 UUID drawn from a stream."""
    return str(uuid.UUID(int=source.getrandbits(128), version=4))
