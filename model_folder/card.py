"""The model card: `README.md` of a model folder, with the metadata that the Hub reads.

Its prose is `card_template.md`. A card is made from what the folder holds and from what is known of the weights that
the model started from; what a training adds, `publish/run_card.py` hands in. It ends in the SHA-256 of all above. A
card that does not fit its SHA-256, or has none, was written by a person: nothing here replaces it. Its metadata states
the SHA-256 of the folder's weights, which `exhubert verify` compares.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import yaml
from huggingface_hub import ModelCard, ModelCardData, constants, metadata_load
from huggingface_hub.errors import HFValidationError
from huggingface_hub.file_download import repo_folder_name
from huggingface_hub.utils import validate_repo_id
from safetensors import safe_open

from exhubert import __version__
from exhubert.audio_exhubert import SAMPLING_RATE, WINDOW_SECONDS
from exhubert.configuration_exhubert import (
    PIPELINE_TASK,
    SIX_CLASSES,
    class_names_of_config,
    dimensions_of_config,
)
from exhubert.utils.files import read_table, sha256_of, write_text
from exhubert.utils.text import markdown_table

CARD = "README.md"
TEMPLATE = Path(__file__).with_name("card_template.md")
MODEL_LINE = "model = {model}  # this folder, named from the folder that it is in; or the model's id on the Hub"
WRITTEN_BY = "Written by ExHuBERT for Transformers"
SEAL = re.compile(rf"\n*<!-- {WRITTEN_BY}\b.* ([0-9a-f]{{64}}) -->\s*\Z")
UNTELLING = re.compile(r"model|(tmp-)?checkpoint-\d+")  # names of folders that are no model's name
# Of the six classes, in the published model's card.
EXAMPLES = ("disgust", "neutral", "kind", "anger", "surprise", "joy")
# What low and high values of a dimension mean.
POLES = {
    "arousal": ("calm, passive", "excited, active"),
    "valence": ("negative", "positive"),
    "dominance": ("weak, submissive", "strong, dominant"),
}
LICENCES: dict[str, str] = yaml.safe_load(Path(__file__).with_name("licences.yaml").read_text(encoding="utf-8"))
# What the metadata says for `exhubert verify`, as `with_weights` writes it.
STATED = re.compile(r"^exhubert:\n(?:[ ].*\n)*", re.MULTILINE)
WEIGHTS = re.compile(r".*\.(safetensors|onnx|onnx\.data)")
LICENCE_KEYS = ("license", "license_name", "license_link")


def write_card(folder: Path, **facts: Any) -> bool:
    """Writes a folder's card, at once; `facts` are the arguments of `make_card`.

    Returns:
        False if the card there was edited by hand: it is left as it is.
    """
    if is_edited(folder / CARD):
        return False
    write_text(folder / CARD, sealed(with_weights(str(make_card(folder, **facts)), folder)))
    return True


def with_weights(card: str, folder: Path) -> str:
    """Returns a card whose metadata states which release wrote the folder, and the SHA-256 of each file of weights.

    A second or two for a model of 1.3 GB. A sealed card is sealed anew.
    """
    weights = [path for path in sorted(folder.iterdir()) if WEIGHTS.fullmatch(path.name)]
    stated = {"version": __version__, "sha256": {path.name: sha256_of(path) for path in weights}}
    metadata, rule, rest = card.partition("\n---\n")
    if not metadata.startswith("---\n"):
        return card
    kept = STATED.sub("", f"{metadata}\n").rstrip("\n")
    card_with = f"{kept}\n{yaml.safe_dump({'exhubert': stated}, sort_keys=False).rstrip()}{rule}{rest}"
    return sealed(card_with) if is_sealed(card) else card_with


def stated_weights(card: Path) -> tuple[str, dict[str, str]]:
    """Returns what a card states of its folder: the release that wrote it, and the SHA-256 of each file of weights.

    Both are empty where it states none, or is no card.
    """
    try:
        stated = (metadata_load(card) or {}).get("exhubert")
    except (OSError, ValueError, AttributeError, RecursionError, yaml.YAMLError):
        stated = None
    if not isinstance(stated, Mapping) or not isinstance(stated.get("sha256"), Mapping):
        return "", {}
    version, hashes = stated.get("version"), stated["sha256"]
    only_texts = {name: value for name, value in hashes.items() if isinstance(name, str) and isinstance(value, str)}
    return version if isinstance(version, str) else "", only_texts


def make_card(
    folder: Path,
    known: Mapping[str, Any] | None = None,
    sections: Mapping[str, str] | None = None,
    metadata: Mapping[str, Any] | None = None,
    title: str | None = None,
    **training: Any,
) -> ModelCard:
    """Returns the card of a model folder. No path, user name or token gets into it.

    Args:
        folder: with `config.json`, `preprocessor_config.json` and the weights.
        known: of the weights that the model started from: what `source_metadata` or `card_metadata` returned.
        sections: further ones, title -> markdown; they stand above "Input".
        metadata: what a training adds, or changes: arguments of `ModelCardData`.
        title: what the model is called; as the folder is by default, or as its architecture where that says nothing.
        training: what a training adds to the text: `training`, sections in markdown; `training_speech`, a sentence on
            its corpora; `citations`, a list of them.
    """
    config, extractor = (read_table(folder / name) for name in ("config.json", "preprocessor_config.json"))
    known = known or {}
    # Sharded training gives the class a prefix.
    architecture = (config.get("architectures") or [config["model_type"]])[0].removeprefix("FSDP")
    if title is None:
        called = folder.resolve().name
        title = architecture.split("For")[0].removesuffix("Model") if UNTELLING.fullmatch(called) else called
    classifies = architecture.endswith("Classification")
    named = config if config.get("id2label") else {**config, "id2label": {0: "LABEL_0", 1: "LABEL_1"}}
    # Such names transformers does not write.
    classes, dimensions = class_names_of_config(named), dimensions_of_config(named)
    six_classes = tuple(classes) == SIX_CLASSES
    header, rows = ["index", "class"], [[str(index), plain(name)] for index, name in enumerate(classes)]
    if six_classes:
        header += ["arousal", "valence", "example"]
        rows = [[*row, *row[1].split("/"), example] for row, example in zip(rows, EXAMPLES, strict=True)]
    licences = _texts(known.get("license"))
    handed_down = (*LICENCE_KEYS, "language", "base_model", "base_model_relation", "datasets")
    fields: dict[str, Any] = {key: known.get(key) for key in handed_down} | {
        "library_name": "transformers",
        "pipeline_tag": "audio-classification" if classifies else "feature-extraction",
        "tags": ["speech-emotion-recognition", "speech", "audio", config["model_type"]],
    }
    window_seconds = extractor.get("window_seconds", WINDOW_SECONDS)
    parameters, dtypes = 0, set[str]()
    for file in folder.glob("*.safetensors"):
        with safe_open(file, framework="pt") as weights:
            for part in map(weights.get_slice, weights.keys()):
                parameters += math.prod(part.get_shape())
                dtypes.add(part.get_dtype())
    return ModelCard.from_template(
        ModelCardData(**(fields | dict(metadata or {}))),
        template_path=str(TEMPLATE),
        title=plain(title),
        architecture=architecture,
        classifies=classifies,
        layers=config.get("num_hidden_layers"),
        copies=config.get("num_copies", 0),
        parameters=parameters,
        dtypes=sorted(dtypes),
        model_line=MODEL_LINE.format(model=json.dumps(folder.resolve().name, ensure_ascii=False)),
        task=PIPELINE_TASK,
        sections=sections or {},
        window_seconds=window_seconds,
        window_samples=round(SAMPLING_RATE * window_seconds),
        extractor=str(extractor.get("feature_extractor_type")),
        classes=markdown_table(header, rows, left=range(1, len(header))) if classes else "",
        dimensions=dimensions_table(dimensions) if dimensions else "",
        six_classes=six_classes,
        licences=licences,
        licence_terms="-".join(licences).split("-"),
        **training,
    )


def dimensions_table(dimensions: Mapping[str, Sequence[float]]) -> str:
    """The scale of each dimension, and what its ends mean where that is known."""
    rows = [
        [plain(name), *(f"{end:g}" + (f" ({pole})" if pole else "") for end, pole in zip(scale, poles, strict=True))]
        for name, scale in dimensions.items()
        for poles in [POLES.get(name, ("", ""))]
    ]
    return markdown_table(["dimension", "lowest", "highest"], rows, left=range(3))


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


def is_edited(card: Path) -> bool:
    """Whether there is a card that a person has written or changed."""
    return card.is_file() and not is_sealed(card.read_text(encoding="utf-8", errors="replace"))


def is_sealed(card: str) -> bool:
    """Whether a card ends in the SHA-256 of all above."""
    seal = SEAL.search(card)
    return seal is not None and seal[1] == _digest(card[: seal.start()])


def sealed(card: str) -> str:
    """Returns a card with the SHA-256 of all above as its last line."""
    card = SEAL.sub("", card).strip()
    rule = "and written anew after training; once it is edited, it is left alone"
    return f"{card}\n\n<!-- {WRITTEN_BY}, {rule}. SHA-256 of the above: {_digest(card)} -->\n"


def _digest(text: str) -> str:
    return hashlib.sha256(text.replace("\r\n", "\n").strip().encode()).hexdigest()


def read_sections(card: str) -> dict[str, str]:
    """Splits a card at its headings `## `: title -> text with that line; what is above the first stands under "".

    Lines of code are no headings, nor is a title that was there before. Joined, the texts are the card.
    """
    sections = {"": ""}
    title = fence = ""
    for line in card.splitlines(keepends=True):
        text = line.strip()
        if fence:
            if text.startswith(fence) and not text.strip(fence[0]):
                fence = ""
        elif opening := re.match("`{3,}|~{3,}", text):
            fence = opening[0]
        elif line.startswith("## ") and text[3:] not in sections:
            title = text[3:]
            sections[title] = ""
        sections[title] += line
    return sections


def with_section(card: str, title: str, text: str, leave_out: Collection[str] = ()) -> str:
    """Returns a card with a section above "Input", below how the model is used; one with this title is replaced.

    A sealed card is sealed anew; one that was edited by hand still counts as that.

    Args:
        card: with its metadata.
        title: of the section.
        text: of the section, in markdown.
        leave_out: titles of sections that go.
    """
    ours = is_sealed(card)
    sections = read_sections(SEAL.sub("\n", card) if ours else card)
    kept = {name: part for name, part in sections.items() if name not in (title, *leave_out)}
    place = list(kept).index("Input") if "Input" in kept else len(kept)
    above, below = "".join(list(kept.values())[:place]), "".join(list(kept.values())[place:])
    card = f"{above.rstrip()}\n\n## {title}\n\n{text.strip()}\n\n{below}".rstrip() + "\n"
    return sealed(card) if ours else card


def add_section(folder: Path, title: str, text: str) -> None:
    """Puts a section into a folder's card; see `with_section`. A folder without a card, which others made, stays so."""
    card = folder / CARD
    if card.is_file():
        write_text(card, with_section(card.read_text(encoding="utf-8"), title, text))


def fill_template(template: Path, **values: Any) -> str:
    """Returns the text of a Jinja template with every value that it names filled in."""
    text = template.read_text(encoding="utf-8")
    return jinja2.Template(text, undefined=jinja2.StrictUndefined).render(values)


def plain(value: object) -> str:
    """Any value as text on one line of which markdown takes nothing for markup."""
    text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    return re.sub(r"([\\`*\[\]<>~#$&]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9]))", r"\\\1", " ".join(text.split()))


def _is_hub_id(text: str) -> bool:
    try:
        validate_repo_id(text)
    except HFValidationError:
        return False
    return True


def _texts(value: Any) -> list[str]:
    """A metadata entry that is one text, a list of texts, or something else."""
    values = value if isinstance(value, list) else [value]
    return [text for text in values if isinstance(text, str)]
