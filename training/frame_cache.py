"""The output of a CNN feature encoder that stays as it is: computed once for each clip, and kept in a folder.

A folder holds one folder for each CNN (its weights, what shapes it, the window), with files of some clips each. A clip
is known by what is in its file, not by its name or place, so runs on the same audio share it, several at once, too.
What is kept of a clip:

- of one no longer than the window, what training computes without a cache: it is padded to the window and normalised
  over it;
- of a longer one all its frames, normalised over the clip: a crop has as many of them as a window has, with the clip's
  statistics where audio that was cropped first has its own.
"""

from __future__ import annotations

import functools
import hashlib
import io
import itertools
import json
import shutil
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import broadcast_object_list
from datasets import Dataset
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from transformers import PreTrainedModel

from exhubert.audio_exhubert import SAMPLING_RATE, audio_seconds, extract_features, read_audio
from exhubert.corpora.readers import locate_clip, rows_at_once
from exhubert.modeling_exhubert import FAST_PATH, frame_samples
from exhubert.utils.command import progress_bar
from exhubert.utils.files import UNFINISHED, disk_errors, locked, whole_file

FORMAT = 1  # of the files, and of what is computed
CNN_FIELDS = ("conv_dim", "conv_kernel", "conv_stride", "conv_bias", "feat_extract_norm", "feat_extract_activation")
KEY_BYTES = 16
FILE_BYTES = 2**27  # of frames in a file, about: so much is in memory while it is made
CLIPS_AT_ONCE = 8  # through the CNN
PIECE_SECONDS = 60.0  # longer clips go through the CNN in pieces: its first layer takes 400 MB for a minute
FLOAT32_BYTES = 4


@dataclass
class FrameCache:
    """Where the frames of each clip are.

    Attributes:
        window_frames: frames of a window.
        digests: of the audio files by their paths.
        places: by a clip's key its file, its first frame there, and how many it has.
    """

    window_frames: int
    digests: dict[str, bytes]
    places: dict[bytes, tuple[Path, int, int]]

    def crop(self, row: Mapping[str, Any], place: float) -> np.ndarray:
        """Reads a window of a clip.

        Args:
            row: the clip's, of a corpus that the cache was made for.
            place: 0 to 1, where it lies in a clip that is longer.

        Returns:
            float32 `(window_frames, channels)`.
        """
        path, first, frames = self.places[clip_key(row, self.digests)]
        spare = frames - self.window_frames
        first += min(spare, int(place * (spare + 1)))
        window: np.ndarray = open_frames(path).get_slice("frames")[first : first + self.window_frames]
        return window


class TakesFrames:
    """What a CNN feature encoder becomes: it hands on what has been through it `(batch, channels, frames)`."""

    takes_frames = True

    def forward(self, input_values: torch.Tensor) -> torch.Tensor:
        return input_values if input_values.dim() == 3 else super().forward(input_values)  # type: ignore[misc]


def take_frames(model: PreTrainedModel) -> None:
    """Makes a model take the output of its CNN in place of samples; of samples it computes what it did.

    Raises:
        ValueError: if it has no CNN feature encoder.
    """
    encoder: Any = getattr(model.base_model, "feature_extractor", None)
    if not hasattr(encoder, "conv_layers"):
        raise ValueError(
            f"cnn_cache: {type(model).__name__} (model_type {model.config.model_type!r}) has no CNN feature encoder "
            "whose output could be kept; leave cnn_cache out"
        )
    fast = FAST_PATH.get(type(encoder), type(encoder))
    # In place, as `set_fast_path` does: the weights stay where they are, and are saved under their names.
    encoder.__class__ = type(fast.__name__, (TakesFrames, fast), {})


def shared_frame_cache(main_process: bool, *arguments: Any) -> FrameCache:
    """`make_frame_cache(*arguments)`, by the main process for all; what it raises is raised on all of them."""
    made: list[Any] = [None]
    if main_process:
        try:
            made = [make_frame_cache(*arguments)]
        except (ValueError, OSError) as error:
            made = [error.with_traceback(None)]
    (cache,) = broadcast_object_list(made)
    if isinstance(cache, Exception):
        raise cache
    return cache


def make_frame_cache(
    directory: str,
    model: PreTrainedModel,
    extractor: Any,
    datasets: Sequence[Dataset],
    device: torch.device,
    say: Callable[[str], None] = print,
) -> FrameCache:
    """Computes what the folder lacks of some corpora, and returns where everything is.

    Args:
        directory: the folder, for any number of models and corpora. While one process computes, others wait.
        model: after `take_frames`; its CNN is put on `device`.
        extractor: its feature extractor, with its window as `window_seconds`.
        datasets: rows as `locate_clip` takes them.
        device: where to compute.
        say: told how much there is to do, and of damaged files, which are made anew.

    Raises:
        ValueError: if audio does not decode, or the disk has too little room.
        OSError: if the folder cannot be written.
    """
    encoder: Any = model.base_model.feature_extractor
    folder = Path(directory) / cnn_key(encoder, model.config, extractor)
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    first, more = frame_samples(model.config)
    window_samples = round(extractor.window_seconds * SAMPLING_RATE)
    cache = FrameCache((window_samples - first) // more + 1, {}, {})
    keys = [[clip_key(row, cache.digests) for rows in rows_at_once(each) for row in rows] for each in datasets]
    clips = set().union(*keys)
    cache.places |= find_frames(folder, clips, say)

    def missing() -> Iterator[tuple[bytes, dict[str, Any]]]:
        wanted = clips - cache.places.keys()
        for dataset, its_keys in zip(datasets, keys, strict=True):
            if not wanted.isdisjoint(its_keys):
                rows = (row for rows in rows_at_once(dataset) for row in rows)
                for key, row in zip(its_keys, rows, strict=True):
                    if key in wanted:  # the same clip may come twice
                        wanted.remove(key)
                        yield key, row

    count = len(clips - cache.places.keys())
    say(f"CNN cache {folder}: {count} of {len(clips)} clips are to be computed")
    if not count:
        return cache
    with locked(folder, wait=True):
        cache.places |= find_frames(folder, clips, say)  # what another process has computed meanwhile
        for left in folder.glob(f".*{UNFINISHED}"):  # by killed runs
            left.unlink()
        seconds = sum(max(clip_seconds(row), extractor.window_seconds) for _, row in missing())
        check_room(folder, seconds * SAMPLING_RATE / more * model.config.conv_dim[-1] * FLOAT32_BYTES)
        encoder.to(device)
        frames = compute(missing(), encoder, extractor, (first, more), device)
        count = len(clips - cache.places.keys())
        with progress_bar(frames, total=count, desc="CNN", unit="clip", disable=not count) as bar:
            for some in file_by_file(bar):
                cache.places |= write_frames(folder, some)
    return cache


def compute(
    clips: Iterator[tuple[bytes, dict[str, Any]]],
    encoder: Any,
    extractor: Any,
    frame_samples: tuple[int, int],
    device: torch.device,
) -> Iterator[tuple[bytes, np.ndarray]]:
    """Yields the keys of clips and their frames, float32 `(frames, channels)`."""
    window = round(extractor.window_seconds * SAMPLING_RATE)
    first, more = frame_samples
    step = (round(PIECE_SECONDS * SAMPLING_RATE) - first) // more + 1  # frames of a piece

    def model_input(row: Mapping[str, Any]) -> np.ndarray:
        samples = read_audio(*locate_clip(row))
        return extract_features(samples, extractor, max(window, len(samples)) / SAMPLING_RATE)

    @torch.no_grad()
    def encode(inputs: np.ndarray) -> np.ndarray:
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):  # other runs may be on a CPU
            frames: torch.Tensor = encoder(torch.from_numpy(inputs).to(device))
        return frames.transpose(1, 2).contiguous().cpu().numpy()

    with ThreadPoolExecutor() as pool:
        while batch := list(itertools.islice(clips, CLIPS_AT_ONCE)):
            inputs = list(pool.map(model_input, (row for _, row in batch)))
            windows = [samples for samples in inputs if len(samples) == window]
            encoded = iter(encode(np.stack(windows)) if windows else [])
            for (key, _), samples in zip(batch, inputs, strict=True):
                if len(samples) == window:
                    yield key, next(encoded)
                else:
                    begins = range(0, len(samples) - first + 1, step * more)
                    pieces = [samples[begin : begin + (step - 1) * more + first] for begin in begins]
                    yield key, np.concatenate([encode(piece[None])[0] for piece in pieces])


def file_by_file(clips: Iterable[tuple[bytes, np.ndarray]]) -> Iterator[dict[bytes, np.ndarray]]:
    """Puts clips together until they make a file."""
    some, size = {}, 0
    for key, frames in clips:
        some[key] = frames
        size += frames.nbytes
        if size >= FILE_BYTES:
            yield some
            some, size = {}, 0
    if some:
        yield some


def write_frames(folder: Path, clips: Mapping[bytes, np.ndarray]) -> dict[bytes, tuple[Path, int, int]]:
    """Writes a file of clips, whole or not at all, and returns their places."""
    keys = b"".join(clips)
    path = folder / f"{hashlib.blake2b(keys, digest_size=8).hexdigest()}.safetensors"
    tensors = {
        "frames": np.concatenate(list(clips.values())),
        "keys": np.frombuffer(keys, np.uint8).reshape(-1, KEY_BYTES),
        "counts": np.array([len(frames) for frames in clips.values()]),
    }
    with disk_errors(folder), whole_file(path) as unfinished:
        save_file(tensors, unfinished, {"checksum": checksum(tensors)})
    return places_of(path, tensors)


def find_frames(
    folder: Path, clips: Set[bytes], say: Callable[[str], None] = print
) -> dict[bytes, tuple[Path, int, int]]:
    """Returns the places of those clips that the folder has; removes files that are not as they were written."""
    open_frames.cache_clear()
    places: dict[bytes, tuple[Path, int, int]] = {}
    for path in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(path, framework="numpy") as file:
                tensors = {name: file.get_tensor(name) for name in ("keys", "counts")}
                found = places_of(path, tensors)
                if clips.isdisjoint(found):
                    continue
                whole = checksum({"frames": file.get_tensor("frames"), **tensors}) == file.metadata()["checksum"]
        except FileNotFoundError:  # another process found it damaged
            continue
        except SafetensorError:
            whole = False
        if whole:
            places |= {key: found[key] for key in clips & found.keys()}
        else:
            say(f"{path} is damaged: its clips are computed anew")
            path.unlink(missing_ok=True)
    return places


def places_of(path: Path, tensors: Mapping[str, np.ndarray]) -> dict[bytes, tuple[Path, int, int]]:
    """The places of the clips of a file."""
    counts = tensors["counts"].tolist()
    firsts = np.cumsum([0, *counts]).tolist()
    return {bytes(key): (path, *place) for key, *place in zip(tensors["keys"], firsts[:-1], counts, strict=True)}


def checksum(tensors: Mapping[str, np.ndarray]) -> str:
    """Changes when a file's tensors do."""
    return str([zlib.crc32(tensors[name].data) for name in ("frames", "keys", "counts")])


@functools.cache
def open_frames(path: Path) -> Any:
    """A file, memory-mapped, opened once in each process."""
    return safe_open(path, framework="numpy")


def cnn_key(encoder: torch.nn.Module, config: Any, extractor: Any) -> str:
    """A word that changes with whatever the frames of a clip follow from, but for the clip."""
    what = {"format": FORMAT, "class": type(encoder).__name__} | {name: getattr(config, name) for name in CNN_FIELDS}
    what |= {"window_seconds": extractor.window_seconds, "do_normalize": extractor.do_normalize}
    digest = hashlib.blake2b(json.dumps(what, default=str).encode(), digest_size=8)
    for name, weight in encoder.state_dict().items():
        digest.update(name.encode() + weight.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def clip_key(row: Mapping[str, Any], digests: dict[str, bytes]) -> bytes:
    """A clip's key, which follows from the bytes of its audio and the part of it; `digests` has those of files."""
    audio, start, duration = locate_clip(row)
    if isinstance(audio, io.BytesIO):
        digest = hashlib.blake2b(audio.getbuffer()).digest()
    else:
        path = str(audio)
        if path not in digests:
            hashed = hashlib.blake2b()
            with open(path, "rb") as file:
                while block := file.read(2**20):
                    hashed.update(block)
            digests[path] = hashed.digest()
        digest = digests[path]
    part = (float(start), None if duration is None else float(duration))
    return hashlib.blake2b(digest + repr(part).encode(), digest_size=KEY_BYTES).digest()


def clip_seconds(row: Mapping[str, Any]) -> float:
    """How long a clip is, as its row or its file's header says."""
    audio, start, duration = locate_clip(row)
    return audio_seconds(audio) - start if duration is None else duration


def check_room(folder: Path, needed: float) -> None:
    """Raises ValueError if the disk has less room than the bytes that are needed."""
    disk = shutil.disk_usage(folder)
    if disk.total and needed > disk.free:  # some network disks say that they have 0 bytes
        raise ValueError(
            f"cnn_cache: {folder} needs {needed / 1e9:.3g} GB more, and {disk.free / 1e9:.3g} GB are free there; "
            "make room, or give another folder"
        )
