"""The recipe: what is trained on what, as YAML, each key also an option of the command line."""

from __future__ import annotations

import argparse
import contextlib
import functools
import inspect
import math
import os
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar

import torch
import yaml
from transformers import HfArgumentParser, TrainingArguments
from transformers.hf_argparser import string_to_bool
from transformers.integrations.integration_utils import (
    INTEGRATION_TO_CALLBACK,
    get_available_reporting_integrations,
)

from exhubert.corpora.dimensions import check_scales
from exhubert.corpora.registry import folder_name
from exhubert.evaluation.metrics import METRICS
from exhubert.training.augmentation import Augmentation
from exhubert.training.lora import Lora
from exhubert.utils.command import one_line
from exhubert.utils.files import read_table
from exhubert.utils.text import nearest

FREEZABLE = ("feature_encoder", "originals", "base")
CHOICES = {
    "labels": ("six", "native", "none"),
    "crop": ("random", "start", "center"),
    "sampling": ("round_robin", "proportional"),
    "update": ("batch", "round"),
    "class_weights": ("none", "balanced"),
    "dimension_loss": ("ccc", "mse"),
}
# What the keys that are no lists of words are, and what their items are.
NEEDED = {"lora": (None, "a table `key: value`"), "augmentation": (dict, "a list of tables `{name: Gain, p: 0.5}`")}
LARGEST = 10**10  # of numbers in a recipe: above it, sums overflow
RECIPES = Path(__file__).resolve().parents[1] / "recipes"
SHORTEST_WINDOW_SECONDS = 0.25  # below it transformers' models have too few frames to mask in training


@dataclass
class Recipe:
    """What is trained on what. The values here are the defaults of a recipe that does not name the key."""

    LENGTH: ClassVar[str] = "rounds"  # the key that says how long it trains

    model: str = ""  # Hub id or folder of the model to start from
    expand_copies: int = 0  # copies of each encoder layer added on loading a HuBERT
    gate_original_layers: bool = False  # originals, too, end in a linear layer
    weighted_layer_sum: bool = False  # classify a learned mean of all layers' states
    lora: dict[str, Any] = field(default_factory=dict)  # train adapters: {rank: 8, alpha: 16, ...}
    freeze: list[str] = field(default_factory=list)  # feature_encoder, originals, base: which stay as they are
    corpora_root: str = "."  # folder that the names in `corpora` are looked up in
    corpora: list[str] = field(default_factory=list)  # corpus folders, in the order of a round
    labels: str = "six"  # six (arousal/valence classes), native (the corpora's) or none (targets alone)
    targets: list[str] = field(default_factory=list)  # dimensions: numeric columns such as arousal
    scales: dict[str, Any] = field(default_factory=dict)  # of targets: {arousal: [1, 7]}, or by corpus
    label_file: str | None = None  # YAML file with further emotion words
    skip_bad_audio: bool = False  # leave out clips whose audio does not decode
    clips_per_corpus: int | None = None  # use a random part of each corpus
    protocol: str = "auto"  # how each corpus is split; see docs/corpora.md
    fold: int | None = None  # which fold, from 1, of a protocol that has folds
    window_seconds: float = 3.0  # length of the model's input in seconds
    crop: str = "random"  # random, start or center: which window, in training
    augmentation: list[dict[str, Any]] = field(default_factory=list)  # [{name: Gain, p: 0.5, ...}], in training
    sampling: str = "round_robin"  # round_robin or proportional
    rounds: int = 3000  # rounds of one batch from every corpus
    batch_size: int = 8  # clips per corpus and round, over all processes
    update: str = "batch"  # the model is updated after every batch, or every round
    micro_batches: int = 1  # parts a process computes its batch in, to save memory
    class_weights: str = "none"  # none or balanced: weights of the classes' losses
    soft_labels: bool = False  # train on the shares of raters' votes (votes_<word>)
    dimension_loss: str = "ccc"  # ccc or mse, of targets
    dimension_weight: float = 1.0  # of the targets' loss beside that of the classes
    early_stopping: int = 0  # stop after so many evaluations without a better average
    fast_path: bool = True  # in float32 on the CPU, a model that has a faster way of computing takes it
    cnn_cache: str | None = None  # folder where a frozen CNN's output is kept, computed once a clip
    save_minutes: float = 15.0  # minutes between checkpoints; 0 or save_steps: by updates
    output: str = ""  # run folder

    def check(self) -> None:
        """Raises ValueError for a value that is not among the legal ones; fills in what `lora` leaves out.

        `targets` are put in the order of their names, which is that of a model's outputs.
        """
        positive = ("rounds", "batch_size", "micro_batches", "window_seconds", "clips_per_corpus", "dimension_weight")
        check_values(self, CHOICES, FREEZABLE, positive, ("expand_copies", "early_stopping", "save_minutes"))
        if self.lora:
            lora = Lora(**typed(as_options(self.lora), [Lora], "lora: unknown key", "lora: "))
            lora.check()
            self.lora = asdict(lora)
            if self.expand_copies or "originals" in self.freeze:
                raise ValueError(
                    "lora is an alternative to copies of layers; leave out expand_copies and freeze: originals"
                )
        self.targets = sorted(set(self.targets))
        check_scales(self.scales, self.targets)
        if self.labels == "none":
            if not self.targets:
                raise ValueError("labels is none and there are no targets: nothing to train; give one of the two")
            if self.soft_labels or self.class_weights != "none":
                what = "soft_labels" if self.soft_labels else f"class_weights: {self.class_weights}"
                raise ValueError(f"{what} is for classes, and labels is none; leave one of them out")
        if self.augmentation:
            Augmentation(self.augmentation)  # says what is wrong with it
        if self.cnn_cache and not (self.lora or {"feature_encoder", "base"} & set(self.freeze)):
            raise ValueError(
                "cnn_cache keeps the output of a CNN that stays as it is; add feature_encoder to freeze, or leave "
                "cnn_cache out"
            )
        if self.cnn_cache and self.augmentation:
            raise ValueError("cnn_cache keeps clips as they are, and augmentation changes them; leave one of them out")


def check_values(
    recipe: Any,
    choices: Mapping[str, Sequence[str]],
    freezable: Sequence[str],
    positive: Sequence[str],
    not_negative: Sequence[str],
) -> None:
    """Raises ValueError for what is wrong with a recipe of any kind.

    Args:
        recipe: a `Recipe`, or another dataclass with the keys that all have.
        choices: the legal values of keys that are words.
        freezable: the legal values of `freeze`.
        positive: the keys that are numbers above 0, or None.
        not_negative: the keys that are numbers from 0 on.
    """
    for name in ("model", "corpora", "output"):
        if not getattr(recipe, name):
            raise ValueError(f"the recipe needs `{name}`; give it there or as --{name}")
    for spec in fields(recipe):
        value = getattr(recipe, spec.name)
        if isinstance(value, (list, dict)) and spec.default is not MISSING:
            raise ValueError(f"{spec.name} is {value!r}; a word is needed")
    for name, legal in choices.items():
        if getattr(recipe, name) not in legal:
            raise ValueError(f"{name} is {getattr(recipe, name)!r}; it must be {' or '.join(legal)}")
    for part in recipe.freeze:
        if part not in freezable:
            raise ValueError(f"freeze names {part!r}; the parts are {', '.join(freezable)}")
    for name in positive:
        value = getattr(recipe, name)
        if value is not None and not 0 < value <= LARGEST:
            raise ValueError(f"{name} is {value}; it must be above 0, and at most {LARGEST:,}")
    if recipe.window_seconds < SHORTEST_WINDOW_SECONDS:
        raise ValueError(f"window_seconds is {recipe.window_seconds}; at least {SHORTEST_WINDOW_SECONDS} are needed")
    for name in not_negative:
        if not 0 <= getattr(recipe, name) <= LARGEST:
            raise ValueError(f"{name} is {getattr(recipe, name)}; it must be 0 or more, and at most {LARGEST:,}")


FIELDS = yaml.safe_load(Path(__file__).with_name("training_arguments.yaml").read_text(encoding="utf-8"))
TRAINING_DEFAULTS: dict[str, Any] = FIELDS["defaults"] | {"dataloader_pin_memory": torch.cuda.is_available()}
DERIVED: dict[str, str] = FIELDS["derived"]  # fields that follow from the recipe, and what to set instead
WITHOUT_USE: dict[str, str] = FIELDS["without use"]  # fields that no speech model or run of ours has a use for, and why
EVALUATIONS = 10  # over a run, unless `eval_steps` says otherwise
MOST_WORKERS = 8  # of each process, unless `dataloader_num_workers` says otherwise
# Of the fields about the Hub those that are used: `Trainer` would upload checkpoints, and keep a token in each.
HUB_FIELDS = ("push_to_hub", "hub_model_id", "hub_private_repo", "hub_revision")


def parse(
    arguments: Sequence[str] | None = None, prog: str = "train_hf.py"
) -> tuple[Recipe, TrainingArguments, argparse.Namespace]:
    """Reads `RECIPE [--key value ...] [--resume] [--trust-remote-code]`; `prog` is what the command is called.

    Returns:
        The recipe, the training arguments that follow from it, and what no recipe may say: `resume` and
        `trust_remote_code`.

    Raises:
        ValueError: for a missing recipe, an unknown key (the nearest is named) or an illegal value.
    """
    command = make_parser(Recipe, prog, "Fine-tunes an audio-classification model on emotion corpora.")
    command.usage = f"{command.usage} [--trust-remote-code]"
    command.add_argument(
        *("--trust-remote-code", "--trust_remote_code"),
        action="store_true",
        help="let code run that the model brings; read it first (default: no)",
    )
    recipe, training, known = read_arguments(Recipe, command, arguments)
    with named_recipe(known.recipe):
        return recipe, training_arguments(recipe, training), known


def make_parser(kind: Any, prog: str, description: str) -> argparse.ArgumentParser:
    """Returns the parser of a command that takes a recipe, an instance of the dataclass `kind`."""
    command = argparse.ArgumentParser(
        prog=prog,
        description=description,
        epilog=keys_help(kind),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        usage=f"{prog} RECIPE [--key value ...] [--resume]",
        allow_abbrev=False,
    )
    command.add_argument("recipe", help=f"YAML file, or one of {RECIPES} by its name there, such as stage1.yaml")
    command.add_argument("--resume", action="store_true", help="go on from the run folder's last checkpoint")
    return command


def read_arguments(
    kind: Any, command: argparse.ArgumentParser, arguments: Sequence[str] | None
) -> tuple[Any, dict[str, Any], argparse.Namespace]:
    """Reads a command line of `make_parser`'s; returns the recipe, fields of TrainingArguments, and what else it has.

    Raises:
        ValueError: as `parse`.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if arguments and arguments[0].startswith("--") and arguments[0] != "--help":
        raise ValueError(f"{arguments[0]}: the recipe comes first: {command.prog} RECIPE [--key value ...]")
    known, options = command.parse_known_args(arguments)
    values, keys = read_recipe(find_recipe(known.recipe), kind=kind), [spec.name for spec in fields(kind)]
    with named_recipe(known.recipe):
        written = as_options(values)
        typed(written, [kind, TrainingArguments], "unknown key")  # alone: what is wrong there is said to be
    # What the recipe says comes first, so that the command line wins.
    settings = typed([*written, *options], [kind, TrainingArguments], "unknown option")
    recipe = kind(**{name: value for name, value in settings.items() if name in keys})
    with named_recipe(known.recipe):
        recipe.check()
    return recipe, {name: value for name, value in settings.items() if name not in keys}, known


@contextlib.contextmanager
def named_recipe(name: str) -> Iterator[None]:
    """Puts a recipe's name before what is wrong with its values."""
    try:
        yield
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{name}: {one_line(error)}") from error


def keys_help(kind: Any) -> str:
    """The keys of a recipe with their defaults and meanings, as its dataclass lists them."""
    keys = re.findall(r"^    ([a-z]\w*): .* = (.+?)  # (.+)$", inspect.getsource(kind), re.MULTILINE)
    lines = [
        f"  {name:21} {re.sub('field.*', 'none', default.replace('None', 'null')):13} {meaning}"
        for name, default, meaning in keys
    ]
    fields_too = "Every field of transformers' TrainingArguments is an option, too, such as --learning_rate 1e-5."
    return "\n".join(["keys of a recipe, each also an option, with their defaults:", *lines, "", fields_too])


def find_recipe(name: str) -> Path:
    """A recipe's file; of the package's own ones the name is enough: `stage1.yaml`, `selection/xlsr_1b.yaml`."""
    shipped = RECIPES / name.removeprefix("recipes/")
    return shipped if shipped.is_file() and not Path(name).exists() else Path(name)


def read_recipe(path: str | os.PathLike[str], extended_by: Sequence[Path] = (), kind: Any = Recipe) -> dict[str, Any]:
    """Returns the keys of a YAML recipe, those below `training` among them, as YAML has them.

    `extends: other.yaml`, relative to the recipe, takes over another recipe's keys; the recipe's own win, each key
    as a whole, and below `training` each field. `extended_by` are the recipes that led to this one; `kind` is the
    dataclass that has its keys.

    Raises:
        ValueError: if it is no recipe, has an unknown key, or extends itself.
    """
    path = Path(path)
    if not path.is_file():
        what = f", which {extended_by[-1]} extends" if extended_by else ""
        shipped = sorted(each.relative_to(RECIPES).as_posix() for each in RECIPES.rglob("*.yaml"))
        hint = "" if extended_by else f"; the package's own nearest to it is {nearest(path.name, shipped)}"
        raise ValueError(f"{path}{what}: no such recipe file{hint}")
    if any(path.samefile(other) for other in extended_by):
        circle = " -> ".join(map(str, (*extended_by, path)))
        raise ValueError(f"{extended_by[-1]}: `extends` leads in a circle: {circle}")
    values = read_table(path, "YAML")
    base = values.pop("extends", None)
    if base is not None and not isinstance(base, str):
        raise ValueError(f"{path}: `extends` is {base!r}; the name of one recipe file is needed")
    training = values.pop("training", None) or {}
    if not isinstance(training, dict):
        raise ValueError(f"{path}: `training` is {training!r}; a table `field: value` is needed")
    check_names(values, [*vars(kind()), "training", "extends"], f"{path}: unknown key")
    check_names(training, [spec.name for spec in fields(TrainingArguments)], f"{path}: unknown key below `training`")
    inherited = {} if base is None else read_recipe(path.parent / base, (*extended_by, path), kind)
    return inherited | values | training


def check_names(names: Iterable[Any], known: Sequence[str], message: str) -> None:
    """Raises ValueError, which begins with `message` and ends with the nearest known name, for an unknown one."""
    for name in names:
        if name not in known:
            raise ValueError(f"{message} {str(name)!r}; the nearest is {nearest(name, known)!r}")


def as_options(values: Mapping[str, Any]) -> list[str]:
    """YAML's values as options of a command line, `--key=value`, for `typed`; tables and lists stay YAML."""
    options = []
    for name, value in values.items():
        if isinstance(value, (dict, list)):
            text = yaml.safe_dump(value, default_flow_style=True, allow_unicode=True).strip()
        elif isinstance(value, bool):
            text = "yes" if value else "no"  # what YAML reads as true or false: `eval_strategy: no`
        else:
            text = "null" if value is None else str(value)
        options.append(f"--{name}={text}")
    return options


def typed(options: Sequence[str], kinds: Sequence[Any], unknown: str, where: str = "") -> dict[str, Any]:
    """Parses `--key value ...` by the types of dataclasses' fields.

    Args:
        options: the last one of a key wins.
        kinds: the dataclasses.
        unknown: begins the error for a key that they do not have.
        where: begins the errors for values.

    Returns:
        The keys that were given, with their values.

    Raises:
        ValueError: for a key that is unknown, and for a value of another type.
    """
    specs = {spec.name: spec for kind in kinds for spec in fields(kind)}
    given = [option[2:].split("=")[0].replace("-", "_") for option in options if option.startswith("--")]
    given = [name if name in specs else name.removeprefix("no_") for name in given]
    check_names(given, list(specs), unknown)
    parser = HfArgumentParser(kinds, allow_abbrev=False, exit_on_error=False, add_help=False)
    for annotation, kind, needed in (
        (str, str, "a word"),
        (int, int, "a whole number"),
        (float, float, "a number"),
        (string_to_bool, string_to_bool, "true or false"),
        (dict[str, Any], dict, "a table `key: value`"),
    ):
        parser.register("type", annotation, functools.partial(read_value, kind, needed))
    for action in parser._actions:  # the legal words as a list, in which a list is looked for without an error
        action.choices = None if action.choices is None else list(action.choices)
    try:
        found, rest = parser.parse_known_args(list(options))
    except argparse.ArgumentError as error:
        name = str(error.argument_name).split("/")[0].removeprefix("--")
        raise ValueError(f"{where}{name} {error.message}") from error
    if rest:
        raise ValueError(f"{rest[0]!r} belongs to no option; options are --key value")
    values = {}
    for name in given:
        value = getattr(found, name)
        if isinstance(value, list):
            value = [item for part in value for item in (part if isinstance(part, list) else [part])]
            kind, needed = NEEDED.get(name, (str, "a list of words"))
            if kind is None or not all(isinstance(item, kind) for item in value):
                raise ValueError(f"{where}{name} is {value!r}; {needed} is needed")
        elif value is None and specs[name].default is not None:
            raise ValueError(f"{where}{name} is null; give a value, or leave the key out")
        values[name] = value
    return values


def read_value(kind: Any, needed: str, text: str) -> Any:
    """Reads text as `kind`, `null` as None, and a table or list of YAML where there may be one."""
    try:
        if text == "null":
            return None
        if kind not in (str, dict) or (kind is str and not text.startswith(("{", "["))):
            return kind(text)
        value = yaml.safe_load(text)
        if isinstance(value, (dict, list)):
            return value
    except (ValueError, OverflowError, RecursionError, argparse.ArgumentTypeError, yaml.YAMLError):
        pass
    raise argparse.ArgumentTypeError(f"is {text!r}; {needed} is needed")


def training_arguments(recipe: Recipe, training: dict[str, Any]) -> TrainingArguments:
    """Returns `TrainingArguments` for a recipe; batch sizes, accumulation and the number of steps follow from it."""
    check_fields(training, DERIVED)
    if training.get("push_to_hub") and not training.get("hub_model_id"):
        raise ValueError("push_to_hub needs hub_model_id, the name of the repo: user/model")
    check_batch_size(recipe)
    batches_per_update = len(recipe.corpora) if recipe.update == "round" else 1
    steps = recipe.rounds * len(recipe.corpora) // batches_per_update
    values = TRAINING_DEFAULTS | {"metric_for_best_model": decisive_average(recipe)} | training
    if not 0 <= values.get("label_smoothing_factor", 0) < 1:
        raise ValueError(f"label_smoothing_factor is {values['label_smoothing_factor']}; it must be from 0 to below 1")
    if values.get("label_smoothing_factor") and recipe.targets and (recipe.labels == "none" or recipe.soft_labels):
        what = "soft_labels, with targets, are" if recipe.soft_labels else "labels is none, which is"
        raise ValueError(f"label_smoothing_factor is for classes, and {what} not to be smoothed; leave it out")
    if recipe.early_stopping and values["eval_strategy"] == "no":
        raise ValueError("early_stopping needs evaluations; leave eval_strategy out")
    if recipe.early_stopping and values["metric_for_best_model"] != decisive_average(recipe):
        average = {"average_uar": "average UAR", "average_ccc": "average CCC"}.get(decisive_average(recipe))
        goal = average or "mean of average UAR and average CCC"
        raise ValueError(f"early_stopping goes by the {goal}; leave metric_for_best_model out")
    metric = str(values["metric_for_best_model"]).removeprefix("eval_")
    corpora = [folder_name(corpus) for corpus in recipe.corpora]
    scores = list(METRICS if recipe.labels != "none" else ())
    scores += ["ccc", *(f"ccc_{target}" for target in recipe.targets)] if recipe.targets else []
    known = [f"{name}_{score}" for name in ("average", *corpora) for score in scores]
    known += [f"{name}_loss" for name in corpora] + [decisive_average(recipe)]
    check_names([metric], known, "metric_for_best_model: there is no")
    derived: dict[str, Any] = {"greater_is_better": not metric.endswith("_loss")}
    derived["label_names"] = ["labels", "dimension_targets"] if recipe.targets else ["labels"]
    return make_training_arguments(recipe, training, values | derived, steps, batches_per_update)


def decisive_average(recipe: Recipe) -> str:
    """The score by which the best model is chosen, unless `metric_for_best_model` says another."""
    if not recipe.targets:
        return "average_uar"
    return "average_ccc" if recipe.labels == "none" else "average_score"


def check_fields(training: Mapping[str, Any], derived: Mapping[str, str]) -> None:
    """Raises ValueError for fields of TrainingArguments that cannot be used, or that follow from the recipe."""
    for name in training:
        if name in derived:
            raise ValueError(f"{name} follows from the recipe; set {derived[name]} instead")
        if name.startswith(("hub_", "push_to_hub")) and name not in HUB_FIELDS:
            raise ValueError(
                f"{name} has no place here: the finished model is pushed, and nothing else ({', '.join(HUB_FIELDS)}); "
                "the token is that of `hf auth login` or HF_TOKEN"
            )
        if name in WITHOUT_USE and training[name] is not None:
            raise ValueError(f"{name} cannot be used here: {WITHOUT_USE[name]}; leave it out")
        if isinstance(training[name], float) and not math.isfinite(training[name]):
            raise ValueError(f"{name} is {training[name]}; a finite number is needed")
        if isinstance(training[name], int | float) and training[name] > LARGEST and name != "learning_rate":
            raise ValueError(f"{name} is {training[name]}; at most {LARGEST:,} is possible")
    if os.environ.get("ACCELERATE_USE_DEEPSPEED") == "true":
        raise ValueError(f"DeepSpeed cannot be used here: {WITHOUT_USE['deepspeed']}; launch without --use_deepspeed")
    trackers = training.get("report_to") or []
    for tracker in [trackers] if isinstance(trackers, str) else trackers:
        if tracker in INTEGRATION_TO_CALLBACK and tracker not in get_available_reporting_integrations():
            raise ValueError(f"report_to names {tracker!r}, which is not installed; install it, or leave report_to out")


def process_count() -> int:
    """How many processes the launcher says that it started."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def check_batch_size(recipe: Any) -> None:
    """Raises ValueError if a batch cannot be dealt to the processes, and there be computed in so many parts."""
    processes = process_count()
    if recipe.batch_size % (processes * recipe.micro_batches):
        parts = f"{processes} processes" + (f" x {recipe.micro_batches} micro_batches" * (recipe.micro_batches > 1))
        raise ValueError(f"batch_size is {recipe.batch_size}; it must be a multiple of the {parts}")


def make_training_arguments(
    recipe: Any, training: Mapping[str, Any], values: dict[str, Any], steps: int, batches_per_update: int = 1
) -> TrainingArguments:
    """Returns `TrainingArguments` for so many updates, with what follows from a recipe of any kind, and the device.

    Args:
        recipe: its `save_minutes` becomes 0 where updates decide when to save.
        training: the fields that were given, for an error.
        values: all fields.
        steps: updates of the run.
        batches_per_update: batches of `batch_size` whose gradients are added up.
    """
    processes = process_count()
    values["eval_steps"] = values.get("eval_steps") or max(1, steps // EVALUATIONS)  # from below 1 a share of the run
    if values.get("save_steps"):
        recipe.save_minutes = 0.0
    else:  # at the end, and before it by time
        values["save_steps"] = steps if recipe.save_minutes else values["eval_steps"]
    # Without it each of several processes on CPU would take itself for the only one.
    values.setdefault("use_cpu", not torch.accelerator.is_available())
    values = for_device(values)
    # `Trainer` would ask for a save at every evaluation; ours saves where the best one is.
    load_best = values.pop("load_best_model_at_end")
    try:
        arguments = TrainingArguments(
            output_dir=str(Path(recipe.output) / "checkpoints"),
            max_steps=steps,
            per_device_train_batch_size=recipe.batch_size // processes // recipe.micro_batches,
            gradient_accumulation_steps=batches_per_update * recipe.micro_batches,
            remove_unused_columns=False,
            **values,
        )
        arguments.load_best_model_at_end = load_best
    except (ValueError, OSError, ImportError):
        raise
    except Exception as error:  # of another kind for each field
        raise ValueError(f"transformers refuses the training arguments {training}: {one_line(error)}") from error
    if arguments.world_size != processes:
        raise ValueError(
            f"{processes} processes were started, but each of them would train alone on {arguments.device}; "
            "add --use_cpu to train in several processes without CUDA"
        )
    if arguments.n_gpu > 1:  # `Trainer` would multiply the batch by their number
        raise ValueError(
            f"one process sees {arguments.n_gpu} GPUs; start one process a GPU with `accelerate launch`, or choose one "
            "with CUDA_VISIBLE_DEVICES=0"
        )
    return arguments


def for_device(values: dict[str, Any]) -> dict[str, Any]:
    """Training arguments with what a GPU wants where they do not say it: bfloat16, workers that decode ahead."""
    on_gpu = torch.cuda.is_available() and not values["use_cpu"]
    if on_gpu and not values.get("fp16"):
        values = {"bf16": torch.cuda.is_bf16_supported(including_emulation=False)} | values
    if on_gpu:  # a core is left to the process itself
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        cores //= int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        values = {"dataloader_num_workers": max(1, min(MOST_WORKERS, cores - 1))} | values
    if values.get("dataloader_num_workers"):
        values = {"dataloader_persistent_workers": True, "dataloader_prefetch_factor": 4} | values
    # Memory that is pinned is copied to the GPU while that computes.
    return values | {"accelerator_config": {"non_blocking": on_gpu and values["dataloader_pin_memory"]}}


def resolved(recipe: Any, training: TrainingArguments) -> dict[str, Any]:
    """The recipe with every default filled in, as it is kept beside the results."""
    kept = {}
    for spec in fields(TrainingArguments):
        value = getattr(training, spec.name)
        value = getattr(value, "value", value)  # of an enumeration
        plain = isinstance(value, (str, int, float, bool, list)) or (value and isinstance(value, dict))
        if (
            spec.init
            and plain
            and spec.name not in DERIVED
            and spec.name not in ("use_cpu", "activation_checkpointing")  # the latter is gradient_checkpointing
            and (spec.name in (*TRAINING_DEFAULTS, "save_steps") or value not in (spec.default, []))
            and not (spec.name == "save_steps" and recipe.save_minutes)  # read again, it would take its place
        ):
            kept[spec.name] = value
    return asdict(recipe) | {"training": kept}
