"""Text as every database and protobuf keeps it."""


def storable(text: str, most: int | None = None) -> str:
    """The text, NUL and bytes that were no UTF-8 written out; cut after so many characters."""
    if most is not None and len(text) > most:
        text = text[: most - 1] + "…"
    if text.isascii() and "\0" not in text:
        return text
    return text.replace("\0", "\\x00").encode("utf-8", "backslashreplace").decode()
