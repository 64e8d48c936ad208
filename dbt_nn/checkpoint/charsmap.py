"""SentencePiece's precompiled_charsmap: texts, and what a normalizer has for them.

It is a double array of Darts, a trie over bytes, and the replacements behind it, each
with a NUL at its end:
https://github.com/google/sentencepiece/blob/master/src/normalizer.cc.

    bytes of the array, 32 bits
    units of 32 bits: 0-7 the byte that leads there, 8 whether a text ends there,
                      9 whether the offset is in units of 256, 10-31 the offset
    replacements

`tokenizers` looks up the grapheme clusters of a text that have less than 6 bytes, and
the characters of the others. So longer texts of the trie have no effect.
"""

from __future__ import annotations

import base64
import binascii

import numpy as np

# Of a text that is looked up.
MAX_BYTES = 5
# NMT's NFKC has 8,000 of up to 5 bytes; a hostile trie repeats itself without end.
MAX_NODES = 1 << 18


def read_charsmap(content: str) -> dict[str, str]:
    """The replacements of a precompiled_charsmap in base64: text -> replacement.

    Raises:
        ValueError: it is not one; the message says why.

    """
    try:
        raw = base64.b64decode(content, validate=True)
    except (ValueError, binascii.Error):
        raise ValueError("no base64") from None
    size = int.from_bytes(raw[:4], "little")
    if size < 4 or size % 4 or len(raw) < 4 + size:
        raise ValueError("cut short")
    units = np.frombuffer(raw, "<u4", size // 4, 4).astype(np.int64)
    replacements = raw[4 + size :]

    result = {}
    for key, place in _texts(units):
        start = int(units[place] & 0x7FFFFFFF) if place < len(units) else len(raw)
        if start > len(replacements):
            raise ValueError("cut short")
        end = replacements.find(b"\0", start)
        try:
            made = replacements[start : None if end < 0 else end].decode()
            result[key.decode()] = made
        except UnicodeDecodeError:
            raise ValueError("no UTF-8") from None
    return result


def _texts(units: np.ndarray) -> list[tuple[bytes, int]]:
    """The trie's texts of up to MAX_BYTES, each with the place of its value."""
    labels = np.arange(1, 256)
    offsets = (units >> 10) << ((units & 0x200) >> 6)
    found: list[tuple[bytes, int]] = []
    keys, bases = [b""], offsets[:1]  # of the nodes of one depth
    for _ in range(MAX_BYTES):
        places = bases[:, None] ^ labels  # [nodes, 255]
        inside = places < len(units)
        places = np.where(inside, places, 0)
        parent, child = np.nonzero(
            inside & ((units[places] & 0x800000FF) == labels[None])
        )
        places = places[parent, child]
        if len(places) > MAX_NODES:
            raise ValueError(f"a trie of more than {MAX_NODES:,} nodes")
        keys = [
            keys[n] + bytes([label])
            for n, label in zip(parent, labels[child], strict=True)
        ]
        bases = places ^ offsets[places]
        ends = np.nonzero(units[places] >> 8 & 1)[0]
        found += [(keys[n], int(bases[n])) for n in ends]
    return found
