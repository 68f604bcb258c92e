"""What masked frames are to be predicted as: clusters of MFCC, or of another model's hidden states (k-means)."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object
from scipy.signal import savgol_filter
from sklearn.cluster import MiniBatchKMeans
from sklearn.metrics import adjusted_mutual_info_score
from transformers import HubertConfig

from exhubert.audio_exhubert import SAMPLING_RATE, prepare_input, read_audio
from exhubert.corpora.readers import locate_clip
from exhubert.modeling_exhubert import ExHuBERTModel, frame_samples
from exhubert.training.audio_pool import AudioPool
from exhubert.training.round_robin import generator
from exhubert.utils.command import progress_bar
from exhubert.utils.files import whole_file

MFCC_WINDOW = 400  # samples, 25 ms
MFCC_COEFFICIENTS = 13
DELTA_FRAMES = 5
SAMPLED_FRAMES = 200_000  # that k-means is fitted on, at most
COMPARED_FRAMES = 50_000  # of them, on which clusterings from several seeds are compared
OTHER_SEEDS = 2
TARGETS = "targets.npz"
_SAMPLE = 100  # what a random stream is for; those of round_robin.py are smaller
READ_AHEAD = 16  # clips

Features = Callable[[np.ndarray], np.ndarray]


def frame_count(samples: int, config: HubertConfig) -> int:
    """How many frames the model makes of so many samples."""
    first, more = frame_samples(config)
    return max(0, (samples - first) // more + 1)


def mfcc_with_deltas(samples: np.ndarray, config: HubertConfig) -> np.ndarray:
    """Returns Kaldi's MFCC of a clip with their deltas and the deltas' deltas, a row a frame of the model.

    13 coefficients, the first of which is C0, of 23 mel bands, from windows of 25 ms. A row's window lies in the middle
    of the samples that the model's CNN sees for that frame: of HuBERT's own CNN it is just these. Deltas are the usual
    regression over five frames, which is what a Savitzky-Golay filter of order 1 computes; beyond the clip's ends its
    first and last frame are repeated.

    Args:
        samples: 16 kHz mono `(samples,)`.
        config: of the model, whose CNN says where its frames are.

    Returns:
        float32 `(frames, 39)`.
    """
    from kaldi_native_fbank import MfccOptions, OnlineMfcc

    first, more = frame_samples(config)
    frames = frame_count(len(samples), config)
    offset = (first - MFCC_WINDOW) // 2
    needed = (frames - 1) * more + MFCC_WINDOW  # from the offset on
    samples = np.pad(samples, max(0, -offset))[max(0, offset) :][:needed]
    options = MfccOptions()
    options.frame_opts.dither = 0.0
    options.frame_opts.frame_length_ms = 1000 * MFCC_WINDOW / SAMPLING_RATE
    options.frame_opts.frame_shift_ms = 1000 * more / SAMPLING_RATE
    options.num_ceps = MFCC_COEFFICIENTS
    options.use_energy = False
    computer = OnlineMfcc(options)
    computer.accept_waveform(SAMPLING_RATE, np.ascontiguousarray(samples, dtype=np.float32))
    computer.input_finished()
    values = np.stack([computer.get_frame(frame) for frame in range(frames)])
    deltas = savgol_filter(values, DELTA_FRAMES, polyorder=1, deriv=1, axis=0, mode="nearest")
    accelerations = savgol_filter(deltas, DELTA_FRAMES, polyorder=1, deriv=1, axis=0, mode="nearest")
    return np.concatenate([values, deltas, accelerations], axis=1).astype(np.float32)


def hidden_states_of(model: ExHuBERTModel, layer: int) -> Features:
    """Returns a function that maps a clip's samples to a model's hidden states, float32 `(frames, hidden_size)`."""

    def features(samples: np.ndarray) -> np.ndarray:
        values = torch.from_numpy(prepare_input(samples, None))[None].to(model.device)
        with torch.inference_mode():
            states = model(values, output_hidden_states=True).hidden_states[layer][0]
        return states.float().cpu().numpy()

    return features


@dataclass
class Targets:
    """The clusters of a pool's frames.

    Attributes:
        of_clips: for each clip of the pool its frames' clusters, int16 `(frames,)`; empty where it is left out.
        centroids: float32 `(clusters, dimensions)`, in the normalised features.
        mean, scale: what was taken from the features, and what they were divided by, float32 `(dimensions,)`.
        facts: what `results.json` says of them.
    """

    of_clips: list[np.ndarray]
    centroids: np.ndarray
    mean: np.ndarray
    scale: np.ndarray
    facts: dict[str, Any]


def find_targets(
    pool: AudioPool,
    train: np.ndarray,
    features: Features,
    clusters: int,
    shortest: int,
    config: HubertConfig,
    seed: int,
    say: Callable[[str], None] = print,
) -> Targets:
    """Fits k-means on a part of the training clips' frames, and assigns all frames of all clips.

    The clips are dealt to the processes; the result does not depend on their number. Silent clips, all of whose samples
    are zero, and those with fewer than `shortest` frames are left out.

    Args:
        pool: the clips.
        train: which clips k-means may be fitted on, boolean `(clips,)`.
        features: maps samples to `(frames, dimensions)`.
        clusters: how many there shall be.
        shortest: frames of the shortest clip that is used.
        config: of the model that is trained, whose frames they are.
        seed: of the choice of clips and of k-means.
        say: takes notices.

    Raises:
        ValueError: if audio does not decode; if no clip is left, or there are fewer frames than clusters.
    """
    state = PartialState()
    order = generator(seed, _SAMPLE).permutation(np.flatnonzero(train))
    seconds = pool.table["duration_seconds"].to_numpy()[order]
    enough = 1 + int(np.searchsorted(np.cumsum(seconds) * SAMPLING_RATE / frame_samples(config)[1], SAMPLED_FRAMES))
    sample = sorted(order[:enough])
    found = gather_object(list(each_clip(pool, sample, features, shortest, config, "features")))
    found.sort(key=lambda each: each[0])
    rows = [values for _, values, problem in found if not problem]
    if not rows:
        raise ValueError(f"none of {len(sample)} clips can be used: {found[0][2]}")
    frames = np.concatenate(rows)
    if len(frames) < clusters:
        raise ValueError(f"clusters is {clusters}, and the clips have {len(frames)} frames; give fewer, or more audio")
    fitted: list[Any] = [fit_clusters(frames, clusters, seed) if state.is_main_process else None]
    mean, scale, centroids, facts = broadcast_object_list(fitted)[0]
    assign = assigner(centroids)

    def clusters_of(samples: np.ndarray) -> np.ndarray:
        return assign((features(samples) - mean) / scale).astype(np.int16)

    assigned = gather_object(list(each_clip(pool, range(len(pool)), clusters_of, shortest, config, "targets")))
    assigned.sort(key=lambda each: each[0])
    of_clips = [values for _, values, _ in assigned]
    problems = [problem for _, _, problem in assigned if problem]
    if problems:
        say(f"left out: {len(problems)} of {len(pool)} clips; the first: {problems[0]}")
    used = np.concatenate([of_clips[clip] for clip in np.flatnonzero(train)])
    counts = np.bincount(used, minlength=clusters)
    facts = {"clusters": clusters, "frames": len(used), "left_out": len(problems), **facts}
    return Targets(of_clips, centroids, mean, scale, facts | {"perplexity": perplexity(counts)})


def each_clip(
    pool: AudioPool,
    clips: Sequence[int],
    compute: Features,
    shortest: int,
    config: HubertConfig,
    description: str,
) -> Iterator[tuple[int, np.ndarray, str]]:
    """Yields, for this process's share of some clips, each one's number, what is computed of it, and why it is not."""
    state = PartialState()
    mine = list(clips)[state.process_index :: state.num_processes]

    def read(clip: int) -> tuple[dict[str, Any], np.ndarray]:
        row = pool[clip]
        return row, read_audio(*locate_clip(row))

    bar = progress_bar(total=len(mine), desc=description, unit="clip", disable=not state.is_main_process)
    with ThreadPoolExecutor(max_workers=2) as threads, bar:
        ahead = deque(threads.submit(read, clip) for clip in mine[:READ_AHEAD])
        for number, clip in enumerate(mine):
            row, samples = ahead.popleft().result()
            if number + READ_AHEAD < len(mine):
                ahead.append(threads.submit(read, mine[number + READ_AHEAD]))
            frames, problem = frame_count(len(samples), config), ""
            if frames < shortest:
                problem = f"{row['file_name']} has {len(samples) / SAMPLING_RATE:.2f} s, less than one masked span"
            elif not samples.any():
                problem = f"{row['file_name']} is silent, all of its samples are zero"
            yield clip, np.zeros(0, np.int16) if problem else compute(samples), problem
            bar.update()


def fit_clusters(
    frames: np.ndarray, clusters: int, seed: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
    """Normalises features and fits k-means on them, also from other seeds, to see how far the clusters hang on them.

    Returns:
        Mean, scale, centroids; and `stability`, the mean adjusted mutual information of each two of the clusterings.
    """
    frames = generator(seed, _SAMPLE, 1).permutation(frames)[:SAMPLED_FRAMES]
    mean, scale = frames.mean(axis=0), frames.std(axis=0)
    scale[scale == 0] = 1.0
    normalised = ((frames - mean) / scale).astype(np.float32)
    fits = [
        MiniBatchKMeans(
            clusters,
            init="k-means++",
            batch_size=10_000,
            n_init=3,
            max_iter=30,
            max_no_improvement=100,
            reassignment_ratio=0.0,
            compute_labels=False,
            random_state=seed + number,
        ).fit(normalised)
        for number in range(1 + OTHER_SEEDS)
    ]
    labels = [assigner(fit.cluster_centers_)(normalised[:COMPARED_FRAMES]) for fit in fits]
    agreement = [adjusted_mutual_info_score(*pair) for pair in itertools.combinations(labels, 2)]
    centroids = fits[0].cluster_centers_.astype(np.float32)
    return mean, scale, centroids, {"stability": float(np.mean(agreement))}


def assigner(centroids: np.ndarray) -> Features:
    """Returns a function that maps normalised features `(frames, dimensions)` to the nearest centroids `(frames,)`."""
    lengths = 0.5 * np.square(centroids).sum(axis=1)
    return lambda features: (lengths - features @ centroids.T).argmin(axis=1)


def perplexity(counts: np.ndarray) -> float:
    """How many clusters are used, as if all of those were used alike: e to the entropy of the counts' shares."""
    shares = counts[counts > 0] / counts.sum()
    return float(np.exp(-(shares * np.log(shares)).sum()))


def targets_key(pool: AudioPool, settings: dict[str, Any]) -> str:
    """Changes with the clips and with what the targets are made of."""
    return hashlib.sha256(json.dumps([pool.digest(), settings], sort_keys=True).encode()).hexdigest()


def save_targets(path: Path, targets: Targets, key: str) -> None:
    """Writes the targets, whole or not at all."""
    lengths = np.array([len(each) for each in targets.of_clips])
    with whole_file(path) as unfinished, unfinished.open("wb") as file:
        np.savez(
            file,
            frames=np.concatenate(targets.of_clips),
            lengths=lengths,
            centroids=targets.centroids,
            mean=targets.mean,
            scale=targets.scale,
            facts=json.dumps(targets.facts),
            key=key,
        )


def load_targets(path: Path, key: str) -> Targets | None:
    """Returns the targets that a run has kept; None if there are none, or they were made of something else."""
    if not path.is_file():
        return None
    with contextlib.suppress(ValueError, OSError, KeyError, EOFError), np.load(path, allow_pickle=False) as kept:
        if str(kept["key"]) == key:
            of_clips = np.split(kept["frames"], np.cumsum(kept["lengths"])[:-1])
            facts = json.loads(str(kept["facts"]))
            return Targets(of_clips, kept["centroids"], kept["mean"], kept["scale"], facts)
    return None
