"""The registry of corpora: one data file each in `known/`, with its facts, labels, protocols and naming scheme."""

from __future__ import annotations

import math
import os
import re
import textwrap
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, fields
from functools import cache
from pathlib import Path
from typing import Any

from exhubert.utils.files import LOADER_OF_OWN_FILES, read_table
from exhubert.utils.text import markdown_table, nearest

FOLDER = Path(__file__).with_name("known")
PARTS = {
    "emoset": "one of EmoSet's 26 corpora, so of EmoSet++'s 37",
    "emoset++": "one of EmoSet++'s 37 corpora, not of EmoSet's 26",
    "unseen": "one of the paper's six unseen corpora",
    "none": "in none of them",
}
KINDS = ("acted", "elicited", "natural", "synthetic")
SCHEME_FIELDS = {"source", "example", "clips", "leave_out", "columns", "tables"}
TABLE_FIELDS = {
    *("files", "separator", "header", "lines", "carry", "encoding"),
    *("clip", "match", "columns", "votes", "required"),
}
HUB_FIELDS = {"dataset", "task"}
PROTOCOL_FIELDS = {"labels", "folds", "splits", "partitions", "speakers", "source", "rule"}
USABLE = {"labels", "folds", "splits", "partitions"}  # what makes a protocol more than a mark


@dataclass(frozen=True)
class Corpus:
    """What is known of a corpus, and how its files say it; the fields are those of its data file.

    `labels` are the corpus's own words, `published` its published counts (clips, speakers, hours), `scales` the low and
    the high end of its numeric annotations, `unverified` the fields that no source at hand confirmed. `scheme` is empty
    where no naming scheme could be established. `hub` is its authors' `dataset` on the Hub, and where that is a
    benchmark the `task` of its `eval.yaml` that UAR answers.
    """

    key: str
    name: str
    part: str
    citation: str
    languages: list[str]
    kind: str
    licence: str
    access: str
    labels: list[str]
    sources: list[str]
    unverified: list[str]
    aliases: list[str] = field(default_factory=list)
    published: dict[str, float] = field(default_factory=dict)
    annotations: dict[str, str] = field(default_factory=dict)
    scales: dict[str, list[float]] = field(default_factory=dict)
    official_split: dict[str, str] = field(default_factory=dict)
    protocols: dict[str, dict[str, Any]] = field(default_factory=dict)
    hub: dict[str, str] = field(default_factory=dict)
    notes: str = ""
    scheme: dict[str, Any] = field(default_factory=dict)
    scheme_unknown: str = ""

    @property
    def label_codes(self) -> dict[str, str]:
        """What the codes of the corpus's file names and tables mean: its own words, empty for those that are none."""
        owners = [self.scheme, *self.scheme.get("tables", [])]
        rules = [owner.get("columns", {}).get("label") for owner in owners]
        tables = [rule["table"] for rule in rules if isinstance(rule, dict) and re.fullmatch(r"\{\w+\}", rule["of"])]
        words = [
            (code.strip(), word or "") for table in tables for key, word in table.items() for code in key.split(",")
        ]
        return {code: word for code, word in words if code != "*" and "{" not in word}

    def is_unverified(self, name: str) -> bool:
        """Whether no source at hand confirmed a field, or an entry of one."""
        return any(name in unverified.split(".") for unverified in self.unverified)


@cache
def load_registry() -> dict[str, Corpus]:
    """Returns every known corpus by its key, in alphabetical order.

    Raises:
        ValueError: if a data file is not as it must be; names the file and the field.
    """
    corpora = {path.stem: read_entry(path) for path in sorted(FOLDER.glob("*.yaml"))}
    owner = {key: key for key in corpora}
    for key, corpus in corpora.items():
        for alias in corpus.aliases:
            if owner.setdefault(alias, key) != key:
                raise ValueError(f"{FOLDER / key}.yaml: the alias {alias!r} is {owner[alias]}'s")
    return corpora


def find_corpus(key: str) -> Corpus:
    """Returns the corpus of a key or alias; upper case, hyphens and blanks do not matter.

    Raises:
        ValueError: for an unknown key; names the nearest.
    """
    corpus = corpus_or_none(key)
    if corpus is None:
        names = _names()
        alike = nearest(_plain(key), names, cutoff=0.4)
        hint = f"; the nearest is {names[alike]!r}" if alike else ""
        raise ValueError(
            f"no corpus {key!r} in the registry{hint} (`exhubert corpora list` shows all). A corpus of your own is "
            "prepared with --table labels.csv"
        )
    return corpus


def corpus_or_none(key: str) -> Corpus | None:
    """As `find_corpus`, with None for an unknown key."""
    name = _names().get(_plain(key))
    return load_registry()[name] if name else None


def no_such_folder(directory: str | os.PathLike[str]) -> str:
    """What is wrong with the name of a corpus folder that is not there, and how a known corpus becomes one."""
    known = corpus_or_none(Path(directory).name)
    remedy = f"; `exhubert corpora prepare {known.key} RAW_DIR {directory}` makes one of {known.name}" if known else ""
    return f"{directory}: no such corpus folder{remedy}"


def corpus_key(values: Sequence[object], folder: str) -> str:
    """Returns which corpus rows are of: what their column `corpus` (`values`) says, if it is one, else `folder`'s name.

    By it are found what a label means in single corpora, and the protocols of the registry.
    """
    named = {str(value) for value in values}
    return named.pop() if len(named) == 1 and corpus_or_none(next(iter(named))) else folder


def folder_name(source: str | os.PathLike[str]) -> str:
    """Returns what a corpus is called: the last part of its path or id, without the suffix of a plain table."""
    return re.sub(r"\.(csv|tsv)$", "", Path(os.path.abspath(source)).name)


def corpora_list(language: str = "", licence: str = "", kind: str = "", part: str = "") -> str:
    """Returns a table of the corpora with this language (a code), licence (a part of its name), kind and part.

    The part `emoset++` has those of `emoset` as well: all 37. `*` marks fields that no source at hand confirmed.

    Raises:
        ValueError: for a kind or part that there is not, or if nothing is left.
    """
    for value, legal in ((kind, KINDS), (part, PARTS)):
        if value and value not in legal:
            raise ValueError(f"{value!r} is none of {', '.join(legal)}")
    rows = []
    for corpus in load_registry().values():
        spoken = not language or language.lower() in corpus.languages
        of_part = part in ("", corpus.part) or (part, corpus.part) == ("emoset++", "emoset")
        if not (spoken and of_part and kind in corpus.kind and _plain(licence) in _plain(corpus.licence)):
            continue
        cells = {
            "languages": " ".join(corpus.languages),
            "kind": corpus.kind,
            "clips": _number(corpus.published.get("clips")),
            "speakers": _number(corpus.published.get("speakers")),
            "licence": textwrap.shorten(corpus.licence, 30, placeholder=" ..."),
        }
        marked = [f"{cell}*" if cell != "-" and corpus.is_unverified(name) else cell for name, cell in cells.items()]
        rows.append([corpus.key, corpus.name, corpus.part, *marked, "yes" if corpus.scheme else "by table"])
    if not rows:
        given = {"language": language, "licence": licence, "kind": kind, "part": part}
        filters = ", ".join(f"{name} {value!r}" for name, value in given.items() if value)
        known = sorted({code for corpus in load_registry().values() for code in corpus.languages})
        hint = f"; languages are given by their codes: {', '.join(known)}" if language not in ("", *known) else ""
        raise ValueError(f"no corpus has {filters}{hint}")
    header = ["key", "name", "part", "languages", "kind", "clips", "speakers", "licence", "file names"]
    table = markdown_table(header, rows, left=(0, 1, 2, 3, 4, 7, 8))
    return f"{table}\n{len(rows)} corpora; * not confirmed by a source at hand; `exhubert corpora show KEY` says more"


def describe(key: str) -> str:
    """Returns everything known of a corpus, for people; `*` marks what no source at hand confirmed.

    Raises:
        ValueError: as `find_corpus`.
    """
    corpus = find_corpus(key)
    published = ", ".join(f"{_number(value)} {name}" for name, value in corpus.published.items())
    lines = {
        "key": ", ".join([corpus.key, *(f"or {alias}" for alias in corpus.aliases)]),
        "part": f"{corpus.part}: {PARTS[corpus.part]}",
        "citation": corpus.citation,
        "languages": ", ".join(corpus.languages),
        "kind": corpus.kind,
        "licence": corpus.licence,
        "access": corpus.access,
        "on the Hub": " task ".join(corpus.hub.values()),
        "published": published or "no counts known",
        "labels": ", ".join(corpus.labels) or "unknown",
        "annotations": "; ".join(f"{name}: {scale}" for name, scale in corpus.annotations.items()),
        "scales": ", ".join(f"{name} {low:g} to {high:g}" for name, (low, high) in corpus.scales.items()),
        "official_split": "none known",
    }
    if split := corpus.official_split:
        lines["official_split"] = f"speaker-{split['speakers']}; {split['rule']} ({split['source']})"
    for name, protocol in corpus.protocols.items():
        usable = "" if USABLE & set(protocol) else ", marked only"
        lines[f"protocol {name}"] = f"speaker-{protocol['speakers']}{usable} ({protocol['source']})"
    if corpus.scheme:
        lines["file names"] = f"{corpus.scheme['example']} ({corpus.scheme['source']})"
        lines["tables read"] = ", ".join(table["files"] for table in corpus.scheme.get("tables", []))
    else:
        lines["file names"] = f"not established: {corpus.scheme_unknown}; give a table (--table labels.csv)"
    lines["notes"] = corpus.notes
    lines["sources"] = "; ".join(corpus.sources)
    width = max(map(len, lines)) + 1
    text = [corpus.name]
    for name, value in lines.items():
        if value:
            title = f"{name}{'*' if corpus.is_unverified(name) else ''}".ljust(width + 1)
            text.append(textwrap.fill(value, 116, initial_indent=title, subsequent_indent=" " * (width + 1)))
    if corpus.unverified:
        text.append(f"* not confirmed by a source at hand: {', '.join(corpus.unverified)}")
    return "\n".join(text)


def read_entry(path: Path) -> Corpus:
    """Reads one data file of the registry.

    Raises:
        ValueError: for an unknown or missing field, a value of the wrong form, or a pattern that is none.
    """
    values = read_table(path, "YAML", LOADER_OF_OWN_FILES)
    _check_fields(path, "the file", values, {spec.name for spec in fields(Corpus)} - {"key"})
    try:
        corpus = Corpus(key=path.stem, **values)
    except TypeError as error:
        raise ValueError(f"{path}: {str(error).removeprefix('Corpus.__init__() ')}") from error
    if corpus.part not in PARTS:
        raise ValueError(f"{path}: part is {corpus.part!r}; it must be one of {', '.join(PARTS)}")
    if not set(corpus.kind.split(" and ")) <= set(KINDS):
        raise ValueError(f"{path}: kind is {corpus.kind!r}; it must be of {', '.join(KINDS)}, joined by `and`")
    for name in corpus.unverified:
        if name.partition(".")[0] not in {spec.name for spec in fields(Corpus)}:
            raise ValueError(f"{path}: unverified names {name!r}, which is no field")
    _check_fields(path, "scales", corpus.scales, set(corpus.scales))
    for name, scale in corpus.scales.items():
        check_scale(f"{path}: scales", name, scale)
    if bool(corpus.scheme) == bool(corpus.scheme_unknown):
        raise ValueError(f"{path}: give either a scheme, or `scheme_unknown` with the reason")
    if corpus.hub:
        _check_fields(path, "hub", corpus.hub, HUB_FIELDS, needed={"dataset"})
    for name, protocol in corpus.protocols.items():
        _check_fields(path, f"protocol {name}", protocol, PROTOCOL_FIELDS, needed={"speakers", "source"})
    if not corpus.scheme:
        return corpus
    _check_fields(path, "scheme", corpus.scheme, SCHEME_FIELDS, needed={"source", "example", "clips"})
    for name in ("clips", "leave_out"):
        patterns_of(path, corpus.scheme, name)
    tables = corpus.scheme.get("tables", [])
    for table in tables:
        _check_fields(path, "a table", table, TABLE_FIELDS, needed={"files", "clip"})
        for name in ("files", "lines"):
            patterns_of(path, table, name)
    for owner in (corpus.scheme, *tables):
        for name, rule in (owner.get("columns", {}) | {"votes": owner.get("votes", "")}).items():
            if isinstance(rule, str):
                continue
            _check_fields(path, name, rule, {"of", "table", "separator"}, needed={"of", "table"})
            for code, value in rule["table"].items():
                if not isinstance(code, str) or not isinstance(value, str | None):
                    raise ValueError(f"{path}: quote {code!r}: {value!r} in the table of {name!r}; codes are text")
    return corpus


def check_scale(where: object, name: str, scale: Any) -> None:
    """Raises ValueError for what is no scale: two finite numbers, the low end and the high end."""
    ends = list(scale) if isinstance(scale, Sequence) and not isinstance(scale, str) else []
    numbers = [end for end in ends if isinstance(end, int | float) and not isinstance(end, bool) and math.isfinite(end)]
    if not len(numbers) == len(ends) == 2 or ends[0] >= ends[1]:
        raise ValueError(f"{where}: {name} is {scale!r}; two numbers are needed, [<low>, <high>], the low end first")


def patterns_of(owner: object, rules: dict[str, Any], name: str) -> list[re.Pattern[str]]:
    """Returns the regular expressions of a field, which may be one or a list, as they are matched: below any folder.

    Raises:
        ValueError: for a pattern that is none; names its `owner`.
    """
    value = rules.get(name, [])
    patterns = []
    for pattern in [value] if isinstance(value, str) else value:
        try:
            patterns.append(re.compile(f"(?:.*/)?(?:{pattern})", re.IGNORECASE))
        except re.error as error:
            raise ValueError(f"{owner}: {pattern!r} is no regular expression ({error})") from error
    return patterns


def _check_fields(path: Path, what: str, values: Any, known: set[str], needed: Collection[str] = ()) -> None:
    if not isinstance(values, dict):
        raise ValueError(f"{path}: {what} is {values!r}; a table `name: value` is needed")
    for name in values:
        if name not in known:
            raise ValueError(f"{path}: {what} has the unknown field {name!r}; there are {', '.join(sorted(known))}")
    for name in sorted(set(needed) - set(values)):
        raise ValueError(f"{path}: {what} lacks the field {name!r}")


@cache
def _names() -> dict[str, str]:
    """Every key, alias and name in plain form, and the key that it stands for."""
    names: dict[str, str] = {}
    for key, corpus in load_registry().items():
        names |= {_plain(name): key for name in (corpus.name, *corpus.aliases, key)}
    return names


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9+]", "", name.lower())


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:,}"
