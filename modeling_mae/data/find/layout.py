"""What the names of folders say: which are splits, which are folds, and which hold masks of the images beside them."""

import re
from collections import defaultdict
from collections.abc import Collection, Container, Iterable

from ..read.endings import MASK_WORDS


SPELLINGS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}
FOLD = re.compile(r"(?i)(k[-_ ]?fold|fold|cv)[-_ ]?\d+|\d+[-_ ]?fold")
MASK_NAMES = re.compile(rf"(?i){MASK_WORDS}|segmentation(class|object)|gt(fine|coarse)")  # the whole name
IMAGE_NAMES = re.compile(r"(?i)images?|imgs?|(jpeg|png|rgb)[-_ ]?images?|leftimg8bit")
MASK_WORD, IMAGE_WORD = re.compile(rf"(?i){MASK_WORDS}"), re.compile(r"(?i)images?|imgs?")
ABBREVIATED = {"Tr": "train", "Ts": "test", "trn": "train", "tst": "test", "holdout": "test"}
SET = re.compile("(?i)(?<=.)(set|data|images?|imgs?|folder|dir)$")  # trainset
NUMBERED = re.compile(r"^\d+[-_. ]*(?=\*)")  # 1_train
SHORT = re.compile("^(images?)(Tr|Ts)$")
WORDS = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|\d+")  # `labelsTr` is labels, Tr


def split_of(name: str) -> str | None:
    """train, validation or test where `name` is a usual spelling of one, in any case."""
    return next((split for split, names in SPELLINGS.items() if name.lower() in names), None)


def above(folder: str) -> list[str]:
    """The folder and those that it lies in, the topmost first: `a`, `a/b`, `a/b/c`."""
    parts = folder.split("/")
    return ["/".join(parts[:count]) for count in range(1, len(parts) + 1)]


def lies_in(folder: str, folders: Container[str]) -> bool:
    return any(place in folders for place in above(folder))


def name_of(folder: str) -> str:
    return folder.rpartition("/")[2]


def splits_among(folders: Iterable[str], asked: str | None = None) -> dict[str, str]:
    """The folders that are splits, with the split each is: of every path the topmost. `asked` is a split, too."""
    splits = {}
    for folder in folders:
        for place in above(folder):
            name = name_of(place)
            known = split_of(name) or (asked if name == asked else None)
            if known:
                splits[place] = known
                break
    return splits


def folds_among(folders: Iterable[str], splits: Container[str]) -> list[str]:
    """Folders of a cross-validation, two or more beside each other, that lie in no split."""
    folds = defaultdict(set)
    for folder in folders:
        for place in above(folder):
            if place in splits:
                break
            if FOLD.fullmatch(name_of(place)):
                folds[place.rpartition("/")[0]].add(place)
                break
    return sorted(fold for beside in folds.values() if len(beside) > 1 for fold in beside)


def perhaps_splits(folders: Iterable[str]) -> list[str]:
    """Folders beside each other such as train2017 and val2017, or images_train and images_val, which may be splits or
    classes. At the top the first words are enough: `train station` and `test tube` are asked about, too."""
    groups: dict[tuple[str, str], dict[str, str]] = defaultdict(dict)  # by what the names share
    for place in {place for folder in folders for place in above(folder)}:
        parent, _, name = place.rpartition("/")
        for word in re.finditer("[A-Za-z]+", SHORT.sub(r"\1-\2", name)):
            short = SET.sub("", word[0])
            known = split_of(ABBREVIATED.get(short, short))
            if known:
                rest = NUMBERED.sub("", f"{word.string[: word.start()]}*{word.string[word.end() :]}")
                groups[parent, rest][place] = known
                if not parent and not word.start():
                    groups["", ""][place] = known
    unclear = (places for places in groups.values() if len(set(places.values())) > 1)
    return sorted({place for places in unclear for place in places})


def masks_among(folders: Iterable[str]) -> dict[str, str]:
    """The folders that hold masks, each with a folder beside it that holds their images.

    A folder called masks, labels, annotations or the like holds masks beside one called images; `ground_truth` beside
    any other; and `train_masks` beside `train` or `train_images`. Alone, or beside folders of other names, each of
    these names is a class.
    """
    beside: dict[str, dict[str, str]] = defaultdict(dict)
    for place in sorted({place for folder in folders for place in above(folder)}):
        parent, _, name = place.rpartition("/")
        beside[parent][name] = place
    masks = {}
    for siblings in beside.values():
        for name, place in siblings.items():
            images = _images_of(name, siblings)
            if images is not None:
                masks[place] = images
    return masks


def _images_of(name: str, siblings: dict[str, str]) -> str | None:
    """Of the folders beside a folder called `name` the one that has its images; None if it is no folder of masks."""
    words = WORDS.findall(name)
    rest = [word.lower() for word in words if not MASK_WORD.fullmatch(word)]
    alone = MASK_NAMES.fullmatch(name)
    if not alone and len(rest) == len(words):
        return None
    others = {other: place for other, place in siblings.items() if other != name}
    if not alone:
        stems = {
            other: [word.lower() for word in WORDS.findall(other) if not IMAGE_WORD.fullmatch(word)]
            for other in others
        }
        return next((others[other] for other, stem in stems.items() if rest and stem == rest), None)
    named = [other for other in others if IMAGE_NAMES.fullmatch(other)]
    truth = sorted(others, key=lambda other: split_of(other) is None) if "truth" in name.lower() else []
    return next((others[other] for other in [*named, *truth]), None)


def class_names(folders: Collection[str], splits: Container[str]) -> list[str]:
    """For each folder the class of its images: the name of the nearest that is no split; empty if there is none."""
    return [
        next((name_of(place) for place in reversed(above(folder)) if place not in splits), "") for folder in folders
    ]
