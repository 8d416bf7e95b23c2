"""The file in an HTML form's body."""

import logging
from typing import Any

from python_multipart import MultipartParser
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import parse_options_header

from ppcls.serving.protocol import RequestError

MAX_PARTS = 100  # of a form: each takes its time in the server's loop
logging.getLogger("python_multipart").setLevel(logging.ERROR)  # no lines of damaged forms: they are answered


def first_file(body: bytes, content_type: str) -> bytes:
    """Return the first file of a form, multipart/form-data; of another content type the body itself.

    Raises RequestError for a damaged form, and for one without a file.
    """
    kind, options = parse_options_header(content_type)
    if kind != b"multipart/form-data":
        return body
    form = _Form()
    try:
        parser = MultipartParser(options.get(b"boundary", b""), form.callbacks())
        parser.write(body)
        parser.finalize()
    except FormParserError as error:
        raise RequestError(400, f"The form is damaged: {error}") from None
    if not form.is_complete:
        raise RequestError(400, "The form is damaged: it does not end in its boundary.")
    if form.file is None:
        raise RequestError(
            400, "The form has no file. Expected: a part with a file name, as of curl -F image=@FILE"
        )
    return form.file


class _Form:
    """Collects the first part with a file's name. Nothing is written to disk, and no name is looked at."""

    def __init__(self) -> None:
        self.file: bytes | None = None
        self.is_complete = False
        self._header, self._headers = b"", b""
        self._parts: list[bytes] = []
        self._count = 0

    def callbacks(self) -> Any:
        return {name: getattr(self, name) for name in dir(self) if name.startswith("on_")}

    def on_part_begin(self) -> None:
        self._count += 1
        if self._count > MAX_PARTS:
            raise RequestError(400, f"A form may have {MAX_PARTS} parts.")
        self._headers, self._parts = b"", []

    def on_header_field(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end].lower()

    def on_header_value(self, data: bytes, start: int, end: int) -> None:
        if self._header == b"content-disposition":
            self._headers += data[start:end]

    def on_header_end(self) -> None:
        self._header = b""

    def on_part_data(self, data: bytes, start: int, end: int) -> None:
        if self.file is None:
            self._parts.append(data[start:end])

    def on_part_end(self) -> None:
        _, options = parse_options_header(self._headers)
        if self.file is None and b"filename" in options:
            self.file = b"".join(self._parts)

    def on_end(self) -> None:
        self.is_complete = True
