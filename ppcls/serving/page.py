"""The page to try the served models on, page.html: one file, which needs no other and no other server."""

import json
from collections.abc import Mapping
from pathlib import Path

_TEXT = Path(__file__).with_name("page.html").read_text(encoding="utf-8")
_START, _END = _TEXT.split("[]</script>")
# The browser takes nothing from elsewhere and asks nobody else, whatever a class's name may hold.
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
    "img-src blob: data:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Cache-Control": "no-cache",
}


def page_of(models: Mapping[str, bool]) -> str:
    """Return the page. models: the names of the models, with whether each explains its classes."""
    served = [{"name": name, "explains": explains} for name, explains in models.items()]
    text = json.dumps(served).replace("<", r"\u003c")
    return f"{_START}{text}</script>{_END}"
