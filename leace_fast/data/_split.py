"""Texts split by group into those to fit on and those held out."""

from __future__ import annotations

from collections.abc import Iterator

from ._texts import Texts, hash_of, numbered


def split_texts(data: Texts, held_out: float = 0.3) -> tuple[Texts, Texts]:
    """Split into (fit, held out): in each class, the groups whose hash comes first are held out.

    A group is wholly in one part, and what is held out for one concept is held out for all. Of a text with copies in
    groups of both parts, those to fit on stay. The order of both parts is that of the texts' hash.

    Args:
        data: as of `read_texts`.
        held_out: share of the groups of each class to hold out, 0 to 1; one of them at least.

    Raises:
        ValueError: a class has fewer than two groups, or none to fit on, or none held out.

    >>> fit, test = split_texts(Texts(["a", "b", "c", "d"], [(0,), (0,), (1,), (1,)], {"kind": ("x", "y")}))
    >>> fit.labels, test.labels
    ([(1,), (0,)], [(1,), (0,)])
    """
    data = numbered(data)
    held = _groups_held_out(data, held_out)
    order = sorted(range(len(data.texts)), key=lambda place: hash_of(data.texts[place]))
    fitted = [place for place in order if data.groups[place] not in held]
    texts = {data.texts[place] for place in fitted}
    others = [place for place in order if data.groups[place] in held and data.texts[place] not in texts]
    fit, test = (_part(data, places) for places in (fitted, others))
    what = _noun(data)
    for part, why in ((fit, "also bear other labels, for which they are held out"), (test, "are fitted on as well")):
        left = {pair for labels in part.labels for pair in enumerate(labels)}
        if missing := [name for place, index, name in _classes(data) if (place, index) not in left]:
            raise ValueError(f"all {what}s of {', '.join(missing)} {why}, expected {what}s of its own in each class")
    return fit, test


def _groups_held_out(data: Texts, share: float) -> set[int]:
    """The numbers of the groups that are held out for some class."""
    found: set[int] = set()
    for place, index, name in _classes(data):
        of_class = {group for labels, group in zip(data.labels, data.groups, strict=True) if labels[place] == index}
        if len(of_class) < 2:
            raise ValueError(
                f"the class {name} has {len(of_class)} distinct {_noun(data)}, expected 2 or more: one to fit on, one "
                "held out"
            )
        in_order = sorted(of_class, key=lambda group: hash_of(data.group_names[group]))
        found.update(in_order[: max(1, round(share * len(of_class)))])
    return found


def _classes(data: Texts) -> Iterator[tuple[int, int, str]]:
    """Each class: the place of its concept, its number, and its name for errors."""
    for place, (concept, names) in enumerate(data.class_names.items()):
        for index, name in enumerate(names):
            yield place, index, f"{name!r} of {concept!r}"


def _noun(data: Texts) -> str:
    """What a group is, for errors."""
    return "text" if set(data.group_names) == set(data.texts) else "group"


def _part(data: Texts, places: list[int]) -> Texts:
    """Some of the texts, which keep the numbers of their groups."""
    texts, labels, groups = ([column[i] for i in places] for column in (data.texts, data.labels, data.groups))
    return data._replace(texts=texts, labels=labels, groups=groups)
