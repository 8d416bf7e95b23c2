"""Print the page docs/options.md: each option of a config, by its section."""

import argparse
from collections.abc import Sequence

from ppcls.commands import run
from ppcls.options import list_options

HEAD = """\
# Options

Each option of a config, as [ppcls/config.py](../ppcls/config.py) declares it. `ppcls options WORD`
prints those with a word in their names. `python tools/options_page.py` prints this page."""


def main(argv: Sequence[str] | None = None) -> int:
    argparse.ArgumentParser(description=__doc__).parse_args(argv)
    lines, section = [HEAD], None
    for option in list_options():
        own, _, name = option.name.rpartition(".")
        if own != section:
            section = own
            lines += ["", f"## {own or 'Without a section'}", "", "| option | default | values | meaning |"]
            lines += ["|---|---|---|---|"]
        default = f"`{option.default}`" if option.default else "must be given"
        cells = (f"`{name}`", default, option.values, option.meaning)
        lines.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
    print("\n".join(lines))
    return 0


if __name__ == "__main__":
    run(main)
