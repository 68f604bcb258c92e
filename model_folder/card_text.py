"""What a model card says: its sections, as markdown."""

from __future__ import annotations

import json
import math
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path, PureWindowsPath
from typing import Any
from urllib.parse import quote

import yaml
from safetensors import safe_open

from exhubert.configuration_exhubert import SIX_CLASSES
from exhubert.corpora.registry import Corpus, corpus_or_none
from exhubert.pipeline_exhubert import PIPELINE_TASK
from exhubert.utils.text import markdown_table

EXAMPLES = (
    "disgust",
    "neutral",
    "kind",
    "anger",
    "surprise",
    "joy",
)  # of the six classes, in the published model's card
SHOWN_METRICS = {
    "uar": "UAR",
    "accuracy": "accuracy",
    "macro_f1": "macro-F1",
    "arousal_uar": "arousal UAR",
    "valence_uar": "valence UAR",
    "ece": "ECE",
}
SETTINGS = (
    *("model", "expand_copies", "freeze", "lora", "labels", "protocol", "fold", "window_seconds", "crop", "sampling"),
    *("rounds", "batch_size", "update", "class_weights", "early_stopping"),
)
TRAINING_SETTINGS = ("learning_rate", "lr_scheduler_type", "weight_decay")
UNCONFIRMED = r"\*"
# Of TrainingArguments no other text is shown, since it may be a token, a name or a path.
TRAINING_TEXTS = ("lr_scheduler_type", "optim", "metric_for_best_model", "eval_strategy", "save_strategy")

MODEL_LINE = "model = {model}  # this folder, named from the folder that it is in; or the model's id on the Hub"
CLASSIFY = """```python
import numpy as np
from transformers import pipeline

{line}
classify = pipeline("{task}", model=model, trust_remote_code=True)
speech = np.random.default_rng(0).normal(0, 0.1, 64_000)  # put yours here: a file's path, its bytes, 16 kHz samples
result = classify(speech)
print(result["label"])
print(result["probabilities"])
for window in result["windows"]:
    print(window["start"], window["end"], window["label"])
```"""
ENCODE = """```python
import numpy as np
from transformers import AutoFeatureExtractor, AutoModel

{line}
extractor = AutoFeatureExtractor.from_pretrained(model, trust_remote_code=True)
encoder = AutoModel.from_pretrained(model)
speech = np.random.default_rng(0).normal(0, 0.1, 48_000)  # put your 16 kHz samples here
states = encoder(**extractor(speech, sampling_rate=16_000, return_tensors="pt")).last_hidden_state
print(states.shape)  # recordings, frames, values
```"""
NEEDS = """\
It needs `transformers`, `torch`, `soundfile` and `soxr`. `trust_remote_code=True` runs the Python files of this folder:
read them, and on the Hub pin what you have read with `revision`."""
HOW_MEASURED = """\
Our own measurements, in %. UAR is the unweighted average recall: the mean of the recalls of the classes that occur in
the split. In brackets: 95 % bootstrap intervals, resampled by speaker, or by clip where there are too few speakers. ECE
is the expected calibration error."""
LIMITS = """The model is meant for research on how emotion is expressed in speech.

- It names the emotion that a listener would probably perceive in a voice, in the sense of its training labels. It does
  not know what a person feels, means or is going to do.
- It is not for decisions about people: hiring, grading, insurance, credit, policing, migration, diagnosis and the like.
- {speech}
- Languages, accents, ages, dialects, microphones, rooms, phone lines and noise that the training data lacks are
  untested, and sexes and ages may be recognised with different accuracy. Test it on data of your own before any use.

**European Union.** Regulation (EU) 2024/1689, the [AI Act](https://eur-lex.europa.eu/eli/reg/2024/1689/oj), has rules
for systems that infer emotions or intentions of people from biometric data, which a recorded voice can be. Article
5(1)(f) prohibits AI systems that infer emotions of a person at the workplace and in education institutions, except for
medical or safety reasons. Other emotion recognition is listed as high-risk in Annex III, point 1(c). By Article 50(3)
deployers of an emotion recognition system have to inform the people who are exposed to it, and to process their
personal data as data protection law says. Exceptions and dates stand in the Regulation; this is not legal advice."""
UNKNOWN_LICENCE = """\
No licence is known for the weights that this model started from, so none is stated. Whoever publishes the model has to
find out which one it may have, and to state it, as `license: <identifier>` between the lines `---` at the top of this
file ([identifiers](https://huggingface.co/docs/hub/repositories-licenses))."""
CORPORA_BIND = (
    """The training corpora have licences of their own, named above, which may bind what is trained on them."""
)
ACTED = "Acted speech is clearer and more uniform than everyday speech: expect less where people speak spontaneously."
PAPER = r"""The method, block expansion, and the six classes: [ExHuBERT, 2024](https://arxiv.org/abs/2406.10275).

```bibtex
@inproceedings{amiriparian2024exhubert,
  title     = {{ExHuBERT}: Enhancing {HuBERT} Through Block Extension and Fine-Tuning on 37 Emotion Datasets},
  author    = {Amiriparian, Shahin and Packa{\'n}, Filip and Gerczuk, Maurice and Schuller, Bj{\"o}rn W.},
  booktitle = {Proc. INTERSPEECH},
  year      = {2024}
}
```"""


def introduction(folder: Path, config: Mapping[str, Any], base_models: Sequence[str]) -> str:
    """What the model is: class, layers, parameters, and whose weights it started from."""
    layers, copies = config.get("num_hidden_layers"), config.get("num_copies", 0)
    text = f"`{architecture(config)}` for speech emotion recognition"
    if layers:
        text += f", with {layers} encoder layers"
    if layers and copies:
        each = "a copy" if copies == 1 else f"{copies} copies"
        text += f": {layers // (copies + 1)} original ones, each followed by {each} of itself, which adds to its output"
    count, dtypes = 0, set()
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as weights:
            for part in map(weights.get_slice, list(weights.keys())):
                count += math.prod(part.get_shape())
                dtypes.add(part.get_dtype())
    text += f". {count:,} parameters ({', '.join(sorted(dtypes))})."
    links = [f"[{base}](https://huggingface.co/{base})" for base in base_models]
    return text + (f" Its weights go back to {', '.join(links)}." if links else "")


def architecture(config: Mapping[str, Any]) -> str:
    """The name of the model's class; sharded training gives it a prefix."""
    return (config.get("architectures") or [config["model_type"]])[0].removeprefix("FSDP")


def use_section(name: str, classifies: bool) -> str:
    """Code that runs as it stands where the folder `name` is, and what it needs."""
    line = MODEL_LINE.format(model=json.dumps(name, ensure_ascii=False))
    code = CLASSIFY.format(line=line, task=PIPELINE_TASK) if classifies else ENCODE.format(line=line)
    return f"{code}\n\n{NEEDS}"


def input_section(extractor: Mapping[str, Any], classifies: bool) -> str:
    """What the model hears."""
    window = extractor.get("window_seconds", 3.0)
    text = f"{window:g} s of 16 kHz mono ({round(16_000 * window):,} samples), cut or zero-padded, then "
    if extractor.get("feature_extractor_type", "").startswith("ExHuBERT"):
        text += "normalised to zero mean and unit variance over the whole window, padding included; no attention mask."
    else:
        text += f"made a spectrogram by `{extractor.get('feature_extractor_type')}`."
    if classifies:
        text += " The pipeline classifies longer recordings in windows that overlap by half, and averages over them."
    return text


def classes_section(classes: Sequence[str]) -> str:
    """The table of the classes, in their order."""
    if tuple(classes) != SIX_CLASSES:
        return markdown_table(["index", "class"], [[str(i), plain(name)] for i, name in enumerate(classes)], left=(1,))
    rows = [[str(i), name, *name.split("/"), EXAMPLES[i]] for i, name in enumerate(classes)]
    table = markdown_table(["index", "class", "arousal", "valence", "example"], rows, left=(1, 2, 3, 4))
    return f"{table}\n\nThe examples are those of the published model's card."


def results_sections(
    folder: Path, name: str, results: Mapping[str, Any], recipe: Mapping[str, Any] | None
) -> list[str]:
    """The scores with their intervals, how they were measured, and the pictures that are in the folder."""
    corpora, average = results["corpora"], results.get("average", {})
    shown = [metric for metric in SHOWN_METRICS if any(metric in scores for scores in corpora.values())]
    rows = [
        [plain(corpus), scores["split"], f"{scores['clips']:,}", f"{scores['speakers'] or 'unknown'}"]
        + [share(scores, metric) for metric in shown]
        + [scores.get("interval_by") or "-"]
        for corpus, scores in corpora.items()
    ]
    if len(rows) > 1:
        rows.append(["average", "", "", "", *(share(average, metric) for metric in shown), ""])
    header = ["corpus", "split", "clips", "speakers", *(SHOWN_METRICS[metric] for metric in shown), "interval by"]
    parts = [HOW_MEASURED, markdown_table(header, rows, left=(0, 1, len(header) - 1))]
    for column, groups in results.get("groups", {}).items():
        rows = [
            [plain(group), plain(", ".join(s["corpora"])), f"{s['clips']:,}", f"{s['speakers']}", share(s, "uar")]
            for group, s in groups.items()
        ]
        parts.append(markdown_table([column, "corpora", "clips", "speakers", "UAR"], rows, left=(0, 1)))
    splits = sorted({scores["split"] for scores in corpora.values()})
    options = ["--split", splits[0], "--protocol", (recipe or {}).get("protocol", "auto")]
    for option in ("fold", "clips_per_corpus", "label_file"):
        if recipe and recipe.get(option):
            options += [f"--{option}", PureWindowsPath(str(recipe[option])).name]  # of a path its last part
    options += ["--skip_bad_audio"] if recipe and recipe.get("skip_bad_audio") else []
    command = ["--model", name, "--corpora", *corpora, *options, "--output", "evaluation"]
    parts.append("To measure them again, with the corpora's folders:")
    parts.append(f"```bash\npython evaluate_hf.py {shlex.join(command)}\n```")
    pictures = {"curves.png": "Validation UAR over the updates", "reliability.png": "Reliability"}
    pictures |= {f"confusion_{corpus}.png": f"Confusion matrix of {corpus}" for corpus in corpora}
    for picture, title in pictures.items():
        if (folder / picture).is_file():
            parts.append(f"![{plain(title)}]({quote(picture)})")
    return parts


def calibration_section(calibration: Mapping[str, Any]) -> str:
    """What a temperature that was fitted after training does; `calibration` is that entry of `results.json`."""
    before, after = (f"{100 * calibration[f'ece_{when}']:.1f} %" for when in ("before", "after"))
    return (
        f"Probabilities are those of the logits divided by a temperature of {calibration['temperature']:.3f}, which "
        f"`config.json` holds as `calibration_temperature` and the pipeline uses. It was fitted on "
        f"{calibration['clips']:,} clips of the {calibration['split']} split. On the evaluated split the expected "
        f"calibration error (ECE) went from {before} to {after}. The training's own results in this card are "
        f"without it."
    )


def training_sections(
    recipe: Mapping[str, Any],
    results: Mapping[str, Any] | None,
    corpora: Mapping[str, Mapping[str, Any]],
    known: Mapping[str, Corpus | None],
    before: Sequence[str],
    base_models: Sequence[str],
) -> list[str]:
    """On what, from what and how the model was trained; `before` are the data sets of the weights it started from."""
    rows = []
    for name, facts in corpora.items():
        entry, clips = known[name], facts.get("clips", {})
        rows.append(
            [
                plain(name),
                plain(entry.name) if entry else "-",
                " / ".join(f"{clips[split]:,}" for split in ("train", "validation", "test")) if clips else "-",
                str(facts.get("speakers") or "unknown"),
                plain(" ".join(facts.get("languages") or (entry.languages if entry else []))) or "-",
                registry_fact(entry, "kind"),
                registry_fact(entry, "licence"),
            ]
        )
    header = ["corpus", "known as", "clips: train / validation / test", "speakers", "languages", "kind", "licence"]
    parts = [markdown_table(header, rows, left=(0, 1, 4, 5, 6))]
    licences = [registry_fact(corpus_or_none(dataset), "licence") for dataset in before]
    if any(cell.endswith(UNCONFIRMED) for cell in (*licences, *(cell for row in rows for cell in row[-2:]))):
        parts.append(f"{UNCONFIRMED} No source at hand confirms it.")
    if before:
        listed = ", ".join(f"{plain(name)} (licence: {text})" for name, text in zip(before, licences, strict=True))
        parts.append(f"The weights that it started from had been trained on {listed}.")
    public = public_recipe(recipe, base_models)
    settings = [(key, public.get(key)) for key in SETTINGS]
    settings += [(key, public["training"].get(key)) for key in TRAINING_SETTINGS]
    parameters = (results or {}).get("parameters", {})
    settings += [("trainable parameters", f"{parameters['trainable']:,}")] if "trainable" in parameters else []
    shown = [[key, plain(value)] for key, value in settings if value not in (None, "none", "", [], {}, 0)]
    parts.append(markdown_table(["setting", "value"], shown, left=(0, 1)))
    text = yaml.safe_dump(public, sort_keys=False, allow_unicode=True)
    parts.append(f"<details>\n<summary>The whole recipe</summary>\n\n```yaml\n{text}```\n\n</details>")
    if results and results.get("versions"):
        versions = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
        parts.append(f"Trained and measured with {plain(versions)}.")
    return parts


def public_recipe(recipe: Mapping[str, Any], base_models: Sequence[str] = ()) -> dict[str, Any]:
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


def licence_section(licences: Sequence[str], corpora: bool) -> str:
    """What is known of the licence; `corpora`: whether the card names training corpora."""
    if licences:
        text = f"Weights: {', '.join(f'`{licence}`' for licence in licences)}, as those that it started from."
        if any(re.search(r"(^|-)nc(-|$)", licence) for licence in licences):
            text += " It does not allow commercial use."
        if any(re.search(r"(^|-)sa(-|$)", licence) for licence in licences):
            text += " What is made from them has to be passed on under the same licence."
    else:
        text = UNKNOWN_LICENCE
    return "\n\n".join([text, *([CORPORA_BIND] if corpora else []), "The Python files of this folder: Apache-2.0."])


def limits_section(known: Mapping[str, Corpus | None]) -> str:
    """What the model is for and what it is not; `known` are the training corpora."""
    kinds: dict[str, list[str]] = {}
    for name, entry in known.items():
        kinds.setdefault(entry.kind if entry else "of unknown kind", []).append(plain(name))
    listed = "; ".join(f"{kind} ({', '.join(names)})" for kind, names in kinds.items())
    speech = (
        f"The speech that it was trained on is {listed}." if kinds else "Most corpora of emotional speech are acted."
    )
    return LIMITS.format(speech=f"{speech} {ACTED}")


def citation_section(known: Mapping[str, Corpus | None]) -> str:
    """The paper, and the papers of the training corpora."""
    corpora = [f"- {plain(entry.name)}: {plain(entry.citation)}" for entry in known.values() if entry]
    return "\n\n".join([PAPER, *(["The training corpora:", "\n".join(corpora)] if corpora else [])])


def registry_fact(entry: Corpus | None, name: str) -> str:
    """What the registry says of a corpus, with a star where no source at hand confirms it."""
    if entry is None:
        return "unknown"
    return plain(getattr(entry, name)) + (UNCONFIRMED if name in entry.unverified else "")


def share(scores: Mapping[str, Any], metric: str) -> str:
    """A score in %, with its interval in brackets: `71.2 [65.0, 76.9]`."""
    if scores.get(metric) is None:
        return "-"
    interval = scores.get(f"{metric}_interval")
    brackets = f" [{100 * interval[0]:.1f}, {100 * interval[1]:.1f}]" if interval else ""
    return f"{100 * scores[metric]:.1f}{brackets}"


def plain(value: object) -> str:
    """Any value as text on one line of which markdown takes nothing for markup."""
    text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    return re.sub(r"([\\`*\[\]<>~#$&]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9]))", r"\\\1", " ".join(text.split()))
