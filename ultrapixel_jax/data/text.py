"""Names and captions of unknown making: bytes to text, and text to what can be stored and printed."""

from __future__ import annotations

import codecs
import os

BOMS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),  # begins like UTF-16's, so it comes first
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


def decoded(data: bytes, encoding: str) -> str:
    """Text of a file: by its byte order mark where it has one, else in `encoding`.

    Raises:
        ValueError: it is in another encoding; the message has the place and the remedy.
    """
    encoding = next((name for mark, name in BOMS if data.startswith(mark)), encoding)
    try:
        return data.decode(encoding)
    except UnicodeError as error:
        at = getattr(error, "start", 0)
        seen = f"byte {data[at]:#04x} at {at}" if at < len(data) else "it is cut off"
        raise ValueError(
            f"it is not {encoding.removesuffix('-sig')} ({seen}); name its --encoding, such as cp1252"
        ) from error


def whole_characters(text: str) -> str:
    """`text` with pairs of surrogates (JSON's) joined, and halves, which no file can hold, left out."""
    if not any("\ud800" <= c <= "\udfff" for c in text):
        return text
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "ignore")


def printable(name: str | os.PathLike[str]) -> str:
    """A name as UTF-8 text of one line: bytes that are no UTF-8 and control characters are escaped."""
    text = os.fspath(name)
    # Surrogates are bytes that the operating system gave, or come from elsewhere and stand for nothing.
    data = text.encode("utf-8", "surrogateescape" if _are_bytes(text) else "backslashreplace")
    shown = data.decode("utf-8", "backslashreplace")
    if shown.isprintable():
        return shown
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in shown)


def _are_bytes(name: str) -> bool:
    """Whether all surrogates in `name` are bytes that the operating system gave."""
    return all("\udc80" <= c <= "\udcff" for c in name if "\ud800" <= c <= "\udfff")
