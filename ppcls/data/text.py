"""Text files as people and their editors write them."""

import re
from pathlib import Path

from ppcls.errors import DataError


def read_lines(path: Path, option: str = "") -> list[str]:
    """Return the lines of a text file, without the byte-order marks that editors write, and that stay inside
    when files are joined. option: the beginning of an error. Raises DataError for a file that cannot be read
    as UTF-8."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise DataError(f"{option}{path} cannot be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise DataError(
            f"{option}{path} is not UTF-8 text: {error}. Expected: a text file, not an image or another "
            "binary file. Save a text of another encoding as UTF-8."
        ) from error
    if "\ufeff" in text:
        text = re.sub("^\ufeff+", "", text, flags=re.MULTILINE)
    return text.split("\n")
