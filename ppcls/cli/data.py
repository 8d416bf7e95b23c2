"""Command line of `ppcls data`: make lists of your own images, check them, put them into shards."""

import argparse
import shlex
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ppcls.cli.clean import FOUND_SOMETHING, add_clean_command
from ppcls.cli.shards import add_shard_commands
from ppcls.commands import command_line
from ppcls.errors import DataError, counted

if TYPE_CHECKING:
    from ppcls.data.check import Inspection
    from ppcls.data.copies import Album, Match
    from ppcls.data.dataset import Dataset

# The network of configs/finetune.yaml; and those that are proposed if only their weights are on this machine.
START_NETWORKS = ("EfficientNetB0", "EfficientNetLite0", "EfficientNetLite1", "EfficientNetLite2")
MOST_NEAR_BITS = 96  # other photographs differ in 96 of 256 bits and more


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the arguments, run the command and return its exit code."""
    parser = argparse.ArgumentParser(
        prog=command_line("data"),
        description="Make lists of your own images, and check images.",
    )
    commands = parser.add_subparsers(dest="command", required=True)

    command = commands.add_parser(
        "split",
        help="divide a folder of class folders into training and evaluation lists",
        description="Write train_list.txt, val_list.txt and class_names.txt for a folder with one folder "
        "for each class. The same share of each class is for evaluation, at least one image of two or more. "
        "Lists that stand are extended: their images stay where they are, and only new ones are drawn.",
    )
    command.add_argument(
        "folder", type=Path, metavar="FOLDER", help="holds one folder of images for each class"
    )
    command.add_argument(
        "--eval-share",
        type=float,
        metavar="SHARE",
        help="share for evaluation (default 0.1, or that of the lists that stand)",
    )
    command.add_argument("--seed", type=int, default=0, help="of the random choice (default 0)")
    command.add_argument(
        "--output", type=Path, metavar="DIR", help="folder for the three files (default: FOLDER)"
    )
    command.add_argument("--force", action="store_true", help="draw all images anew, whatever lists stand")
    command.set_defaults(run=split)

    _add_check_command(commands)
    add_clean_command(commands)
    add_shard_commands(commands)
    args = parser.parse_args(argv)
    return args.run(args)


def _add_check_command(commands: Any) -> None:
    command = commands.add_parser(
        "check",
        help="decode every image; report unreadable, damaged, duplicate and leaking ones",
        description="Decode every image of the lists and folders. Report unreadable and damaged images, and "
        "images with the same bytes: with different labels, in two sources (a leak from training to "
        "evaluation), or twice in one. With --against, find copies of other images instead, also compressed, "
        "resized or slightly cropped ones. Exit code 0: nothing found; 1: something found; 2: wrong input.",
    )
    command.add_argument(
        "sources", nargs="+", type=Path, metavar="DATA", help="a list file, a folder of images, or shards"
    )
    command.add_argument(
        "--root", type=Path, metavar="DIR", help="folder of the lists' paths (default: each list's own)"
    )
    command.add_argument("--num-workers", type=int, metavar="N", help="threads (default: one for each core)")
    command.add_argument(
        "--against",
        action="append",
        type=Path,
        metavar="EVAL",
        help="find the images of DATA that are copies of these; several: --against A --against B",
    )
    command.add_argument(
        "--near-bits",
        type=int,
        metavar="N",
        help="bits of 256 in which the perceptual hashes of copies differ at most (default 56)",
    )
    command.set_defaults(run=check)


def split(args: argparse.Namespace) -> int:
    """Split a folder, and print the commands that come next."""
    from ppcls.data.split import CLASS_NAMES, EVAL_LIST, TRAIN_LIST, update_split
    from ppcls.progress import note

    if args.seed < 0:
        raise DataError(f"--seed must be 0 or more. Received: {args.seed}")
    output = args.output or args.folder
    lists, is_written = update_split(args.folder, output, args.eval_share, args.seed, anew=args.force)
    state = "written" if is_written else "unchanged"
    lines = [
        *lists.notes,
        f"{state}: {output / TRAIN_LIST}, {counted(len(lists.train), 'image')}",
        f"{state}: {output / EVAL_LIST}, {counted(len(lists.evaluation), 'image')}",
        f"{state}: {output / CLASS_NAMES}, {counted(len(lists.class_names), 'class')}",
    ]
    print("\n".join(lines))
    if args.eval_share is not None and not args.force and not is_written:
        note("--eval-share is for new images: those of lists that stand keep their sides. All anew: --force")
    if len(lists.class_names) < 2:
        note(f"{args.folder} holds one class folder, and a network needs two classes")
    _print_next(args.folder, output, len(lists.class_names), lists.evaluation[0][0])
    return 0


def _print_next(folder: Path, output: Path, num_classes: int, image: str) -> None:
    """Print the commands that come after a split. image: the path of one, below the folder."""
    from ppcls.config import as_yaml
    from ppcls.data.split import CLASS_NAMES, EVAL_LIST, TRAIN_LIST
    from ppcls.weights.load import are_here

    root = ["--root", str(folder)] if output != folder else []
    print("next, check for damaged and duplicate images:")
    print("  " + command_line("data", "check", output / TRAIN_LIST, output / EVAL_LIST, *root))
    run_folder = Path("output", folder.resolve().name or "photos")
    network = next(filter(are_here, START_NETWORKS), START_NETWORKS[0])
    options = {
        **({} if network == START_NETWORKS[0] else {"model.name": network}),
        "model.num_classes": num_classes,
        "data.train_root": str(folder),
        "data.train_list": str(output / TRAIN_LIST),
        "data.eval_root": str(folder),
        "data.eval_list": str(output / EVAL_LIST),
        "data.class_names": str(output / CLASS_NAMES),
        "output_dir": str(run_folder),
    }
    print("then train, evaluate and use:")
    print(f"  {command_line('train', '-c', 'finetune')} \\")
    given = [shlex.quote(f"{name}={as_yaml(value)}") for name, value in options.items()]
    print(" \\\n".join(f"    -o {option}" for option in given))
    print("  " + command_line("eval", run_folder))
    print("  " + command_line("infer", run_folder, "-i", folder / image))


def check(args: argparse.Namespace) -> int:
    """Check lists and folders, and print a summary of each and all findings."""
    from ppcls import distributed
    from ppcls.data.check import find_problems, inspect_images
    from ppcls.data.dataset import describe_classes
    from ppcls.data.open import open_path
    from ppcls.progress import progress_bar

    if args.num_workers is not None and args.num_workers < 1:
        raise DataError(f"--num-workers must be at least 1. Received: {args.num_workers}")
    if args.against is not None:
        return _check_against(args)
    if args.near_bits is not None:
        raise DataError("--near-bits is for copies of other images: --against EVAL.")
    datasets = [open_path(path, args.root) for path in args.sources]
    workers = args.num_workers or distributed.cores()
    with progress_bar(sum(map(len, datasets)), "check") as bar:
        inspections = [inspect_images(dataset, workers, bar.update) for dataset in datasets]
    for path, inspection in zip(args.sources, inspections, strict=True):
        _print_summary(path, inspection)
        if inspection.dataset.all_labels is not None:
            print(f"  {describe_classes(inspection.dataset)}")
    findings = find_problems(inspections)
    for title, texts in (
        ("class folders without an image", findings.empty),
        ("unreadable", findings.unreadable),
        ("damaged JPEG data, read with wrong pixels", findings.damaged),
        ("conflicts, the same bytes with different labels", findings.conflicts),
        ("leaks, the same bytes in two sources", findings.leaks),
        ("duplicates, the same bytes twice in a source", findings.duplicates),
    ):
        if texts.count:
            print(f"{title}: {texts.count}")
            print("\n".join(f"  {text}" for text in texts.first))
        if texts.count > len(texts.first):
            print(f"  and {texts.count - len(texts.first)} more")
    if findings:
        return FOUND_SOMETHING
    print("no problems found")
    return 0


def _print_summary(source: Path, found: "Inspection") -> None:
    print(f"{source}: {counted(len(found.dataset), 'image')}, {found.unreadable.count} of them unreadable")
    if found.smallest and found.largest:
        print(
            f"  pixels: {found.smallest[1]} x {found.smallest[0]} to {found.largest[1]} x "
            f"{found.largest[0]} (width x height), median of the short side {found.median_short_side}"
        )


def _check_against(args: argparse.Namespace) -> int:
    """Find copies of the images of `--against`; print each as it is found, and then their numbers."""
    import sys
    import warnings

    from ppcls import distributed
    from ppcls.data.copies import COPY_BITS, Album, find_copies, require_hash
    from ppcls.data.open import open_path
    from ppcls.progress import progress_bar

    most = COPY_BITS if args.near_bits is None else args.near_bits
    if not 0 <= most <= MOST_NEAR_BITS:
        raise DataError(f"--near-bits must be 0 to {MOST_NEAR_BITS}. Received: {most}")
    require_hash()
    workers = args.num_workers or distributed.cores()
    known = [open_path(path, args.root) for path in args.against]
    datasets = [open_path(path, args.root) for path in args.sources]
    warnings.filterwarnings("ignore", module="PIL")  # `check` without --against reports damaged files
    with progress_bar(sum(map(len, known)), "hash") as bar:
        album = Album.of(known, workers, bar.update)
    is_clean = not album.unreadable
    if album.unreadable:
        print(f"unreadable in {', '.join(map(str, args.against))}: {album.unreadable}")
    with progress_bar(sum(map(len, datasets)), "compare") as bar:
        for path, dataset in zip(args.sources, datasets, strict=True):
            counts: Counter[str] = Counter()
            for match in find_copies(dataset, album, most, workers):
                counts[match.kind] += 1
                bar.update()
                if match.kind not in ("new", "plain"):
                    bar.write(_describe_match(dataset, album, match), file=sys.stdout)
            bar.write(_describe_counts(path, counts, most), file=sys.stdout)
            is_clean &= counts["new"] + counts["plain"] == len(dataset)
    return 0 if is_clean else FOUND_SOMETHING


def _describe_match(dataset: "Dataset", album: "Album", match: "Match") -> str:
    kind = f"{match.kind} {match.bits}" if match.kind == "near" else match.kind
    end = f": {match.error}" if match.error else f" = {album.where(match)}"
    return f"{kind:10} {dataset.where(match.image)}{end}"


def _describe_counts(path: Path, counts: Counter[str], most_bits: int) -> str:
    copies = {
        "the same bytes": counts["bytes"],
        "the same pixels": counts["pixels"],
        f"at most {most_bits} of 256 bits of their hashes apart": counts["near"],
    }
    text = f"{path}: {counted(counts.total(), 'image')}, {sum(copies.values())} of them copies"
    text += "".join(f"\n  {count} with {kind}" for kind, count in copies.items() if count)
    if counts["plain"]:
        text += f"\n  {counts['plain']} too small or too flat to be compared by more than their bytes"
    if counts["unreadable"]:
        text += f"\n  {counts['unreadable']} unreadable"
    return text
