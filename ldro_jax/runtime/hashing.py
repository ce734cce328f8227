"""Short hashes of texts."""

import hashlib


def short(text: str, digits: int = 16) -> str:
    """The first hexadecimal digits of the SHA-256 of a text, the same on every machine."""
    return hashlib.sha256(text.encode(errors="backslashreplace")).hexdigest()[:digits]
