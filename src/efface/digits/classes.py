"""The data sets that there are digits models of, and the names of their classes."""

from efface.concept import table
from efface.errors import unknown

CLASSES = {dataset: tuple(table(f"digits:{dataset}")) for dataset in ("mnist", "fashion")}  # names, as in the tables


def classes(dataset: str) -> tuple[str, ...]:
    """Return the names of a data set's classes, in the order of their numbers. Raises UnknownName."""
    if dataset not in CLASSES:
        raise unknown("data set", dataset, CLASSES)
    return CLASSES[dataset]


def class_number(dataset: str, name: str) -> int:
    """Return the number of a class. Raises UnknownName."""
    names = classes(dataset)
    if name not in names:
        raise unknown(f"class of {dataset}", name, names)
    return names.index(name)
