"""The command `ppcls data clean`: find doubtful images, for a page and a table."""

import argparse
from pathlib import Path
from typing import Any

from ppcls import distributed
from ppcls.commands import command_line
from ppcls.data.class_names import CLASS_NAMES, ClassNames, read_class_names
from ppcls.errors import ConfigError
from ppcls.files import require_place

FOUND_SOMETHING = 1


def add_clean_command(commands: Any) -> None:
    command = commands.add_parser(
        "clean",
        help="find likely wrong labels and near duplicates; make a page and a table of them",
        description="Find likely wrong labels, and copies of images that were compressed, resized or "
        "slightly cropped, by what a network makes of the images. It should not have been trained on them: "
        "published weights serve well. Exit code 0: nothing found; 1: something found; 2: wrong input.",
    )
    command.add_argument(
        "model",
        metavar="MODEL",
        help="a model that comes with ppcls by its name, such as EfficientNetB0; a YAML file; the folder of "
        "a training run; or of a model that was exported with --embeddings",
    )
    command.add_argument(
        "sources",
        nargs="+",
        type=Path,
        metavar="LIST_OR_FOLDER",
        help="list files, or folders with one folder for each class; several are compared with each other",
    )
    command.add_argument(
        "--root", type=Path, metavar="DIR", help="folder of the lists' paths (default: each list's own)"
    )
    command.add_argument(
        "--class-names",
        metavar="FILE",
        help=f"names of the classes of lists, one a line (default: {CLASS_NAMES} beside the first list)",
    )
    command.add_argument(
        "--output", type=Path, default=Path("clean"), metavar="DIR", help="folder to write (default: clean)"
    )
    command.add_argument("--force", action="store_true", help="replace the table in it, with your actions")
    command.add_argument(
        "-o",
        "--override",
        action="append",
        default=[],
        metavar="OPTION=VALUE",
        help="replace an option of MODEL; repeatable; `ppcls options` lists all",
    )
    command.add_argument("--engine", help="as of `infer` (default: auto)")
    command.set_defaults(run=clean)


def clean(args: argparse.Namespace) -> int:
    """Find doubtful images, write them to a folder, and print how many there are."""
    import numpy as np

    from ppcls.cli.common import log, open_model
    from ppcls.data.open import open_path
    from ppcls.evaluation import clean as search
    from ppcls.evaluation.clean_report import PAGE, TABLE, groups_of, write_clean_report
    from ppcls.inference.resolve import resolve_model
    from ppcls.progress import progress_bar

    table = args.output / TABLE
    require_place(args.output, "--output", TABLE)
    if table.exists() and not args.force:
        raise ConfigError(
            f"{table} exists, perhaps with your actions. Give --force, or another --output DIR."
        )
    search.require_packages()
    resolved = resolve_model(args.model, args.override)
    datasets = [open_path(path, args.root) for path in args.sources]
    images = search.join_datasets(datasets, _names_of_lists(args))
    search.require_unseen(resolved.config, images)
    predictor = open_model(resolved, args.engine, default="auto", bulk=True)
    count = len(images.labels)
    with progress_bar(count, "embed") as bar:
        embeddings = search.embed(predictor, images, bar.update)
    with progress_bar(count, "hash") as bar:
        hashes = search.hash_images(images, distributed.cores(), bar.update)
    unreadable = int(np.isnan(embeddings[:, 0]).sum())
    if unreadable:
        log(f"left out, unreadable: {unreadable} of {count}; {command_line('data', 'check', *args.sources)}")
    copies = search.find_near_duplicates(embeddings, hashes)
    wrong = search.find_wrong_labels(embeddings, images, copies)
    about = {"network": args.model, "images": ", ".join(map(str, args.sources))}
    counts = write_clean_report(args.output, images, wrong, groups_of(copies), predictor.preprocessing, about)
    log(f"images: {count}")
    for title, number in counts.items():
        log(f"{title}: {number}")
    log(f"written: {args.output / PAGE}")
    log(f"written: {table}; docs/usage.md says how to make a corrected list of it")
    return FOUND_SOMETHING if any(counts.values()) else 0


def _names_of_lists(args: argparse.Namespace) -> ClassNames | None:
    """Return the names of the lists' classes: those given, or those beside the first list."""
    first = args.sources[0]
    beside = first.with_name(CLASS_NAMES)
    if args.class_names is None and not (first.is_file() and beside.is_file()):
        return None
    return read_class_names(args.class_names or str(beside), None, "--class-names")
