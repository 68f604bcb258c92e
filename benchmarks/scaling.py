"""Prints the tables of docs/scaling.md: FLOPs, hours, network, reads, disk and memory, computed from the configuration.

Nothing is measured here. What is assumed of cards and of how much of them is used stands in the tables below.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, NamedTuple

from transformers import HubertConfig, HubertForSequenceClassification

from exhubert.benchmarks.arithmetic import (
    COPIES,
    FEATURE_ENCODER,
    ORIGINALS,
    POSITION,
    PROJECTION,
    forward_products,
    total_flops,
    training_products,
)
from exhubert.benchmarks.made_up import LARGE
from exhubert.configuration_exhubert import ExHuBERTConfig
from exhubert.convert.checkpoint import on_meta
from exhubert.modeling_exhubert import ExHuBERTForSequenceClassification
from exhubert.utils.text import markdown_table


class Card(NamedTuple):
    """A GPU as its data sheet has it: dense bfloat16 with float32 sums, float32 outside tensor cores."""

    name: str
    bfloat16: float  # FLOP/s
    float32: float
    memory_bytes_per_second: float
    link_bytes_per_second: float  # to the other cards of its machine, in one direction


CARDS = (
    Card("RTX 3090", 71e12, 35.6e12, 0.936e12, 16e9),  # the link is PCIe 4
    Card("A100", 312e12, 19.5e12, 2.04e12, 300e9),
    Card("H100", 989e12, 67e12, 3.35e12, 450e9),
)
USED = {"training": 0.30, "inference": 0.40}  # share of a card's FLOP/s that is reached: assumed
BETWEEN_MACHINES = 12.5e9  # bytes a second of a machine, in one direction: 100 Gbit/s
CARDS_OF_A_MACHINE = 8
FLAC_BYTES_PER_SECOND = 15.6e3  # 16 kHz mono: measured, four corpora
WINDOW, HOP = 3.0, 1.5  # seconds
UPDATE_PASSES = 28  # bytes moved for each trained parameter in AdamW's update: four read, three written, of 4 bytes

HUBERT = HubertConfig(**LARGE, num_labels=6)
EXHUBERT = ExHuBERTConfig()
# GiB of a clip's activations in a training step, float32, plain path: measured on the CPU, of batches of 1 and of 4.
ACTIVATIONS = {24: 0.33, 48: 0.77}
USABLE = 24e9 / 2**30 - 1.5  # GiB of a card of 24 GB, without CUDA's own and what lies idle between tensors: assumed
CNN = (FEATURE_ENCODER,)
CNN_AND_ORIGINALS = (FEATURE_ENCODER, ORIGINALS)
BUT_THE_HEAD = (FEATURE_ENCODER, PROJECTION, POSITION, ORIGINALS, COPIES)
SYSTEMS: dict[str, tuple[Any, Collection[str]]] = {
    "HuBERT Large, all but the CNN": (HUBERT, CNN),
    "ExHuBERT, originals frozen": (EXHUBERT, CNN_AND_ORIGINALS),
    "ExHuBERT, all but the CNN": (EXHUBERT, CNN),
    "ExHuBERT XLarge (72 layers), originals frozen": (
        ExHuBERTConfig(num_hidden_layers=72, num_copies=2),
        CNN_AND_ORIGINALS,
    ),
    "ExHuBERT, the head alone": (EXHUBERT, BUT_THE_HEAD),
}


def flops(config: Any, frozen: Collection[str] | None = None) -> int:
    """Of a window: of its forward, or of its part in a training step."""
    if frozen is None:
        return total_flops(forward_products(config, 1, WINDOW))
    return total_flops(training_products(config, 1, WINDOW, frozen))


def parameters(config: Any, frozen: Collection[str]) -> tuple[int, int]:
    """All of a model's, and those that are trained."""
    is_ours = isinstance(config, ExHuBERTConfig)
    model: Any = on_meta(ExHuBERTForSequenceClassification if is_ours else HubertForSequenceClassification, config)
    model.freeze_feature_encoder()
    if ORIGINALS in frozen:
        model.freeze_og_encoder()
    if PROJECTION in frozen:
        model.freeze_base_model()
    return model.num_parameters(), model.num_parameters(only_trainable=True)


def work_of_a_window() -> str:
    """Arithmetic, and what is trained."""
    rows = []
    for name, (config, frozen) in SYSTEMS.items():
        forward, step = flops(config), flops(config, frozen)
        total, trained = parameters(config, frozen)
        numbers = [f"{forward / 1e9:,.1f}", f"{step / 1e9:,.1f}", f"{step / forward:.2f}"]
        rows.append([name, *numbers, f"{total / 1e6:,.1f} M", f"{trained / 1e6:,.1f} M"])
    header = ["", "GFLOP, forward", "GFLOP, training", "training / forward", "parameters", "trained"]
    return markdown_table(header, rows)


def hours(name: str, clips: float) -> list[str]:
    """GPU hours of training on so many clips, for each card."""
    config, frozen = SYSTEMS[name]
    work = clips * flops(config, frozen)
    cells = [f"{work / card.bfloat16 / USED['training'] / 3600:,.1f}" for card in CARDS]
    return [f"{clips / 1e6:,.2f} M", f"{work:.1e}", *cells]


def training() -> str:
    """GPU hours of trainings."""
    plain, frozen = "HuBERT Large, all but the CNN", "ExHuBERT, originals frozen"
    stage_1 = 3000 * 37 * 8
    passes = stage_1 / 150_907
    many = 10_000 * 3600 / (119.5 * 3600 / 150_907)  # clips of EmoSet++'s mean length
    rows = [
        ["stage 1 on EmoSet++: 3,000 rounds of 37 batches of 8", *hours(plain, stage_1)],
        ["stage 2 on one corpus: 10,000 batches of 8", *hours(frozen, 80_000)],
        ["stage 1 on 10,000 hours, once through", *hours(plain, many)],
        [f"the same, {passes:.1f} times through as on EmoSet++", *hours(plain, passes * many)],
    ]
    return markdown_table(["", "windows", "FLOP", *(f"h on one {card.name}" for card in CARDS)], rows)


def update(clips: int) -> str:
    """Seconds of one update of stage 1 on 1, 8 and 64 cards: arithmetic, AdamW, all-reduce, and what hides what."""
    config, frozen = SYSTEMS["HuBERT Large, all but the CNN"]
    trained = parameters(config, frozen)[1]
    rows = []
    for card in CARDS[1:]:
        for cards in (1, 8, 64):
            arithmetic = clips / cards * flops(config, frozen) / card.bfloat16 / USED["training"]
            adamw = UPDATE_PASSES * trained / card.memory_bytes_per_second
            sent = 4 * trained * 2 * (cards - 1) / cards
            slowest = card.link_bytes_per_second
            if cards > CARDS_OF_A_MACHINE:
                slowest = BETWEEN_MACHINES  # a ring crosses each machine's link once for all of its cards
            network = sent / slowest
            cells = [f"{1000 * value:,.1f}" for value in (arithmetic, adamw, network)]
            rows.append([f"{card.name} x {cards}", f"{clips / cards:g}", *cells])
    header = ["", "clips a card", "arithmetic, ms", "AdamW, ms", "all-reduce, ms"]
    return markdown_table(header, rows, left=(0,))


def labelling() -> str:
    """A million hours, in windows of 3 s every 1.5 s."""
    windows = 1e6 * 3600 / HOP
    rows = []
    for name, config in (("HuBERT Large", HUBERT), ("ExHuBERT", EXHUBERT)):
        for card in CARDS:
            rate = card.bfloat16 * USED["inference"] / flops(config)
            days = [f"{windows / rate / cards / 86400:,.1f}" for cards in (1, 8, 64)]
            heard = rate * HOP
            reads = f"{heard * FLAC_BYTES_PER_SECOND / 1e6:,.0f} MB/s"
            rows.append([f"{name} on {card.name}", f"{rate:,.0f}", f"{heard:,.0f}", reads, *days])
    header = ["", "windows a second", "times real time", "reads", "days on 1", "on 8", "on 64"]
    return markdown_table([*header], rows)


def memory() -> str:
    """What weights, gradients and AdamW take, in GiB, how many clips fit beside them, and a checkpoint on disk."""
    rows = []
    for name, (config, frozen) in SYSTEMS.items():
        total, trained = parameters(config, frozen)
        parts = [4 * total, 4 * trained, 8 * trained]
        copies = 2 * total  # autocast's, of the weights, while a step lasts
        together = (sum(parts) + copies) / 2**30
        cells = [*(f"{value / 2**30:.1f}" for value in (*parts, copies)), f"{together:.1f}"]
        of_clip = ACTIVATIONS.get(config.num_hidden_layers, ACTIVATIONS[48] * config.num_hidden_layers / 48)
        clips = "hundreds" if frozen == BUT_THE_HEAD else f"{int((USABLE - together) / of_clip)}"
        rows.append([name, *cells, clips, f"{(4 * total + 8 * trained) / 1e9:.1f} GB"])
    header = ["", "weights", "gradients", "AdamW", "bfloat16 copies", "together", "clips in 24 GB", "checkpoint"]
    return markdown_table(header, rows)


def paper() -> str:
    """Seconds an update that the paper's hours leave, and what the arithmetic of a batch of 8 needs."""
    card = CARDS[0]
    updates = {
        "six transformers on 26 corpora": (121, 6 * 26 * 3000),
        "HuBERT on 37 and on 31 corpora": (87, (37 + 31) * 3000),
        "eight systems on 6 corpora": (88, 8 * 6 * 10_000),
    }
    step = 8 * flops(HUBERT, CNN) / card.float32
    rows = [
        [name, f"{h}", f"{count:,}", f"{3600 * h / count:.2f} s", f"{100 * step * count / (3600 * h):.0f} %"]
        for name, (h, count) in updates.items()
    ]
    return markdown_table(["", "h", "updates", "an update", "HuBERT's, 8 clips, of float32 peak"], rows)


def main() -> None:
    """Prints the tables."""
    for title, text in {
        "A window of 3 s": work_of_a_window(),
        "Training": training(),
        "An update of 8 clips, stage 1": update(8),
        "An update of 512 clips, stage 1": update(512),
        "A million hours labelled": labelling(),
        "Memory of training, GiB": memory(),
        "The paper's hours on one RTX 3090": paper(),
    }.items():
        print(f"## {title}\n\n{text}\n")


if __name__ == "__main__":
    main()
