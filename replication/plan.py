"""What is to be done: the corpora, the cells of the grid, and the command of each."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import HubertConfig, HubertForSequenceClassification

from exhubert.configuration_exhubert import SIX_CLASSES, ExHuBERTConfig
from exhubert.convert.checkpoint import on_meta
from exhubert.corpora.load import load_corpora
from exhubert.corpora.metadata import find_metadata
from exhubert.corpora.registry import folder_name
from exhubert.corpora.splits import SPLITS
from exhubert.evaluation.results import RESULTS
from exhubert.model_folder.load import read_config
from exhubert.modeling_exhubert import ExHuBERTForSequenceClassification
from exhubert.training import run_folder
from exhubert.training.arguments import Recipe, as_options, check_names, parse, read_recipe, resolved
from exhubert.training.models import prepare
from exhubert.utils.files import read_table, write_text

ROOT = Path(__file__).resolve().parent.parent
FOLDS = 3
PROTOCOL = f"folds:{FOLDS}"
FEWEST_CORPORA = 3
STAGE_1 = "stage1"
PRETRAINING = ("pretrain_1", "pretrain_2")
FINISHED = "cell.json"  # written last in a cell's folder
PLAN, SECONDS = "plan.json", "seconds.json"
WALL = "wall"  # in the latter, beside the seconds of each process: those by the clock, while something went on


class Column(NamedTuple):
    """A column of the table: what the paper's Table 2 calls it, and whether it starts from stage 1's model."""

    title: str
    after_stage_1: bool


COLUMNS = {
    "hubert": Column("HuBERT", False),
    "hubert_stage1": Column("HuBERT, stage 1", True),
    "exhubert": Column("ExHuBERT", False),
    "exhubert_stage1": Column("ExHuBERT, stage 1", True),
    "non_frozen": Column("ExHuBERT Non-Frozen, stage 1", True),
    "xlarge": Column("ExHuBERT XLarge, stage 1", True),
    "lora": Column("LoRA, stage 1", True),
    "weighted_sum": Column("weighted sum, stage 1", True),
}


class Cell(NamedTuple):
    """One training of the grid: stage 1 without a corpus, or a column's stage 2 on it."""

    seed: int
    held_out: str
    column: str

    @property
    def name(self) -> str:
        """Its folder below the run's."""
        return f"seed{self.seed}/{self.held_out}/{self.column}"

    @property
    def fold(self) -> int:
        """Which fold is tested: over three seeds each of a corpus's speakers once."""
        return self.seed % FOLDS + 1


@dataclass(frozen=True)
class Plan:
    """Everything that the cells follow from.

    Attributes:
        run: the folder for everything.
        corpora: name -> folder, in the order of a round.
        columns: those of `COLUMNS` that are trained.
        seeds: how many, from 0.
        start: the HuBERT that all begin with: a folder or Hub id; empty until it is known.
        recipes: the folder of the recipes: `pretrain_1`, `pretrain_2`, `stage1` and a file for each column.
        settings: `pretrain_1`, `pretrain_2`, `stage1`, `stage2` (of all columns) or a column -> keys of the recipe that
            win over the file's.
        device: cpu or cuda.
        label_file: YAML file with further emotion words.
        lora_rank: at which LoRA trains as many parameters as the copies; 0 until it is known.
    """

    run: Path
    corpora: dict[str, Path]
    columns: tuple[str, ...]
    seeds: int
    start: str
    recipes: Path
    settings: dict[str, dict[str, Any]]
    device: str = "cpu"
    label_file: str | None = None
    lora_rank: int = 0

    def folder(self, cell: Cell) -> Path:
        """The cell's run folder."""
        return self.run / cell.name

    def cells(self) -> Iterator[Cell]:
        """All cells in their order: the seed outermost, so that there is a table early."""
        for seed in range(self.seeds):
            for held_out in self.corpora:
                for column in (STAGE_1, *self.columns):
                    yield Cell(seed, held_out, column)

    def stage_1_of(self, cell: Cell) -> Cell | None:
        """The cell whose model this one starts from, if it does."""
        after = cell.column != STAGE_1 and COLUMNS[cell.column].after_stage_1
        return cell._replace(column=STAGE_1) if after else None

    def others(self, held_out: str) -> list[str]:
        """The folders of stage 1's corpora where `held_out` is held out."""
        return [str(folder) for name, folder in self.corpora.items() if name != held_out]

    def command(self, cell: Cell) -> list[str]:
        """The arguments of train_hf.py for a cell, without --resume."""
        recipe = self.recipes / f"{cell.column}.yaml"
        shared = {} if cell.column == STAGE_1 else self.settings.get("stage2", {})
        settings = shared | self.settings.get(cell.column, {})
        lora = settings.get("lora") or read_recipe(recipe).get("lora")
        if lora:  # alpha / rank, by which what it adds is scaled, stays
            scale = self.lora_rank / lora["rank"]
            settings |= {"lora": lora | {"rank": self.lora_rank, "alpha": lora["alpha"] * scale}}
        stage_1 = self.stage_1_of(cell)
        corpora = self.others(cell.held_out) if cell.column == STAGE_1 else [str(self.corpora[cell.held_out])]
        fixed = ["--corpora", *corpora, "--protocol", PROTOCOL, "--fold", str(cell.fold), "--seed", str(cell.seed)]
        fixed += ["--model", str(self.folder(stage_1) / "model") if stage_1 else self.start, "--labels", "six"]
        fixed += ["--output", str(self.folder(cell)), "--use_cpu", str(self.device == "cpu").lower()]
        if self.label_file:
            fixed += ["--label_file", self.label_file]
        fixed += ["--cnn_cache", str(self.run / "cnn_cache")]  # of a frozen CNN, which all of these have
        return [str(recipe), *as_options(settings), *fixed]

    def pretraining_command(self, name: str) -> list[str]:
        """The arguments of pretrain_hf.py, without --resume; all audio is heard, without its labels."""
        folders = [str(folder) for folder in self.corpora.values()]
        settings = {"model": str(ROOT / "replication" / "hubert.yaml")} | self.settings.get(name, {})
        fixed = ["--corpora", *folders, "--output", str(self.run / name)]
        fixed += ["--use_cpu", str(self.device == "cpu").lower()]
        if name == PRETRAINING[-1]:
            fixed += ["--target_model", str(self.run / PRETRAINING[0] / "model"), "--probe_corpora", *folders]
            fixed += ["--label_file", self.label_file] if self.label_file else []
        return [str(self.recipes / f"{name}.yaml"), *as_options(settings), *fixed]

    def is_finished(self, cell: Cell) -> bool:
        """Whether a cell is done, by what was asked for.

        Raises:
            ValueError: if it was begun with other settings, or from another start, which is named.
        """
        folder = self.folder(cell)
        if not (folder / run_folder.SETTINGS).is_file():
            return False
        recipe, training, _ = parse(self.command(cell))
        settings = resolved(recipe, training)
        remedy = f"delete {folder} to do it again, or give another RUN"
        try:
            run_folder.check_recipe(folder, settings)
        except ValueError as error:
            raise ValueError(f"{cell.name}: {str(error).split(';')[0]}; {remedy}") from error
        done = (folder / FINISHED).is_file()
        if done and not run_folder.is_complete(str(folder), settings):
            raise ValueError(f"{cell.name}: rounds or early_stopping are others than in that run; {remedy}")
        return done


def read_settings(path: Path | None) -> dict[str, dict[str, Any]]:
    """Reads a YAML file of `stage: {key: value}`, see `Plan.settings`; nothing without a path."""
    if path is None:
        return {}
    settings = read_table(path, "YAML")
    check_names(settings, [*PRETRAINING, STAGE_1, "stage2", *COLUMNS], f"{path}: unknown part")
    for name, values in settings.items():
        if not isinstance(values, dict):
            raise ValueError(f"{path}: {name} is {values!r}; a table `key: value` is needed")
    return settings


def corpus_folders(directories: Sequence[Path]) -> dict[str, Path]:
    """Returns the corpus folders by name: those given, and those in the folders given.

    Raises:
        ValueError: for a folder without any, two of one name, or fewer than three in all.
    """
    found: dict[str, Path] = {}
    for directory in directories:
        if not directory.is_dir():
            raise ValueError(f"{directory}: no such folder of corpora; give CORPORA=DIR, a folder of corpus folders")
        below = [directory] if find_metadata(directory) else sorted(filter(find_metadata, directory.iterdir()))
        if not below:
            raise ValueError(f"{directory}: no corpus folder there, which has a metadata.csv (docs/corpora.md)")
        for folder in below:
            name = folder_name(folder)
            if name in found:
                raise ValueError(f"{folder}: the name {name!r} is taken by {found[name]}; rename the folder")
            found[name] = Path(os.path.abspath(folder))  # a link keeps its name
    if len(found) < FEWEST_CORPORA:
        raise ValueError(
            f"{len(found)} corpus folder(s) in {', '.join(map(str, directories))}; {FEWEST_CORPORA} are needed: one is "
            "held out, and stage 1 wants several"
        )
    return found


def look_at_corpora(corpora: dict[str, Path], label_file: str | None = None) -> dict[str, Any]:
    """Reads and splits all corpora as the cells will, before anything is computed.

    Each corpus is split in three folds by its speakers (`protocol: folds:3`): one is tested, the next one validates,
    the third trains. Fewer than three known speakers cannot be kept apart, so folds of clips are made then; with
    either, every clip is tested once over three seeds.

    Returns:
        For each corpus its `classes`, how many `speakers` and `clips` it has, and what tells its folds from others.

    Raises:
        ValueError: for a corpus that cannot be read, whose words are in no table, or with a part of a single class.
    """
    facts: dict[str, Any] = {}
    for name, folder in corpora.items():
        folds = {}
        classes: set[int] = set()
        tested: set[str] = set()
        for fold in range(1, FOLDS + 1):
            with contextlib.redirect_stdout(io.StringIO()) if fold > 1 else contextlib.nullcontext():
                loaded, _ = load_corpora([str(folder)], label_file=label_file, protocol=PROTOCOL, fold=fold)
            heard = {}
            for split in SPLITS:
                own = set(loaded[name][split]["labels"][:])
                classes |= own
                if len(own) == 1:
                    what = f"all clips of its {split} part in fold {fold} of {FOLDS} are {SIX_CLASSES[own.pop()]}"
                    raise ValueError(
                        f"corpus {name!r}: {what}; leave it out, or label it with words of two classes or more"
                    )
                heard[split] = set(loaded[name][split]["speaker"][:])
            tested |= heard["test"]
            clips = sum(len(part) for part in loaded[name].values())
            folds[f"fold {fold}"] = run_folder.clips_of(loaded)[name]
        facts[name] = {
            "classes": [SIX_CLASSES[index] for index in sorted(classes)],
            "clips": clips,
            "speakers": len(tested - {"", None}),
            "speakers_apart": not heard["train"] & heard["test"],
            "folds": folds,
        }
    return facts


def write_plan(plan: Plan, facts: dict[str, Any]) -> None:
    """Writes `plan.json`, by which the report knows what there will be.

    Raises:
        ValueError: if the run was begun with other corpora, clips or another start.
    """
    path = plan.run / PLAN
    weights = _digest(plan.start) if plan.start else ""
    before = read_table(path) if path.is_file() else {}
    for what, now in (("corpora", facts), ("weights", weights)):
        if before.get(what) and now and before[what] != now:
            raise ValueError(f"{plan.run} was begun with other {what}; give another RUN, or delete it")
    columns = [column for column in COLUMNS if column in (*plan.columns, *before.get("columns", ()))]
    values = {"corpora": facts, "weights": weights or before.get("weights", ""), "columns": columns}
    values |= {"seeds": max(plan.seeds, before.get("seeds", 0)), "protocol": PROTOCOL, "device": plan.device}
    values |= {"lora_rank": plan.lora_rank or before.get("lora_rank", 0)}
    write_text(path, json.dumps(values, indent=2) + "\n")


def _digest(start: str) -> str:
    """What tells a model from others: of a folder that of its weights, of the Hub its name."""
    weights = Path(start) / "model.safetensors"
    return f"sha256 {hashlib.sha256(weights.read_bytes()).hexdigest()[:16]}" if weights.is_file() else start


def with_start(plan: Plan, start: str) -> Plan:
    """The plan with the HuBERT that all begin with, and LoRA's rank, which follows from it.

    Raises:
        ValueError: if it is no plain HuBERT.
    """
    source = read_config(start)
    if source.get("model_type") != "hubert":
        raise ValueError(f"{start} is a {source.get('model_type')!r} model; a plain HuBERT is needed to begin with")
    plan = replace(plan, start=start)
    if "lora" in plan.columns:
        known, first = replace(plan, lora_rank=1), next(iter(plan.corpora))  # any rank will do to read the recipe
        copies, lora = (parse(known.command(Cell(0, first, column)))[0] for column in ("exhubert_stage1", "lora"))
        plan = replace(plan, lora_rank=lora_rank(HubertConfig.from_dict(source), copies, lora))
    return plan


def lora_rank(config: HubertConfig, copies: Recipe, lora: Recipe) -> int:
    """The rank at which what `lora` trains of a HuBERT comes nearest to what `copies` trains of its expansion."""
    expanded = on_meta(
        ExHuBERTForSequenceClassification,
        ExHuBERTConfig.from_hubert_config(
            config, copies.expand_copies, copies.gate_original_layers, num_labels=len(SIX_CLASSES)
        ),
    )
    prepare(expanded, replace(copies, lora={}))
    config.num_labels = len(SIX_CLASSES)
    plain = on_meta(HubertForSequenceClassification, config)
    of_one_rank = sum(
        module.in_features + module.out_features
        for name, module in plain.named_modules()
        if ".layers." in name
        and name.split(".")[-1] in lora.lora["target_modules"]
        and isinstance(module, torch.nn.Linear)
    )
    head = sum(p.numel() for part in (plain.projector, plain.classifier) for p in part.parameters())
    return max(1, round((expanded.num_parameters(only_trainable=True) - head) / of_one_rank))


def forget_weights(plan: Plan) -> None:
    """Deletes the models of stage 1 that no column waits for."""
    for cell in plan.cells():
        if cell.column == STAGE_1 and all(
            (plan.folder(cell._replace(column=column)) / FINISHED).is_file() for column in plan.columns
        ):
            remove_weights(plan.folder(cell))


def remove_weights(folder: Path, parts: Sequence[str] = ("checkpoints", "model")) -> None:
    """Deletes what is large in a run folder; results, predictions and curves stay."""
    if (folder / RESULTS).is_file():
        for part in parts:
            shutil.rmtree(folder / part, ignore_errors=True)
