"""Which split and class a picture has, by the names of its file and folders: one rule for all.

It is the Hugging Face Hub's documented one ("File names and splits"): a keyword, delimited by
anything that is no letter, in the name of a file or folder. What names no split at all is dealt
out by name, 80:10:10; what names one anywhere is never dealt out without a word.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatch

import numpy as np

from maetok_lab.hints import check_choice, counted, some
from maetok_lab.identity import hash_of
from maetok_lab.walking import printable

SPLITS = ("train", "val", "test")
KEYWORDS = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "dev": "val",
    "test": "test",
    "testing": "test",
    "eval": "test",
    "evaluation": "test",
}
LEFT_OUT = ""  # the split of what is in none
_ADVICE = 'name them by hand: split_names={"train": "PATTERN", "val": "PATTERN", "test": "PATTERN"}'

Patterns = Mapping[str, Sequence[str]]  # by split: names of files, folders or values, with * and ?


@dataclass
class Placement:
    """The split and class of every picture of a source, and what is to be said about them."""

    splits: list[str]  # "train", "val", "test" or LEFT_OUT
    classes: list[str]  # "" where no folder says one
    notices: list[str] = field(default_factory=list)
    drawn: bool = False  # no name says the splits: they were dealt out
    # what splits are drawn by, where they have to be: class folder and file of each picture
    draw_names: Callable[[], list[str]] = list

    def categories(self) -> list[str | None]:
        """What each picture's class is called: `all` where no folder says one.

        None for one in no class while others are in some: it has no label.
        """
        in_classes = [name for name, split in zip(self.classes, self.splits) if split != LEFT_OUT]
        nameless = None if any(in_classes) else "all"
        category_of = {name: printable(name) or nameless for name in set(self.classes)}
        return [category_of[name] for name in self.classes]


def named_split(name: str) -> str | None:
    """The split that a name says, such as "cifar10-train" or "val2017"; None for none or several.

    Case does not matter, and digits delimit as well.
    """
    splits = _keywords_in(name)
    return splits.pop() if len(splits) == 1 else None


def _keywords_in(name: str) -> set[str]:
    """All splits that the words of a name say."""
    words = re.split(r"[\W\d_]+", name.lower())
    return {KEYWORDS[word] for word in words if word in KEYWORDS}


def drawn_split(name: str) -> str:
    """Draw a split from a relative file name: 80% train, 10% val, 10% test, alike everywhere."""
    fraction = place_of(name)
    if fraction < 0.8:
        return "train"
    return "val" if fraction < 0.9 else "test"


def place_of(name: str) -> float:
    """A number in [0, 1) that a name alone decides, so that a new picture moves no other one."""
    return int(hash_of([name.encode("utf-8", "surrogateescape")])[:8], 16) / 2**32


def read_patterns(split_names: Mapping[str, str | Sequence[str]] | None) -> dict[str, list[str]]:
    """What a person wrote as `split_names`, as lists. Raises ValueError for what is no split."""
    if split_names is not None and not isinstance(split_names, Mapping):
        raise ValueError(f'split_names must be like {{"val": "dev*"}}, not {split_names!r}')
    patterns = {}
    for split, names in (split_names or {}).items():
        check_choice(split, SPLITS, "key of split_names")
        patterns[split] = [names] if isinstance(names, str) else names
        if not isinstance(names, str | list | tuple) or not all(
            isinstance(name, str) for name in patterns[split]
        ):
            raise ValueError(
                f"split_names[{split!r}] must be a name or a list of them, not {names!r}"
            )
    return patterns


def matched_split(names: Sequence[str], patterns: Patterns) -> tuple[str, int] | None:
    """The first of `names` that a pattern fits, case aside: its split and its place among them."""
    for place, name in enumerate(names):
        for split, choices in patterns.items():
            if any(fnmatch(name.lower(), choice.lower()) for choice in choices):
                return split, place
    return None


# Folders of pictures ------------------------------------------------------------------------------


def place_pictures(folders: Sequence[str], names: Sequence[str], patterns: Patterns) -> Placement:
    """Splits and classes of pictures in a tree of folders.

    `folders` "a/b" and `names` "c.png" of every picture, relative to the source. The class is the
    first folder that is neither the split's nor around all of them.
    """
    # there are far fewer folders than pictures: what a path says is found out once for each
    parts = {folder: folder.split("/") if folder else [] for folder in set(folders)}
    notices: list[str] = []
    if patterns:
        splits, level = _by_hand(folders, names, parts, patterns)
    else:
        splits, level = _by_name(folders, names, parts, notices)
    rest = _below_the_split(parts, level)
    class_of = {folder: inside[0] if inside else "" for folder, inside in rest.items()}

    def draw_names() -> list[str]:
        """Class folder and file of every picture."""
        prefix = {folder: "".join(f"{part}/" for part in inside) for folder, inside in rest.items()}
        return [printable(prefix[folder] + name) for folder, name in zip(folders, names)]

    return Placement(
        splits or list(map(drawn_split, draw_names())),
        [class_of[folder] for folder in folders],
        notices,
        splits is None,
        draw_names,
    )


def leave_out_strays(placed: Placement, folders: Sequence[str], names: Sequence[str]) -> None:
    """Leave out pictures that are in no split, or beside the class folders of theirs.

    Raises ValueError when they are most of all pictures, or of a split's.
    """
    count = len(placed.splits)
    strays = [i for i in range(count) if placed.splits[i] == LEFT_OUT]
    if 2 * len(strays) > count:
        raise ValueError(
            f"{len(strays)} of {count} pictures are in no split"
            f" ({_path(folders, names, strays[0])}): {_ADVICE}"
        )
    _say_strays(placed, folders, names, strays, "in no split")
    # pictures that were dealt out lie in the same folders, whatever split they came to
    for split in ["train, val and test"] if placed.drawn else SPLITS:
        rows = [i for i in range(count) if placed.drawn or placed.splits[i] == split]
        beside = [i for i in rows if not placed.classes[i]]
        if not beside or len(beside) == len(rows):
            continue
        if 2 * len(beside) > len(rows):
            raise ValueError(
                f"{len(beside)} of {len(rows)} pictures of {split} lie beside class folders"
                f" ({_path(folders, names, beside[0])}): give them a folder of their own"
            )
        for i in beside:
            placed.splits[i] = LEFT_OUT
        _say_strays(placed, folders, names, beside, f"beside the class folders of {split}")


def _by_hand(
    folders: Sequence[str], names: Sequence[str], parts: Mapping[str, list[str]], patterns: Patterns
) -> tuple[list[str], dict[str, int]]:
    """Splits as a person named them, and by folder the place of the part that was matched."""
    found = {folder: matched_split(inside, patterns) for folder, inside in parts.items()}
    splits = []
    for folder, name in zip(folders, names):
        match = found[folder] or matched_split([name, f"{folder}/{name}"], patterns)
        splits.append(match[0] if match else LEFT_OUT)
    return splits, {folder: match[1] for folder, match in found.items() if match}


def _by_name(
    folders: Sequence[str], names: Sequence[str], parts: Mapping[str, list[str]], notices: list[str]
) -> tuple[list[str] | None, dict[str, int]]:
    """Splits by the rule, and by folder the place of the part that names its split.

    None where no names say the splits of all pictures.
    """
    level = _split_level(list(parts.values()))
    if level is not None:
        split_of = {}
        for folder, inside in parts.items():
            split = named_split(inside[level]) if len(inside) > level else None
            split_of[folder] = split or LEFT_OUT
        _say_what_was_guessed(level, parts, notices)
        return [split_of[folder] for folder in folders], dict.fromkeys(parts, level)

    # no folder says it: the names of the files may, if all of them do
    splits = [named_split(name) for name in names]
    if all(splits):
        return splits, {}

    # they will be dealt out: if something names a split after all, it is said
    odd = sorted({part for inside in parts.values() for part in inside if _keywords_in(part)})
    if odd:
        notices.append(
            f"{some(odd)} is read as a class, since it says no one split, or other folders beside"
            f" it say none: splits are drawn by file name, 80:10:10. If that is wrong, {_ADVICE}"
        )
    elif any(splits):
        odd = [name for name, split in zip(names, splits) if split]
        notices.append(
            f"some file names say a split ({some(odd)}), others do not: splits are drawn by file"
            f" name, 80:10:10. If that is wrong, {_ADVICE}"
        )
    return None, {}


def _split_level(trees: list[list[str]]) -> int | None:
    """The depth at which folders are splits: where all of them name one, and the most different.

    Beside `train` and `val` as such, other folders may lie, and files beside any: they are in no
    split.
    """
    best = None
    most = 0
    deep = [tree for tree in trees if tree]
    for level in range(max(map(len, trees))):
        names = {tree[level] for tree in deep if len(tree) > level}
        splits = {name: named_split(name) for name in names}
        reached = all(len(tree) > level for tree in deep)
        plain = {split for name, split in splits.items() if is_plain(name)}
        is_level = (reached and all(splits.values())) or len(plain) > 1
        count = len(set(splits.values()) - {None})
        if is_level and count > most:
            best = level
            most = count
    return best


def is_plain(name: str) -> bool:
    """Whether a name is a keyword and nothing else but a number: val2017."""
    return name.lower().rstrip("0123456789") in KEYWORDS


def _say_what_was_guessed(level: int, parts: Mapping[str, list[str]], notices: list[str]) -> None:
    """Folders that are no plain keyword might be classes: it is said how they were read."""
    names = {inside[level] for inside in parts.values() if len(inside) > level}
    guessed = {name: named_split(name) for name in sorted(names) if not is_plain(name)}
    guessed = {name: split for name, split in guessed.items() if split}
    if guessed:
        words = ", ".join(f"{name} as {split}" for name, split in list(guessed.items())[:4])
        notices.append(f"folders are read as splits: {words}. If they are none, {_ADVICE}")


def _below_the_split(
    parts: Mapping[str, list[str]], level: Mapping[str, int]
) -> dict[str, list[str]]:
    """By folder, what is left of its path without the split's part and what is around all classes.

    A folder around all class folders, as archives have it when they are unpacked, is no class.
    """
    rest = {}
    for folder, inside in parts.items():
        place = level.get(folder, len(inside))
        rest[folder] = inside[:place] + inside[place + 1 :]
    while True:
        deep = [inside for inside in rest.values() if inside]
        inner = [inside[1] for inside in deep if len(inside) > 1]
        # one folder with another inside it is a class; one with several around pictures is not
        is_around = len({inside[0] for inside in deep}) == 1
        if not is_around or not (len(set(inner)) > 1 or (inner and len(inner) == len(deep))):
            return rest
        rest = {folder: inside[1:] for folder, inside in rest.items()}


def _say_strays(
    placed: Placement, folders: Sequence[str], names: Sequence[str], rows: Sequence[int], where: str
) -> None:
    if rows:
        example = _path(folders, names, rows[0])
        placed.notices.append(f"{counted(len(rows), 'picture')} {where} left out ({example})")


def _path(folders: Sequence[str], names: Sequence[str], i: int) -> str:
    return f"{folders[i]}/{names[i]}" if folders[i] else names[i]


# Shards -------------------------------------------------------------------------------------------


def split_of_shards(paths: Sequence[str], patterns: Patterns) -> tuple[list[str | None], list[str]]:
    """The split of each Parquet file or tar, by its name, else its folders'; and notices.

    None where none of all names says one: then rows are dealt out. A shard without a split among
    others with one is left out.
    """
    splits = []
    for path in paths:
        parts = path.split("/")[::-1]  # the file's own name goes before its folders'
        parts[0] = parts[0].rpartition(".")[0]
        if patterns:
            match = matched_split([path, *parts], patterns)
            splits.append(match[0] if match else None)
        else:
            splits.append(next(filter(None, map(named_split, parts)), None))
    if not any(splits):
        return splits, []
    odd = [path for path, split in zip(paths, splits) if split is None]
    notices = []
    if odd:
        notices.append(
            f"{counted(len(odd), 'shard')} left out ({some(odd)}): the names of others say a split."
            f" If that is wrong, {_ADVICE}"
        )
    return [split or LEFT_OUT for split in splits], notices


# Splits that are not there -----------------------------------------------------------------------


def leave_out_unlabelled_val(splits: np.ndarray, has_class: np.ndarray) -> str | None:
    """Leave out a `val` without classes beside a `train` with them; -> a notice of it.

    ImageNet's own archive is such: its val is one flat folder. splits (n,) are changed in place,
    has_class (n,) is bool.
    """
    val = splits == "val"
    if not val.any() or has_class[val].any() or not has_class[splits == "train"].any():
        return None
    splits[val] = LEFT_OUT
    return (
        f"{counted(int(val.sum()), 'picture')} of val left out: those of train have classes, these"
        " none. Folders as in train give them some"
    )


def cut_val(splits: np.ndarray, draw_names: Callable[[], Sequence[str]]) -> str | None:
    """Give a source without `val` one: a tenth of `train`, drawn by name; -> a notice of it.

    splits (n,) are changed in place.
    """
    train = np.flatnonzero(splits == "train")
    if (splits == "val").any() or len(train) < 2:
        return None
    names = draw_names()
    places = np.array([place_of(names[row]) for row in train])
    chosen = (places >= 0.8) & (places < 0.9)
    if not chosen.any():
        chosen[np.abs(places - 0.85).argmin()] = True
    splits[train[chosen]] = "val"
    return (
        f"it has no split val: {counted(int(chosen.sum()), 'picture')} of train, drawn by name, are"
        " taken out of train for it"
    )


def stand_in(split: str, splits: np.ndarray, labelled: np.ndarray) -> tuple[str, str | None]:
    """The split that is read for `split`, and a notice: val, for a test that is not there.

    Nor is it where none of its pictures has a label. `labelled` is bool (n,), as `splits` is.
    """
    rows = splits == split
    if split != "test" or labelled[rows].any() or not (splits == "val").any():
        return split, None
    reason = "its test pictures have no labels" if rows.any() else "it has no split test"
    return "val", f"{reason}: val stands for it"
