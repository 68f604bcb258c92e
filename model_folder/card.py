"""The model card: `README.md` of a model folder, with the metadata that the Hub reads.

A card is made from what the folder holds, from what is known of the weights that the model started from, and, after a
training, from the run's recipe and results. It ends in the SHA-256 of all above. A card that does not fit its SHA-256,
or has none, was written by a person: nothing here replaces it.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import re
import shlex
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path, PureWindowsPath
from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData, constants, metadata_load
from huggingface_hub.errors import HFValidationError
from huggingface_hub.file_download import repo_folder_name
from huggingface_hub.utils import validate_repo_id

from exhubert.corpora.registry import Corpus, corpus_or_none
from exhubert.model_folder.card_text import (
    MODEL_LINE,
    architecture,
    citation_section,
    classes_section,
    input_section,
    introduction,
    licence_section,
    limits_section,
    plain,
    results_sections,
    training_sections,
    use_section,
)
from exhubert.utils.files import whole_file, write_text

CARD = "README.md"
WRITTEN_BY = "Written by ExHuBERT for Transformers"
SEAL = re.compile(rf"\n*<!-- {WRITTEN_BY}\b.* ([0-9a-f]{{64}}) -->\s*\Z")
# As their cards on the Hub say: of the checkpoints that the recipes start from, and of their nearest relatives.
LICENCES = {
    "amiriparian/ExHuBERT": "cc-by-nc-sa-4.0",
    "audeering/wav2vec2-large-robust-12-ft-emotion-msp-dim": "cc-by-nc-sa-4.0",
    "facebook/hubert-base-ls960": "apache-2.0",
    "facebook/hubert-large-ll60k": "apache-2.0",
    "facebook/hubert-large-ls960-ft": "apache-2.0",
    "facebook/hubert-xlarge-ll60k": "apache-2.0",
    "facebook/hubert-xlarge-ls960-ft": "apache-2.0",
    "facebook/wav2vec2-xls-r-1b": "apache-2.0",
    "facebook/wav2vec2-xls-r-300m": "apache-2.0",
    "openai/whisper-large-v3": "apache-2.0",
    "openai/whisper-medium": "apache-2.0",
}
LICENCE_KEYS = ("license", "license_name", "license_link")
METRICS = {"uar": ("uar", "UAR"), "accuracy": ("accuracy", "Accuracy"), "macro_f1": ("f1", "Macro-F1")}  # on the Hub


def write_run_card(run: str | os.PathLike[str], results: Mapping[str, Any] | None = None) -> bool:
    """Writes the card of a run folder's `model/` anew, with recipe and results, and copies the run's pictures there.

    Args:
        run: the run folder.
        results: what `results.json` is going to hold, where it is not written yet.

    Returns:
        False if the card there was edited by hand: it is left as it is.
    """
    run = Path(run)
    results = _read_json(run / "results.json") if results is None else results
    pictures = ["curves.png", "reliability.png", *(f"confusion_{corpus}.png" for corpus in results["corpora"])]
    for name in pictures:
        if (run / name).is_file():
            with whole_file(run / "model" / name) as unfinished:
                shutil.copyfile(run / name, unfinished)
    return write_card(
        run / "model",
        known=card_metadata(run / "model" / CARD),
        results=results,
        recipe=yaml.safe_load((run / "recipe.yaml").read_text(encoding="utf-8")),
        corpora=_read_json(run / "environment.json").get("corpora"),
    )


def write_card(folder: Path, **facts: Any) -> bool:
    """Writes a folder's card, at once; `facts` are the arguments of `make_card`.

    Returns:
        False if the card there was edited by hand: it is left as it is.
    """
    if is_edited(folder / CARD):
        return False
    write_text(folder / CARD, _sealed(str(make_card(folder, **facts))))
    return True


def make_card(
    folder: Path,
    name: str = "",
    known: Mapping[str, Any] | None = None,
    results: Mapping[str, Any] | None = None,
    recipe: Mapping[str, Any] | None = None,
    corpora: Mapping[str, Mapping[str, Any]] | None = None,
) -> ModelCard:
    """Returns the card of a model folder. No path, user name or token gets into it.

    Args:
        folder: with `config.json`, `preprocessor_config.json`, the weights, and the pictures if there are any.
        name: of the model; the folder's by default.
        known: of the weights that the model started from: what `source_metadata` or `card_metadata` returned.
        results: what is in `results.json`.
        recipe: as resolved.
        corpora: what `corpus_facts` returned of the training corpora; only their names are known without it.
    """
    name, known = name or folder.resolve().name, known or {}
    config, extractor = _read_json(folder / "config.json"), _read_json(folder / "preprocessor_config.json")
    if corpora is None:
        names = [PureWindowsPath(entry).name.removesuffix(".csv") for entry in (recipe or {}).get("corpora", [])]
        corpora = {corpus: {} for corpus in names}
    entries = {
        corpus: corpus_or_none(corpora.get(corpus, {}).get("key", corpus))
        for corpus in (*corpora, *(results or {}).get("corpora", {}))
    }
    trained_on = {corpus: entries[corpus] for corpus in corpora}
    ids = _dataset_ids(entries)
    before = [dataset for dataset in known.get("datasets", []) if dataset not in [ids[corpus] for corpus in corpora]]
    bases = known.get("base_model", [])
    relation = "finetune" if recipe and bases else known.get("base_model_relation")
    classifies = architecture(config).endswith("Classification")
    languages = [code for corpus, facts in corpora.items() for code in _languages(facts, entries[corpus])]
    licence: dict[str, Any] = {key: known.get(key) for key in LICENCE_KEYS}
    data = ModelCardData(
        **licence,
        language=_unique([*known.get("language", []), *languages]) or None,
        base_model=bases or None,
        base_model_relation=relation,
        datasets=_unique([*known.get("datasets", []), *(ids[corpus] for corpus in corpora)]) or None,
        library_name="transformers",
        pipeline_tag="audio-classification" if classifies else "feature-extraction",
        tags=["speech-emotion-recognition", "speech", "audio", config["model_type"]],
        metrics=[metric for metric, _ in METRICS.values()] if results else None,
        model_name=name if results else None,
        eval_results=_eval_results(results, entries, ids) if results else None,
    )
    sections: dict[str, list[str]] = {
        "Use": [use_section(name, classifies)],
        "Input": [input_section(extractor, classifies)],
    }
    if classifies:
        classes = config.get("id2label") or {"0": "LABEL_0", "1": "LABEL_1"}  # which transformers does not write
        sections["Classes"] = [classes_section([classes[index] for index in sorted(classes, key=int)])]
    if results:
        sections["Results"] = results_sections(folder, name, results, recipe)
    if recipe:
        sections["Training"] = training_sections(recipe, results, corpora, trained_on, before, bases)
    sections["Intended use and limits"] = [limits_section(trained_on)]
    sections["Licence"] = [licence_section(_texts(known.get("license")), bool(corpora or before))]
    sections["Citation"] = [citation_section(trained_on)]
    parts = [f"# {plain(name)}", introduction(folder, config, bases)]
    for title, section in sections.items():
        parts += [f"## {title}", *section]
    return ModelCard(f"---\n{data.to_yaml()}\n---\n\n" + "\n\n".join(parts) + "\n")


def source_metadata(source: str) -> dict[str, Any]:
    """Returns what is known of the weights that a model started from; nothing is asked of the Hub.

    Args:
        source: folder or Hub id. A folder hands down what its card says. A model of the Hub is the base model itself;
            its licence is that of its card in the local cache, else that in `LICENCES`. Of anything else nothing is
            known, and its name, which may be a path, is not used.

    Returns:
        Metadata for `make_card`: `license`, `license_name`, `license_link`, and lists `base_model`, `datasets`,
        `language`, each where it is known.
    """
    if source and Path(source).is_dir():
        return card_metadata(Path(source) / CARD)
    if not _is_hub_id(source):
        return {}
    cached = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=source, repo_type="model")
    if source not in LICENCES and not cached.is_dir():  # a folder that is gone, as likely as not
        return {}
    metadata: dict[str, Any] = {"license": LICENCES[source]} if source in LICENCES else {}
    for card in sorted(cached.glob(f"snapshots/*/{CARD}"), key=os.path.getmtime):
        metadata |= {key: value for key, value in card_metadata(card).items() if key in LICENCE_KEYS}
    return metadata | {"base_model": [source]}


def card_metadata(card: Path) -> dict[str, Any]:
    """Returns what a card hands down to models that start from its weights; nothing if it is no card.

    Data sets and languages are handed down only by cards that were written here: others name those of pre-training.
    """
    try:
        values = metadata_load(card) or {}
        ours = WRITTEN_BY in card.read_text(encoding="utf-8")
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    metadata: dict[str, Any] = {}
    licences = [text for text in _texts(values.get("license")) if re.fullmatch(r"[a-z0-9.-]+", text)]
    if licences:
        metadata["license"] = licences[0] if len(licences) == 1 else licences
        if isinstance(values.get("license_name"), str):
            metadata["license_name"] = values["license_name"]
        if str(values.get("license_link")).startswith("https://"):  # a file's name would lead nowhere from here
            metadata["license_link"] = values["license_link"]
    base_models = [text for text in _texts(values.get("base_model")) if _is_hub_id(text)]
    if base_models:
        metadata["base_model"] = base_models
    if ours:
        metadata |= {key: _texts(values[key]) for key in ("datasets", "language") if key in values}
        if base_models and values.get("base_model_relation") == "finetune":
            metadata["base_model_relation"] = "finetune"
    return metadata


def corpus_facts(corpora: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Returns what a card says of training corpora: `key` in the registry, `clips` by split, `speakers`, `languages`.

    Args:
        corpora: name -> split -> dataset, as `load_corpora` returns them.
    """

    def found(splits: Iterable[Any], column: str) -> list[str]:
        columns = [dataset.unique(column) for dataset in splits if column in dataset.column_names]
        return sorted({str(value) for values in columns for value in values if value})

    facts = {}
    for name, splits in corpora.items():
        keys = found(splits.values(), "corpus")
        facts[name] = {
            "key": keys[0] if len(keys) == 1 and corpus_or_none(keys[0]) else name,
            "clips": {split: len(dataset) for split, dataset in splits.items()},
            "speakers": len(found(splits.values(), "speaker")),
            "languages": found(splits.values(), "language"),
        }
    return facts


def is_edited(card: Path) -> bool:
    """Whether there is a card that a person has written or changed."""
    if not card.is_file():
        return False
    text = card.read_text(encoding="utf-8", errors="replace")
    seal = SEAL.search(text)
    return seal is None or seal[1] != _digest(text[: seal.start()])


def add_section(folder: Path, title: str, text: str) -> None:
    """Puts a section into a folder's card, below how the model is used; one with this title is replaced.

    Whether the card counts as edited by hand stays as it was. A folder without a card, which others made, stays so.
    """
    if not (folder / CARD).is_file():
        return
    edited, card = is_edited(folder / CARD), (folder / CARD).read_text(encoding="utf-8")
    card = _section(title).sub("", card)
    start, heading, rest = card.partition("\n## Input\n")
    card = f"{start.rstrip()}\n\n## {title}\n\n{text.strip()}\n{heading}{rest}"
    write_text(folder / CARD, card if edited else _sealed(card))


def remove_section(folder: Path, title: str) -> None:
    """Takes the section with this title, if there is one, out of a folder's card; as `add_section`."""
    edited, card = is_edited(folder / CARD), (folder / CARD).read_text(encoding="utf-8")
    card = _section(title).sub("", card)
    write_text(folder / CARD, card if edited else _sealed(card))


def hand_down_section(source: Path, folder: Path, title: str) -> None:
    """Puts the section with this title of a source's card, if it has one, into a folder's card."""
    if (source / CARD).is_file():
        card = SEAL.sub("\n", (source / CARD).read_text(encoding="utf-8"))
        if found := _section(title).search(card):
            add_section(folder, title, found[1])


def _section(title: str) -> re.Pattern[str]:
    return re.compile(rf"^## {re.escape(title)}\n(.*?)(?=^## |\Z)", re.MULTILINE | re.DOTALL)


def hub_card(folder: Path, repo_id: str) -> str:
    """Returns a folder's card as it is to be on the Hub: title and commands name the model as `repo_id`."""
    edited, card = is_edited(folder / CARD), (folder / CARD).read_text(encoding="utf-8")
    line = re.search(re.escape(MODEL_LINE).replace(re.escape("{model}"), r'("(?:[^"\\\n]|\\.)*")'), card)
    if line:
        name, repo_name = json.loads(line[1]), repo_id.rpartition("/")[2]
        for here, there in (
            (line[0], MODEL_LINE.format(model=json.dumps(repo_id))),
            (f"\n# {plain(name)}\n", f"\n# {plain(repo_name)}\n"),
            (_index_name(name), _index_name(repo_name)),
            (f" --model {shlex.quote(name)} ", f" --model {repo_id} "),
        ):
            card = card.replace(here, there, 1)
    return card if edited else _sealed(card)


def _index_name(name: str) -> str:
    """How the metadata's model-index begins; names such as 2024 are quoted there."""
    return "\nmodel-index:\n" + yaml.safe_dump([{"name": name}], allow_unicode=True)


def _eval_results(
    results: Mapping[str, Any], entries: Mapping[str, Corpus | None], ids: Mapping[str, str]
) -> list[EvalResult]:
    return [
        EvalResult(
            task_type="audio-classification",
            task_name="Speech Emotion Recognition",
            dataset_type=ids[corpus],
            dataset_name=getattr(entries[corpus], "name", corpus),
            dataset_split=scores["split"],
            metric_type=metric,
            metric_name=title,
            metric_args={"average": "macro"} if metric == "f1" else None,
            metric_value=round(scores[key], 4),
        )
        for corpus, scores in results["corpora"].items()
        for key, (metric, title) in METRICS.items()
    ]


def _dataset_ids(entries: Mapping[str, Corpus | None]) -> dict[str, str]:
    """A different identifier, of the form that the Hub takes, for each corpus: its key in the registry, or its name."""
    ids: dict[str, str] = {}
    for name, entry in entries.items():
        first = entry.key if entry else re.sub(r"[^A-Za-z0-9_]+", "-", name).strip("-") or "corpus"
        numbered = (f"{first}-{number}" for number in itertools.count(2))
        ids[name] = next(text for text in itertools.chain([first], numbered) if text not in ids.values())
    return ids


def _languages(facts: Mapping[str, Any], entry: Corpus | None) -> list[str]:
    """A corpus's languages as the Hub takes them: codes of two or three letters."""
    named = facts.get("languages") or (entry.languages if entry else [])
    codes = [re.split("[-_]", code.lower())[0] for code in named]
    return [code for code in codes if re.fullmatch("[a-z]{2,3}", code) and code != "und"]


def _is_hub_id(text: str) -> bool:
    try:
        validate_repo_id(text)
    except HFValidationError:
        return False
    return True


def _unique(values: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(values))


def _texts(value: Any) -> list[str]:
    """A metadata entry that is one text, a list of texts, or something else."""
    values = value if isinstance(value, list) else [value]
    return [text for text in values if isinstance(text, str)]


def _read_json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


def _digest(text: str) -> str:
    return hashlib.sha256(text.replace("\r\n", "\n").strip().encode()).hexdigest()


def _sealed(card: str) -> str:
    card = SEAL.sub("", card).strip()
    rule = "and written anew after training; once it is edited, it is left alone"
    return f"{card}\n\n<!-- {WRITTEN_BY}, {rule}. SHA-256 of the above: {_digest(card)} -->\n"
