"""Linear probes: how well a linear classifier tells emotions from a frozen HuBERT's mean hidden states."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import numpy as np
import pandas
import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from datasets import Dataset
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from exhubert.audio_exhubert import prepare_input
from exhubert.configuration_exhubert import SIX_CLASSES
from exhubert.corpora.load import load_corpora
from exhubert.corpora.splits import SPLITS, split_corpus
from exhubert.evaluation.metrics import classification_scores
from exhubert.evaluation.predictions import WindowAnswers, predictions_table
from exhubert.evaluation.scores import compare, score_and_average
from exhubert.modeling_exhubert import ExHuBERTModel
from exhubert.reports.plots import plot_uars
from exhubert.reports.tables import bracketed, p_text, percent, points
from exhubert.training.audio_pool import AudioPool, clip_table
from exhubert.training.targets import each_clip
from exhubert.utils.text import markdown_table

FOLDS = 3
PENALTIES = (0.01, 0.1, 1.0)  # values of logistic regression's C
KEPT = ("uar", "uar_interval", "interval_by", "clips", "speakers")


class ProbeCorpus(NamedTuple):
    """A labelled corpus, and its folds.

    Attributes:
        clips: the rows, with the class index in `labels`.
        protocol: how they are split.
        folds: for each fold the rows of train, validation and test; a row is in one test part at most.
    """

    clips: Dataset
    protocol: str
    folds: list[dict[str, list[int]]]


def read_probe_corpora(
    entries: Sequence[str], root: str = ".", label_file: str | None = None, skip_bad_audio: bool = False
) -> dict[str, ProbeCorpus]:
    """Reads labelled corpora: in three folds by speaker where there are enough, else by the split that `auto` gives.

    Arguments are as for `load_corpora`.

    Raises:
        ValueError: for anything wrong with a corpus; names it.
    """
    found: dict[str, ProbeCorpus] = {}
    for entry in entries:
        protocol = f"speaker_folds:{FOLDS}"
        try:
            corpora, _ = load_corpora([entry], root, "six", label_file, skip_bad_audio, protocol=protocol, fold=1)
        except ValueError:
            protocol = "auto"
            corpora, _ = load_corpora([entry], root, "six", label_file, skip_bad_audio)
        for name, splits in corpora.items():
            if name in found:
                raise ValueError(f"probe_corpora: the name {name!r} is taken; rename the folder")
            clips = datasets.concatenate_datasets([splits[split] for split in SPLITS])
            clips = clips.add_column("clip", range(len(clips)))
            if protocol == "auto":
                sizes = np.cumsum([0, *(len(splits[split]) for split in SPLITS)])
                folds = [{split: list(range(*sizes[n : n + 2])) for n, split in enumerate(SPLITS)}]
            else:
                folds = [
                    {split: part["clip"][:] for split, part in split_corpus(clips, name, protocol, fold).items()}
                    for fold in range(1, FOLDS + 1)
                ]
            labels = np.asarray(clips["labels"][:])
            if any(len(set(labels[fold["train"]])) < 2 for fold in folds):
                raise ValueError(
                    f"corpus {name!r}: all training clips of a probe are of one class, or there are none; leave it out "
                    "of probe_corpora"
                )
            found[name] = ProbeCorpus(clips, protocol, folds)
    return found


def mean_states(model: ExHuBERTModel, name: str, clips: Dataset) -> np.ndarray:
    """Returns each clip's mean over the frames of each of a model's hidden states, float32 `(clips, states, hidden)`.

    Each clip is encoded once, whole; one too short for a frame, or silent, is all zeros. The clips are dealt to the
    processes.
    """

    def states(samples: np.ndarray) -> np.ndarray:
        values = torch.from_numpy(prepare_input(samples, None))[None].to(model.device)
        with torch.inference_mode():
            hidden = model(values, output_hidden_states=True).hidden_states
            return torch.stack([each[0].mean(dim=0) for each in hidden]).float().cpu().numpy()

    pool = AudioPool({name: clips}, clip_table(name, clips))
    found = gather_object(list(each_clip(pool, range(len(pool)), states, 1, model.config, f"probing {name}")))
    rows = pool.table["row"].to_numpy()
    parts = np.bincount(rows)
    means = np.zeros((len(clips), model.config.num_hidden_layers + 1, model.config.hidden_size), np.float32)
    for clip, values, problem in found:
        if not problem:
            means[rows[clip]] += values / parts[rows[clip]]  # of the equal parts of a long recording
    return means


def probe(states: np.ndarray, corpus: ProbeCorpus) -> tuple[np.ndarray, list[dict[str, Any]]]:
    """Classifies the clips of the folds' test parts by logistic regression on one of the mean states.

    Which state, and which regularisation, is chosen by the UAR on the fold's validation speakers after training on its
    training speakers; then both together are trained on.

    Args:
        states: `(clips, states, hidden)`.
        corpus: the clips' classes and folds.

    Returns:
        The logarithms of the classes' probabilities, float64 `(clips, 6)`, NaN for a clip of no test part; and for
        each fold the chosen `layer` and `c`.
    """
    labels = np.asarray(corpus.clips["labels"][:])
    logits = np.full((len(labels), len(SIX_CLASSES)), np.nan)
    choices = []
    for fold in corpus.folds:
        train, validation, test = (np.asarray(fold[split]) for split in SPLITS)

        def uar(layer: int, c: float, train: np.ndarray = train, validation: np.ndarray = validation) -> float:
            predicted = fit(states[train, layer], labels[train], c).predict(states[validation, layer])
            return classification_scores(labels[validation], predicted, SIX_CLASSES)["uar"] or 0.0

        layer, c = max(((layer, c) for layer in range(states.shape[1]) for c in PENALTIES), key=lambda each: uar(*each))
        known = np.concatenate([train, validation])
        classifier = fit(states[known, layer], labels[known], c)
        logits[test] = np.log(1e-12)
        logits[np.ix_(test, classifier.classes_)] = np.log(classifier.predict_proba(states[test, layer]) + 1e-12)
        choices.append({"layer": layer, "c": c})
    return logits, choices


def fit(states: np.ndarray, labels: np.ndarray, c: float) -> Any:
    """A trained classifier; classes weigh the same, as they do in UAR."""
    classifier = make_pipeline(
        StandardScaler(), LogisticRegression(C=c, class_weight="balanced", max_iter=200, tol=1e-3)
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return classifier.fit(states, labels)


def run_probes(
    encoders: Mapping[str, Callable[[], ExHuBERTModel]],
    corpora: Mapping[str, ProbeCorpus],
    output: Path,
    device: torch.device,
) -> dict[str, Any]:
    """Probes encoders on corpora, and draws their UARs.

    Args:
        encoders: by their names; the last one is compared with those before it. They are made one after the other.
        corpora: what `read_probe_corpora` returned.
        output: the folder of `probe.png`.
        device: that they compute on.

    Returns:
        `systems`: for each encoder and corpus the UAR with its interval; `choices`; `chance` of each corpus;
        `comparison`: what `evaluation.scores.compare` says of each two.
    """
    tables: dict[str, list[pandas.DataFrame]] = {name: [] for name in encoders}
    choices: dict[str, dict[str, Any]] = {name: {} for name in encoders}
    for system, make in encoders.items():
        encoder = make().to(device)
        for name, corpus in corpora.items():
            logits, choices[system][name] = probe(mean_states(encoder, name, corpus.clips), corpus)
            tested = np.flatnonzero(np.isfinite(logits).all(axis=1))
            clips = {name: corpus.clips.select(tested)}
            answers = WindowAnswers(logits[tested], np.arange(len(tested)))
            tables[system].append(predictions_table(clips, SIX_CLASSES, answers))
    joined = {system: pandas.concat(parts, ignore_index=True) for system, parts in tables.items()}
    systems = {}
    for system, table in joined.items():
        scores, average = score_and_average(table, SIX_CLASSES, "test")
        systems[system] = {corpus: {key: entry[key] for key in KEPT} for corpus, entry in scores.items()}
        if len(corpora) > 1:
            systems[system]["average"] = {key: average[key] for key in KEPT if key in average}
    references = next(iter(joined.values())).groupby("corpus", sort=False)["reference"]
    chance = {str(corpus): 1 / rows.nunique() for corpus, rows in references}
    if PartialState().is_main_process:
        plot_uars(output / "probe.png", systems, chance)
    protocols = {name: corpus.protocol for name, corpus in corpora.items()}
    compared = compare(joined, SIX_CLASSES)["pairs"]
    return {"protocols": protocols, "chance": chance, "systems": systems, "choices": choices, "comparison": compared}


def probe_table(found: Mapping[str, Any]) -> str:
    """What `run_probes` returned as a table: UARs in % with intervals, and what the last system adds to each other."""
    systems = list(found["systems"])
    pairs = [pair for pair in found["comparison"] if pair["models"][1] == systems[-1]]
    header = ["corpus", "chance", *systems, *(f"{systems[-1]} - {pair['models'][0]}" for pair in pairs)]
    rows = []
    for corpus in found["systems"][systems[-1]]:
        scores = [found["systems"][system][corpus] for system in systems]
        row = [corpus, percent(found["chance"].get(corpus))]
        row += [bracketed(each["uar"], each["uar_interval"], percent) for each in scores]
        for pair in pairs:
            entry = pair["average"] if corpus == "average" else pair["corpora"][corpus]
            row.append(f"{bracketed(entry['difference'], entry['interval'], points)}, p {p_text(entry['p'])}")
        rows.append(row)
    return markdown_table(header, rows)
