"""Which partition a key belongs to: the `murmur2_random` partitioner of Kafka's own clients, for keys that are there.

Source: org.apache.kafka.common.utils.Utils.murmur2; a test compares it with what librdkafka does.
"""

from typing import Final

_SEED: Final = 0x9747B28C
_MULTIPLIER: Final = 0x5BD1E995
_WORD: Final = 0xFFFFFFFF


def murmur2(key: bytes) -> int:
    """The 32-bit MurmurHash2 of the key, unsigned."""
    hashed = _SEED ^ len(key)
    whole = len(key) & ~3
    for start in range(0, whole, 4):
        block = int.from_bytes(key[start : start + 4], "little") * _MULTIPLIER & _WORD
        block = (block ^ block >> 24) * _MULTIPLIER & _WORD
        hashed = hashed * _MULTIPLIER & _WORD ^ block
    if whole < len(key):
        hashed = (hashed ^ int.from_bytes(key[whole:], "little")) * _MULTIPLIER & _WORD
    hashed = (hashed ^ hashed >> 13) * _MULTIPLIER & _WORD
    return hashed ^ hashed >> 15


def partition_of(key: str, partitions: int) -> int:
    """The partition, of that many, that a record with this key is sent to."""
    return (murmur2(key.encode()) & 0x7FFFFFFF) % partitions
