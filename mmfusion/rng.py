"""Random draws that depend on what they are for, never on who makes them or when.

A draw about a document is keyed by (seed, purpose, source, epoch, sample, ...), so that it is the
same on every rank, worker and resumed run (a counter-based Philox generator under each key).
"""

import hashlib

import numpy as np


def generator(*key: int | str) -> np.random.Generator:
    """A generator that is a pure function of `key`."""
    digest = hashlib.blake2b(repr(key).encode(), digest_size=16).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest, "little")))
