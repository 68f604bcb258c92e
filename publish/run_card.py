"""The card of a trained model: what a training adds to a folder's card, its results, recipe and corpora.

The prose is `run_card_template.md` and `calibration_section.md`. No path, user name or token gets into a card.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import shlex
import shutil
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path, PureWindowsPath
from typing import Any
from urllib.parse import quote

import yaml
from huggingface_hub import EvalResult

from exhubert.corpora.registry import Corpus, corpus_or_none
from exhubert.model_folder.card import (
    CARD,
    MODEL_LINE,
    card_metadata,
    fill_template,
    is_sealed,
    plain,
    sealed,
    write_card,
)
from exhubert.reports.tables import value_text
from exhubert.utils.files import read_table, whole_file, write_text
from exhubert.utils.text import markdown_table

TEMPLATE = Path(__file__).with_name("run_card_template.md")
CALIBRATION = Path(__file__).with_name("calibration_section.md")
METRICS = {"uar": ("uar", "UAR"), "accuracy": ("accuracy", "Accuracy"), "macro_f1": ("f1", "Macro-F1")}  # on the Hub
SHOWN_METRICS = {
    **{"uar": "UAR", "accuracy": "accuracy", "macro_f1": "macro-F1"},
    **{"arousal_uar": "arousal UAR", "valence_uar": "valence UAR", "ece": "ECE"},
}
DIMENSION_METRICS = {"ccc": ("ccc", "CCC"), "pearson": ("pearsonr", "Pearson"), "rmse": ("rmse", "RMSE")}
SETTINGS = (
    *("model", "expand_copies", "freeze", "lora", "labels", "protocol", "fold", "window_seconds", "crop", "sampling"),
    *("rounds", "batch_size", "update", "class_weights", "early_stopping"),
)
DIMENSION_SETTINGS = ("targets", "scales", "dimension_loss", "dimension_weight")  # only where there are targets
TRAINING_SETTINGS = ("learning_rate", "lr_scheduler_type", "weight_decay")
# Of TrainingArguments no other text is shown, since it may be a token, a name or a path.
TRAINING_TEXTS = ("lr_scheduler_type", "optim", "metric_for_best_model", "eval_strategy", "save_strategy")
UNCONFIRMED = r"\*"
EVAL_RESULTS = ".eval_results"  # where the Hub looks for a model's results on its benchmarks


def write_run_card(
    run: str | os.PathLike[str],
    results: Mapping[str, Any] | None = None,
    sections: Mapping[str, str] | None = None,
) -> bool:
    """Writes the card of a run folder's `model/` anew, with recipe and results, and copies the run's pictures there.

    Beside it the results go into `.eval_results/`, for corpora that the Hub has as benchmarks.

    Args:
        run: the run folder.
        results: what `results.json` is going to hold, where it is not written yet.
        sections: further ones, as in `make_card`.

    Returns:
        False if the card there was edited by hand: it is left as it is.
    """
    run = Path(run)
    if results is None:
        results = read_table(run / "results.json")
    for name in pictures_in(run, results):
        with whole_file(run / "model" / name) as unfinished:
            shutil.copyfile(run / name, unfinished)
    recipe, corpora = read_table(run / "recipe.yaml"), read_table(run / "environment.json").get("corpora", {})
    for name, text in benchmark_results(results, recipe, registry_entries(results, corpora)).items():
        write_text(run / "model" / EVAL_RESULTS / name, text)
    known = card_metadata(run / "model" / CARD)
    facts = run_facts(run / "model", known=known, results=results, recipe=recipe, corpora=corpora)
    return write_card(run / "model", sections=sections, **facts)


def run_facts(
    folder: Path,
    known: Mapping[str, Any],
    results: Mapping[str, Any],
    recipe: Mapping[str, Any],
    corpora: Mapping[str, Mapping[str, Any]],
) -> dict[str, Any]:
    """Returns what a training adds to the card of its model, as arguments of `make_card`.

    Args:
        folder: of the model, with the pictures if there are any.
        known: of the weights that the model started from: what `source_metadata` or `card_metadata` returned.
        results: what is in `results.json`.
        recipe: as resolved.
        corpora: what `corpus_facts` returned of the training corpora.
    """
    entries = registry_entries(results, corpora)
    ids = dataset_ids(entries)
    ours = [ids[corpus] for corpus in corpora]
    before = [dataset for dataset in known.get("datasets", []) if dataset not in ours]
    base_models = known.get("base_model", [])
    licences = [_registry_fact(corpus_or_none(dataset), "licence") for dataset in before]
    shown = [_registry_fact(entries[corpus], name) for corpus in corpora for name in ("kind", "licence")]
    public = public_recipe(recipe, base_models)
    name = folder.resolve().name
    title = folder.resolve().parent.name if name == "model" else name  # the run's
    text = fill_template(
        TEMPLATE,
        results=results_tables(results),
        one_class=", ".join(
            plain(corpus) for corpus, scores in results["corpora"].items() if len(scores.get("recall", ())) == 1
        ),
        has_classes=has_classes(results),
        has_dimensions=bool(results.get("dimensions")),
        command=measuring_command(name, results, recipe),
        pictures=[(plain(title), quote(file)) for file, title in pictures_in(folder, results).items()],
        corpora=corpora_table(corpora, entries),
        star=UNCONFIRMED,
        unconfirmed=any(cell.endswith(UNCONFIRMED) for cell in (*licences, *shown)),
        before=list(zip(map(plain, before), licences, strict=True)),
        settings=settings_table(public, results["parameters"]["trainable"]),
        recipe=yaml.safe_dump(public, sort_keys=False, allow_unicode=True),
        versions=plain(", ".join(f"{package} {version}" for package, version in results["versions"].items())),
    )
    spoken = [facts["languages"] or getattr(entries[corpus], "languages", []) for corpus, facts in corpora.items()]
    codes = [re.split("[-_]", language.lower())[0] for languages in spoken for language in languages]
    # As the Hub takes them: of two or three letters.
    languages = [code for code in codes if re.fullmatch("[a-z]{2,3}", code) and code != "und"]
    kinds: dict[str, list[str]] = {}
    for corpus in corpora:
        kinds.setdefault(getattr(entries[corpus], "kind", "of unknown kind"), []).append(plain(corpus))
    listed = "; ".join(f"{kind} ({', '.join(names)})" for kind, names in kinds.items())
    return {
        "known": known,
        "title": title,
        "metadata": {
            "language": list(dict.fromkeys([*known.get("language", []), *languages])) or None,
            "base_model_relation": "finetune" if base_models else None,
            "datasets": list(dict.fromkeys([*known.get("datasets", []), *ours])),
            "metrics": [metric for metric, _ in METRICS.values() if has_classes(results)]
            + [metric for metric, _ in DIMENSION_METRICS.values() if results.get("dimensions")],
            "model_name": title,
            "eval_results": _eval_results(results, entries, ids),
        },
        "training": text,
        "training_speech": f"The speech that it was trained on is {listed}.",
        "citations": [f"{plain(entry.name)}: {plain(entry.citation)}" for entry in map(entries.get, corpora) if entry],
    }


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


def registry_entries(results: Mapping[str, Any], corpora: Mapping[str, Mapping[str, Any]]) -> dict[str, Corpus | None]:
    """What the registry has of the corpora of a training and of its results; arguments as of `run_facts`."""
    keys = {corpus: corpora.get(corpus, {}).get("key", corpus) for corpus in (*corpora, *results["corpora"])}
    return {corpus: corpus_or_none(key) for corpus, key in keys.items()}


def benchmark_results(
    results: Mapping[str, Any], recipe: Mapping[str, Any], entries: Mapping[str, Corpus | None]
) -> dict[str, str]:
    """Returns files of `.eval_results/`, as name -> YAML: UAR, 0 to 1, on each corpus that the Hub has as a benchmark.

    Args:
        results: what is in `results.json`.
        recipe: as resolved.
        entries: what the registry has of each corpus, if anything.
    """
    files = {}
    for corpus, name in dataset_ids(entries).items():
        task, scores = getattr(entries[corpus], "hub", {}), results["corpora"].get(corpus, {})
        if "task" in task and scores.get("uar") is not None:
            notes = f"UAR of the {scores['split']} split; protocol {recipe['protocol']}, {recipe['labels']} classes"
            dataset = {"id": task["dataset"], "task_id": task["task"]}
            entry = {"dataset": dataset, "value": round(scores["uar"], 4), "notes": notes}
            files[f"{name}.yaml"] = yaml.safe_dump([entry], sort_keys=False)
    return files


def corpora_table(corpora: Mapping[str, Mapping[str, Any]], entries: Mapping[str, Corpus | None]) -> str:
    """The training corpora: what `corpus_facts` and the registry say of each."""
    header = ["corpus", "known as", "clips: train / validation / test", "speakers", "languages", "kind", "licence"]
    rows = []
    for corpus, facts in corpora.items():
        entry = entries[corpus]
        clips = " / ".join(f"{facts['clips'][split]:,}" for split in ("train", "validation", "test"))
        languages = plain(" ".join(facts["languages"] or getattr(entry, "languages", []))) or "-"
        known = [_registry_fact(entry, "kind"), _registry_fact(entry, "licence")]
        name = plain(entry.name) if entry else "-"
        rows.append([plain(corpus), name, clips, str(facts["speakers"] or "unknown"), languages, *known])
    return markdown_table(header, rows, left=(0, 1, 4, 5, 6))


def pictures_in(folder: Path, results: Mapping[str, Any]) -> dict[str, str]:
    """The pictures of a run that are in a folder, with their titles."""
    curves = "scores" if results.get("dimensions") else "UAR"
    pictures = {"curves.png": f"Validation {curves} over the updates", "reliability.png": "Reliability"}
    for kind, title in (
        ("confusion", "Confusion matrix of"),
        ("dimensions", "Predicted and reference values of"),
        ("plane", "Arousal and valence of"),
    ):
        pictures |= {f"{kind}_{corpus}.png": f"{title} {corpus}" for corpus in results["corpora"]}
    return {name: title for name, title in pictures.items() if (folder / name).is_file()}


def has_classes(results: Mapping[str, Any]) -> bool:
    """Whether results are of a model that has classes."""
    return any("uar" in scores for scores in results["corpora"].values())


def results_tables(results: Mapping[str, Any]) -> list[str]:
    """The scores with their intervals: by corpus, of classes and of dimensions, then by each group of speakers."""
    corpora, average = results["corpora"], results["average"]
    shown = [metric for metric in SHOWN_METRICS if any(metric in scores for scores in corpora.values())]
    rows = [
        [plain(corpus), scores["split"], f"{scores['clips']:,}", f"{scores['speakers'] or 'unknown'}"]
        + [share(scores, metric) for metric in shown]
        + [scores["interval_by"] or "-"]
        for corpus, scores in corpora.items()
    ]
    if len(rows) > 1:
        rows.append(["average", "", "", "", *(share(average, metric) for metric in shown), ""])
    header = ["corpus", "split", "clips", "speakers", *(SHOWN_METRICS[metric] for metric in shown), "interval by"]
    tables = [markdown_table(header, rows, left=(0, 1, len(header) - 1))] if has_classes(results) else []
    if results.get("dimensions"):
        tables.append(dimension_results(results))
    of_groups = {"UAR": ("uar", share)} if has_classes(results) else {}
    of_groups |= {"CCC": ("ccc", value_with_interval)} if results.get("dimensions") else {}
    for column, groups in results["groups"].items():
        rows = [
            [plain(group), plain(", ".join(s["corpora"])), f"{s['clips']:,}", f"{s['speakers']}"]
            + [text(s, metric) for metric, text in of_groups.values()]
            for group, s in groups.items()
        ]
        tables.append(markdown_table([column, "corpora", "clips", "speakers", *of_groups], rows, left=(0, 1)))
    return tables


def dimension_results(results: Mapping[str, Any]) -> str:
    """The scores of each dimension on each corpus, and on average over several, with their intervals."""
    header = ["corpus", "dimension", "split", "clips", "speakers"]
    header += [*(name for _, name in DIMENSION_METRICS.values()), "interval by"]
    average = {"average": results["average"]} if len(results["corpora"]) > 1 else {}
    rows = []
    for corpus, scores in {**results["corpora"], **average}.items():
        for dimension, entry in scores["dimensions"].items():
            size = (
                [scores["split"], f"{entry['clips']:,}", str(entry["speakers"] or "unknown")]
                if "clips" in entry
                else []
            )
            values = [value_with_interval(entry, metric) for metric in DIMENSION_METRICS]
            by = (entry["interval_by"] or "-") if size else ""
            rows.append([plain(corpus), plain(dimension), *(size or ["", "", ""]), *values, by])
    return markdown_table(header, rows, left=(0, 1, 2, len(header) - 1))


def value_with_interval(scores: Mapping[str, Any], metric: str) -> str:
    """A score that is no share, with its interval in brackets: `0.512 [0.450, 0.571]`."""
    interval = scores.get(f"{metric}_interval")
    brackets = f" [{value_text(interval[0])}, {value_text(interval[1])}]" if interval else ""
    return value_text(scores.get(metric)) + brackets


def share(scores: Mapping[str, Any], metric: str) -> str:
    """A score in %, with its interval in brackets: `71.2 [65.0, 76.9]`."""
    if scores.get(metric) is None:
        return "-"
    interval = scores.get(f"{metric}_interval")
    brackets = f" [{100 * interval[0]:.1f}, {100 * interval[1]:.1f}]" if interval else ""
    return f"{100 * scores[metric]:.1f}{brackets}"


def measuring_command(name: str, results: Mapping[str, Any], recipe: Mapping[str, Any]) -> str:
    """The arguments of `evaluate_hf.py` that measure the results of the model `name` again."""
    split = min(scores["split"] for scores in results["corpora"].values())
    command = ["--model", name, "--corpora", *results["corpora"], "--split", split, "--protocol", recipe["protocol"]]
    for option in ("fold", "clips_per_corpus", "label_file"):
        if recipe.get(option):
            command += [f"--{option}", PureWindowsPath(str(recipe[option])).name]  # of a path its last part
    if recipe.get("scales") and results.get("dimensions"):
        command += ["--scales", json.dumps(recipe["scales"])]
    command += ["--skip_bad_audio"] if recipe.get("skip_bad_audio") else []
    return shlex.join([*command, "--output", "evaluation"])


def settings_table(recipe: Mapping[str, Any], trainable: int) -> str:
    """The settings of a recipe that shape a model most, as far as they are set."""
    settings = [(key, recipe.get(key)) for key in SETTINGS]
    settings += [(key, recipe.get(key)) for key in DIMENSION_SETTINGS if recipe.get("targets")]
    settings += [(key, recipe["training"].get(key)) for key in TRAINING_SETTINGS]
    settings += [("trainable parameters", f"{trainable:,}")]
    shown = [[key, plain(value)] for key, value in settings if value not in (None, "none", "", [], {}, 0)]
    return markdown_table(["setting", "value"], shown, left=(0, 1))


def public_recipe(recipe: Mapping[str, Any], base_models: Collection[str] = ()) -> dict[str, Any]:
    """Returns a resolved recipe without what does not belong on the Hub: of a path its last part, no token, no name.

    The model stays as it is if it is one of `base_models`, which are on the Hub.
    """

    def public(value: Any) -> Any:
        if isinstance(value, str):
            return " ".join((PureWindowsPath(value).name if re.search(r"[/\\]", value) else value).split())
        if isinstance(value, Mapping):
            return {key: public(part) for key, part in value.items()}
        return [public(part) for part in value] if isinstance(value, list) else value

    shown = {key: public(value) for key, value in recipe.items() if key not in ("output", "corpora_root", "training")}
    if recipe.get("model") in base_models:
        shown["model"] = recipe["model"]
    training = {
        key: public(value)
        for key, value in recipe.get("training", {}).items()
        if isinstance(value, bool | int | float) or (key in TRAINING_TEXTS and isinstance(value, str))
    }
    return shown | {"training": training}


def dataset_ids(entries: Mapping[str, Corpus | None]) -> dict[str, str]:
    """A different identifier, of the form that the Hub takes, for each corpus: its key in the registry, or its name."""
    ids: dict[str, str] = {}
    for name, entry in entries.items():
        first = entry.key if entry else re.sub(r"[^A-Za-z0-9_]+", "-", name).strip("-") or "corpus"
        numbered = (f"{first}-{number}" for number in itertools.count(2))
        ids[name] = next(text for text in itertools.chain([first], numbered) if text not in ids.values())
    return ids


def calibration_section(calibration: Mapping[str, Any]) -> str:
    """What a temperature that was fitted after training does; `calibration` is that entry of `results.json`."""
    return fill_template(CALIBRATION, **calibration)


def hub_card(folder: Path, repo_id: str) -> str:
    """Returns a folder's card as it is to be on the Hub: title and commands name the model as `repo_id`."""
    original = card = (folder / CARD).read_text(encoding="utf-8")
    line = re.search(re.escape(MODEL_LINE).replace(re.escape("{model}"), r'("(?:[^"\\\n]|\\.)*")'), card)
    if line:
        name, repo_name = json.loads(line[1]), repo_id.rpartition("/")[2]
        # How the metadata's model-index begins; names such as 2024 are quoted there.
        index = re.search(r"\nmodel-index:\n- name: (.*)\n", card)
        title = plain(yaml.safe_load(index[1]) if index else name)
        if not index and is_sealed(card):  # else a person has given it
            title = re.findall(r"^# (.*)$", card, re.MULTILINE)[0]
        for here, there in (
            (line[0], MODEL_LINE.format(model=json.dumps(repo_id))),
            (f"\n# {title}\n", f"\n# {plain(repo_name)}\n"),
            (index[0] if index else "", "\nmodel-index:\n" + yaml.safe_dump([{"name": repo_name}], allow_unicode=True)),
            (f" --model {shlex.quote(name)} ", f" --model {repo_id} "),
        ):
            card = card.replace(here, there, 1) if here else card
    return sealed(card) if is_sealed(original) else card


def _eval_results(
    results: Mapping[str, Any], entries: Mapping[str, Corpus | None], ids: Mapping[str, str]
) -> list[EvalResult]:
    found = []
    for corpus, scores in results["corpora"].items():
        values = [(*METRICS[key], scores.get(key)) for key in METRICS]
        for dimension, entry in scores.get("dimensions", {}).items():
            values += [
                (metric, f"{title} of {dimension}", entry[key]) for key, (metric, title) in DIMENSION_METRICS.items()
            ]
        found += [
            EvalResult(
                task_type="audio-classification",
                task_name="Speech Emotion Recognition",
                dataset_type=ids[corpus],
                dataset_name=getattr(entries[corpus], "name", corpus),
                dataset_split=scores["split"],
                metric_type=metric,
                metric_name=title,
                metric_args={"average": "macro"} if metric == "f1" else None,
                metric_value=round(value, 4),
            )
            for metric, title, value in values
            if value is not None
        ]
    return found


def _registry_fact(entry: Corpus | None, name: str) -> str:
    """What the registry says of a corpus, with a star where no source at hand confirms it."""
    if entry is None:
        return "unknown"
    return plain(getattr(entry, name)) + (UNCONFIRMED if name in entry.unverified else "")
