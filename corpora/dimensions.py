"""Continuous annotations: arousal, valence, dominance or any numeric column, on the scale that a corpus has them on.

What is trained on is mapped to 0..1: `(value - low) / (high - low)`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas
import yaml
from datasets import Dataset

from exhubert.corpora.metadata import COLUMN_NAMES, DIMENSIONS, RESERVED_COLUMNS, SEGMENT_COLUMNS, text_of
from exhubert.corpora.registry import check_scale, corpus_key, corpus_or_none
from exhubert.utils.text import nearest

TEXT, OUTSIDE, EQUAL = "text in a numeric column", "number outside the scale", "the same number in all clips"
ALIKE = 0.6  # from there on a column is named for a target that is not there
NO_NUMBERS = (*COLUMN_NAMES, *SEGMENT_COLUMNS, *RESERVED_COLUMNS, "corpus", "split", "language", "content_hash")


class Problem(NamedTuple):
    """Why a column cannot be a dimension: in which row, None for all of them; a few words; and what it is there."""

    row: int | None
    kind: str
    detail: str


def read_numbers(values: Iterable[object]) -> tuple[np.ndarray, np.ndarray]:
    """Returns a column as float64, NaN where there is nothing or no number; and where there is text, bool."""
    text = text_of(pandas.Series(list(values), dtype=object))
    numbers = pandas.to_numeric(text, errors="coerce").to_numpy(dtype=float, copy=True)
    return numbers, np.isnan(numbers) & ~text.str.lower().isin(("", "nan")).to_numpy()


def column_problems(values: Sequence[object], scale: Sequence[float] | None) -> list[Problem]:
    """Returns what is wrong with a column of numbers: text, what is outside of its scale (if known), all equal."""
    numbers, text = read_numbers(values)
    low, high = (-np.inf, np.inf) if scale is None else scale
    outside = (numbers < low) | (numbers > high) | np.isinf(numbers)
    span = "" if scale is None else f", outside its scale, {shown(scale)}"
    problems = [Problem(row, TEXT, f"is {values[row]!r}, which is no number") for row in np.flatnonzero(text).tolist()]
    problems += [Problem(row, OUTSIDE, f"is {values[row]}{span}") for row in np.flatnonzero(outside).tolist()]
    known = numbers[~np.isnan(numbers)]
    if len(known) and known.min() == known.max():
        which = f"all {len(known):,} clips that have it" if len(known) > 1 else "the one clip that has it"
        problems.append(Problem(None, EQUAL, f"is {known[0]:g} in {which}"))
    return problems


def shown(scale: Sequence[float]) -> str:
    """A scale in words: 1 to 7."""
    return f"{scale[0]:g} to {scale[1]:g}"


def scale_of(dimension: str, corpus: str, key: str, scales: Mapping[str, Any]) -> tuple[float, float] | None:
    """Returns the scale of a corpus's dimension, low and high end; None where nobody states it.

    Args:
        dimension: the column.
        corpus: the name of the corpus, by which `scales` may know it.
        key: its key in the registry, or its name where that does not know it.
        scales: of a recipe, `{dimension: [low, high]}` for all corpora, or `{corpus: {dimension: [low, high]}}` for
            one, which wins; both win over the registry.
    """
    known = corpus_or_none(key)
    for name, own in scales.items():
        if isinstance(own, Mapping) and dimension in own:
            named = corpus_or_none(name)
            if name == corpus or (known and named and known.key == named.key):
                return tuple(own[dimension])
    given = scales.get(dimension)
    return tuple(given) if isinstance(given, Sequence) else registered_scale(dimension, key)


def read_scales(text: str) -> dict[str, Any]:
    """Reads the option `--scales`, YAML: a table as `scale_of` takes it. Raises ValueError for anything else."""
    scales: Any = text
    with contextlib.suppress(yaml.YAMLError):
        scales = yaml.safe_load(text)
    if not isinstance(scales, dict):
        raise ValueError(f"--scales is {scales!r}; a table such as '{{arousal: [1, 7]}}' is needed")
    return scales


def scales_of(scales: Mapping[str, Any], dimensions: Sequence[str]) -> dict[str, Any]:
    """The part of `--scales` that is about a model's dimensions: another model may have others."""
    parts = {name: scales_of(value, dimensions) if isinstance(value, dict) else value for name, value in scales.items()}
    return {name: value for name, value in parts.items() if name in dimensions or isinstance(value, dict)}


def registered_scale(dimension: str, key: str) -> tuple[float, float] | None:
    """Returns the scale of a corpus's dimension by the registry; None where it states none."""
    known = corpus_or_none(key)
    scale = None if known is None else known.scales.get(dimension)
    return None if scale is None else (scale[0], scale[1])


def dimension_columns(columns: Sequence[str], key: str) -> list[str]:
    """Returns which of a corpus's columns are known to be dimensions: by their usual names, or by the registry."""
    known = corpus_or_none(key)
    names = dict.fromkeys((*DIMENSIONS, *(known.scales if known else ())))
    return [name for name in names if name in columns]


def check_scales(scales: Mapping[str, Any], targets: Sequence[str], corpora: Sequence[str] | None = None) -> None:
    """Looks at the `scales` of a recipe; see `scale_of`.

    Args:
        scales: as the recipe has them.
        targets: the dimensions that it trains.
        corpora: the names of its corpora; None: whichever. Others of the registry may be among the scales.

    Raises:
        ValueError: for a scale that is none, and for one of nothing that the recipe has.
    """
    for name, value in scales.items():
        alone = name in targets or not isinstance(value, Mapping)
        if not alone and corpora is not None:
            named = corpus_or_none(name)
            if name not in corpora and named is None:
                raise ValueError(f"scales: {name!r} is no corpus; there are {', '.join(corpora)}")
        for dimension, scale in ({name: value} if alone else value).items():
            where = "scales" if alone else f"scales of {name}"
            if dimension not in targets:
                raise ValueError(f"{where}: {dimension!r} is none of the targets, {', '.join(targets) or '(none)'}")
            check_scale(where, dimension, scale)


def read_dimensions(
    read: Mapping[str, tuple[Dataset, str]], targets: Sequence[str], scales: Mapping[str, Any], training: bool
) -> dict[str, np.ndarray]:
    """Returns the targets of every corpus's clips on 0..1, float64 `(clips, targets)`, NaN where there is none.

    Args:
        read: the rows of each corpus and its key, by its name.
        targets: columns.
        scales: see `scale_of`.
        training: whether they are trained on; else numbers that are all equal are read as they are.

    Raises:
        ValueError: for text, a number outside its scale, numbers that are all equal, or a scale that nobody states.
    """
    values = {name: np.full((len(dataset), len(targets)), np.nan) for name, (dataset, _) in read.items()}
    for name, (dataset, key) in read.items():
        for number, target in enumerate(targets):
            cells = dataset[target][:] if target in dataset.column_names else []
            numbers, _ = read_numbers(cells)
            scale = scale_of(target, name, key, scales)
            in_recipe = f"`scales: {{{name}: {{{target}: [<low>, <high>]}}}}`"
            for row, kind, detail in column_problems(cells, scale):
                if kind == EQUAL and not training:
                    continue
                where = "" if row is None else f" of {dataset['file_name'][row]}"
                remedy = {
                    TEXT: "correct it, or leave the cell empty",
                    OUTSIDE: f"correct it, or leave the cell empty; if the scale is another, say so, {in_recipe}",
                    EQUAL: "from that nothing can be learned; leave it out of `targets`, or this corpus out",
                }[kind]
                raise ValueError(f"corpus {name!r}: {target}{where} {detail}; {remedy}")
            if np.isnan(numbers).all():
                continue
            if scale is None:
                span = f"its numbers are {np.nanmin(numbers):g} to {np.nanmax(numbers):g}"
                raise ValueError(
                    f"corpus {name!r}: the scale of {target} is not known, {span}; say it in the recipe, {in_recipe}, "
                    "or in an evaluation as --scales"
                )
            own = registered_scale(target, key)
            if own not in (None, scale):
                said = f"`scales` says; the registry has {shown(own)}"
                print(f"corpus {name!r}: {target} is read on {shown(scale)}, as {said}")
            values[name][:, number] = (numbers - scale[0]) / (scale[1] - scale[0])
    return values


def check_targets(
    read: Mapping[str, tuple[Dataset, str]],
    values: Mapping[str, np.ndarray],
    targets: Sequence[str],
    alone: bool,
    training: bool,
) -> None:
    """Looks whether corpora have what is to be trained or measured.

    Args:
        read, targets, training: as in `read_dimensions`, whose result `values` is.
        alone: there is nothing but dimensions.

    Raises:
        ValueError: in training for a target that no corpus has; with dimensions alone for a corpus without any.
    """
    known = {name: ~np.isnan(table).all(axis=0) for name, table in values.items()}
    without = [name for name, has in known.items() if not has.any()]
    invented = "values are never invented from class words"
    nobody = [target for number, target in enumerate(targets) if not any(has[number] for has in known.values())]
    if not training:
        if without and alone:
            names = ", ".join(map(repr, without))
            raise ValueError(f"corpus {names}: no clip has {' or '.join(targets)}; {invented}; leave it out")
        return
    if nobody:
        columns = {column for dataset, _ in read.values() for column in dataset.column_names} - {*NO_NUMBERS, *targets}
        alike = nearest(nobody[0], columns, ALIKE)
        if alike:
            raise ValueError(f"no corpus has numbers in a column {nobody[0]!r}; the nearest is {alike!r}")
        if len(without) < len(known):
            remedy = "leave it out of `targets`, or add a corpus that has it"
            raise ValueError(f"no corpus has numbers in a column {nobody[0]!r}; {invented}; {remedy}")
    if without and (nobody or alone):
        names, has = ", ".join(map(repr, without)), "corpora {} have" if len(without) > 1 else "corpus {} has"
        remedy = "leave it out of `corpora`" if len(without) < len(known) else "leave `targets` out"
        raise ValueError(
            f"{has.format(names)} no {' or '.join(targets)}, and cannot train dimensions; {invented}; {remedy}, or "
            "add such annotations as columns of its metadata"
        )


def shown_scales(
    corpora: Mapping[str, Mapping[str, Dataset]], targets: Sequence[str], scales: Mapping[str, Any]
) -> dict[str, list[float]]:
    """Returns on which scale a model shows each dimension: its corpora's, if it is the same for all; else 0 to 1.

    Args:
        corpora: name -> split -> dataset, as `load_corpora` returns them with `targets`.
        targets: columns.
        scales: see `scale_of`; what it says for all corpora is shown.
    """
    result = {}
    for number, target in enumerate(targets):
        found = set()
        for name, splits in corpora.items():
            parts = list(splits.values())
            if any(row[number] == row[number] for part in parts for row in part["dimensions"][:]):
                named = parts[0].unique("corpus") if "corpus" in parts[0].column_names else []
                found.add(scale_of(target, name, corpus_key(named, name), scales))
        given = scales.get(target)
        same = found.pop() if len(found) == 1 else None
        result[target] = [float(end) for end in (given if isinstance(given, Sequence) else same or (0.0, 1.0))]
    return result
