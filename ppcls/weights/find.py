"""Find a network's weights among the tensors of a file.

Files of training scripts hold them under prefixes of many kinds (DataParallel's "module.", a wrapper's
"model.", a dictionary's "state_dict/", chains of them), beside other tensors. No list of prefixes decides,
but the key maps: the weights are where one map finds every parameter of the network.
"""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ppcls.errors import WeightsError, first_few
from ppcls.weights.identify import EVALUATION, OptionNames
from ppcls.weights.keymaps import TORCH_SOURCES, TRANSPOSED, key_map, sources_of
from ppcls.weights.native import FORMAT
from ppcls.weights.readers import Entry, read_file

if TYPE_CHECKING:
    from paddle import nn

HEAD = ("fc.weight", "fc.bias")
AVERAGE_WORDS = {"ema", "swa", "avg", "average", "averaged", "shadow"}


@dataclass(frozen=True)
class Found:
    """The weights of a network in a file.

    source: "ppcls", or one of keymaps. entries: with this project's keys and layout; unknown keys below the
    prefix stay as they are. metadata: of the file. architecture: the name that a training script saved
    beside the weights. only_head_differs: all that is unknown is in modules beside the features. notes: lines
    for the user.
    """

    source: str
    prefix: str
    entries: dict[str, Entry]
    metadata: dict[str, Any]
    architecture: str | None = None
    only_head_differs: bool = False
    notes: tuple[str, ...] = ()

    @property
    def is_own(self) -> bool:
        """Whether the file is of this project's own format."""
        return self.metadata.get("format") == FORMAT


class _Copy(NamedTuple):
    """A place in a file where a source's names are. hits: of the network's parameters. fit: 1 if all of them
    are there, 2 if they have their shapes too, except for the classifier."""

    prefix: str
    source: str
    hits: int
    names: dict[str, str]
    fit: int


def find_weights(
    path: Path,
    model: "nn.Layer",
    *,
    averaged: bool = True,
    reset_head: bool = False,
    options: OptionNames = EVALUATION,
) -> Found:
    """Read a file and find the model's weights in it.

    If the file has them twice, once as a moving average, `averaged` chooses. reset_head: the classifier is
    not needed, whatever it is. If nothing in the file is complete, the best place is returned, for the
    caller's message. Raises WeightsError, also for a file with two complete copies.
    """
    kind, entries, metadata = read_file(path)
    shapes = {key: list(parameter.shape) for key, parameter in model.state_dict().items()}
    ignored = HEAD if reset_head else ()
    if metadata.get("format") == FORMAT:
        copies = [_Copy("", "ppcls", 0, {key: key for key in shapes}, 1)]
    else:
        copies = _copies(kind, entries, model.model_name, shapes, ignored)
    best_fit = max(copy.fit for copy in copies)
    complete = [copy for copy in copies if best_fit and copy.fit == best_fit]
    notes: list[str] = []
    if complete:
        copy = _choose(path, complete, entries, averaged, options, notes)
    else:
        copy = max(copies, key=lambda copy: (copy.hits, -len(copy.prefix)))
    features = {_module(name) for key, name in copy.names.items() if key not in HEAD}
    own, left_out = _rename(entries, copy, features, ignored)
    values, skipped = ({}, {}) if kind == "safetensors" else (metadata["values"], metadata["skipped"])
    if complete and averaged and not notes:
        folders = [key.split("/")[0] for key in (*values, *skipped) if "/" in key or key in skipped]
        if any(map(_names_average, (*left_out, *folders))):
            notes.append(
                f"the raw weights are used ({_place(copy)}): the file has no complete average of them"
            )
    if left_out and complete:
        notes.append(f"not used of {path.name}: {first_few(left_out, 6)}")
    named = [values[key] for key in ("arch", "args/model") if type(values.get(key)) is str] or [None]
    return Found(
        copy.source,
        copy.prefix,
        own,
        metadata,
        architecture=named[0],
        only_head_differs=all(key in shapes or _module(key) not in features for key in own),
        notes=tuple(notes),
    )


def _copies(
    kind: str,
    entries: dict[str, Entry],
    model_name: str,
    shapes: dict[str, list[int]],
    ignored: Sequence[str],
) -> list[_Copy]:
    """Return each prefix with the source that finds most there.

    Of sources with the same keys (PaddleClas's older names of a ResNeXt are torch's) the layout of the
    classifier decides, then the kind of file.
    """
    best: dict[str, tuple[tuple, _Copy]] = {}
    for source in ("ppcls", *sources_of(model_name)):
        names = {key: key for key in shapes}
        if source != "ppcls":
            names = key_map(source, model_name, shapes)
        required = {key: name for key, name in names.items() if key not in ignored}
        is_torch = source in TORCH_SOURCES
        for prefix, count in (_prefixes(entries, set(names.values())) or Counter({"": 0})).items():
            head = entries.get(prefix + names["fc.weight"])
            features = shapes["fc.weight"][0]
            has_layout = head is not None and head.shape[-1 if is_torch else 0 :][:1] == (features,)
            rank = (count, has_layout, is_torch == (kind != "pdparams"))
            if prefix not in best or rank > best[prefix][0]:
                found = {key: entries.get(prefix + name) for key, name in required.items()}
                fit = 0 if None in found.values() else 1
                if fit and all(key in HEAD or list(e.shape) == shapes[key] for key, e in found.items() if e):
                    fit = 2
                best[prefix] = rank, _Copy(prefix, source, count, names, fit)
    return [copy for _, copy in best.values()]


def _prefixes(keys: Iterable[str], names: set[str]) -> Counter[str]:
    """Count, for each prefix of whole components, the keys that are the prefix and a name."""
    longest = max(map(len, names))
    found: Counter[str] = Counter()
    for key in keys:
        for place in (match.end() for match in re.finditer(r"^|[./]", key)):
            if len(key) - place <= longest and key[place:] in names:
                found[key[:place]] += 1
    return found


def _choose(
    path: Path,
    complete: list[_Copy],
    entries: dict[str, Entry],
    averaged: bool,
    options: OptionNames,
    notes: list[str],
) -> _Copy:
    """Return the copy to load, and add a note about averages. Raises WeightsError if it is not clear."""

    def updates(copy: _Copy) -> int | None:
        """Return the number of updates that torch's AveragedModel keeps beside its module."""
        for match in re.finditer(r"(^|(?<=[./]))module\.", copy.prefix):
            count = entries.get(f"{copy.prefix[: match.start()]}n_averaged")
            if count is not None and count.shape == ():
                return int(count.read())
        return None

    def is_average(copy: _Copy) -> bool:
        return _names_average(copy.prefix) or updates(copy) is not None

    averages = [copy for copy in complete if is_average(copy)]
    raw = [copy for copy in complete if not is_average(copy)]
    updated = [copy for copy in averages if updates(copy) != 0]
    if averages and not raw and not averaged:
        raise WeightsError(
            f"{path} holds an average of the weights ({_place(averages[0])}), and not the raw ones that "
            f"{options.raw} requests. Leave it out."
        )
    chosen = updated if updated and averaged else raw or averages
    if len(chosen) > 1:
        raise WeightsError(
            f"{path} holds the weights of {len(chosen)} networks like this one, under "
            f"{' and '.join(_place(copy) for copy in chosen)}. Save the right ones in a file of their own."
        )
    place = _place(chosen[0])
    if chosen == updated:
        others = f"; {options.raw} takes the raw weights ({_place(raw[0])})" if raw else ""
        notes.append(f"the moving average of the weights is used ({place}){others}")
    elif averages:
        reason = f"as {options.raw} requests" if updated else "its average was never updated"
        notes.append(f"the {'raw weights are' if raw else 'average is'} used ({place}): {reason}")
    return chosen[0]


def _names_average(text: str) -> bool:
    return not AVERAGE_WORDS.isdisjoint(re.split(r"[^a-z]+", text.lower()))


def _place(copy: _Copy) -> str:
    return f'"{copy.prefix}"' if copy.prefix else "no prefix"


def _rename(
    entries: dict[str, Entry], copy: _Copy, features: set[str], ignored: Sequence[str]
) -> tuple[dict[str, Entry], list[str]]:
    """Return the entries below the copy's prefix with own keys and layout, and the groups of all others.

    A classifier to ignore is left out, also one of other layers: all that is in modules beside those of the
    features.
    """
    own = {theirs: ours for ours, theirs in copy.names.items()}
    result, left_out = {}, Counter[str]()
    place = re.split(r"(?<=[./])", copy.prefix)
    for key, entry in entries.items():
        name = key.removeprefix(copy.prefix)
        if not key.startswith(copy.prefix) or "/" in name:
            parts = re.split(r"(?<=[./])", key)
            shared = next(i for i, part in enumerate(parts) if part != place[i])
            left_out["".join(parts[: shared + 1]).rstrip("./")] += 1
        elif name.endswith(".num_batches_tracked") or own.get(name, "") in ignored:
            continue
        elif ignored and name not in own and _module(name) not in features:
            left_out[f"{copy.prefix}{name}"] += 1
        else:
            ours = own.get(name, name)
            is_transposed = ours in TRANSPOSED and copy.source in TORCH_SOURCES
            result[ours] = transposed(entry) if is_transposed else entry
    return result, [f"{group} ({count})" if count > 1 else group for group, count in left_out.items()]


def _module(name: str) -> str:
    """Return the first component of a name, with 0 for each number in it."""
    return re.sub(r"\d+", "0", name.partition(".")[0])


def transposed(entry: Entry) -> Entry:
    """Return an entry that reads the transposed array."""
    return Entry(entry.shape[::-1], entry.dtype, lambda: entry.read().T)
