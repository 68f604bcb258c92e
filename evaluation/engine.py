"""Clips through a model: decoded ahead in threads, in batches across clips, answered in order.

`exhubert predict` and `embed`, `evaluate_hf.py` and the evaluation in training go through `classify_clips`. Which
windows make a batch follows from the clips and the batch size, not from how fast clips are read, unless one takes a
second.
"""

from __future__ import annotations

import itertools
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any, NamedTuple

import torch
from transformers import Wav2Vec2FeatureExtractor

from exhubert.pipeline_exhubert import Answers, Row, Window, answer_batch, batch_windows

WINDOWS_AT_A_TIME = 8  # are made of a clip
WINDOWS_AHEAD = 64  # are made before the model asks for them
MOST_READERS = 8  # threads
PATIENCE_SECONDS = 1.0  # for which windows wait for those of the next clip

Rows = Sequence[Row | Exception]  # of a batch: what the model said of each window, or why not


def classify_clips(
    model: Any,
    extractor: Any,
    clips: Iterable[tuple[str, Iterator[Window]]],
    batch_size: int = 8,
    masked: bool = False,
    embeddings: bool | int | str = False,
    in_step: Callable[[bool], bool] | None = None,
    on_progress: Callable[[float], None] | None = None,
) -> Iterator[Answers]:
    """Classifies clips in windows and batches; yields what is said of each, in their order, as soon as it is known.

    The first clip waits for no other one. What is held grows neither with their number nor with the length of one, but
    for its answers. A clip that cannot be read, or that the model does not answer, costs no other one its answer.

    Args:
        model: an audio-classification model, in the mode and on the device that it shall work in.
        extractor: its feature extractor.
        clips: of each the name, for errors, and the windows, which say its number: 0 and so on. They are made in a
            thread; a ValueError or OSError that this raises is the clip's.
        batch_size: windows in a forward, at most. On the CPU they are dealt to the cores, which each run a part; on a
            GPU two forwards are under way at once.
        masked, embeddings: as for `answer_batch`.
        in_step: called before each batch with whether this process has one, and returns whether any process has one;
            a process that has none repeats its last, and what a model raises is raised; one whose clips are all bad
            ends without another batch. None lets each process go at its own pace.
        on_progress: called with the seconds of audio that were read.
    """
    ahead = max(WINDOWS_AHEAD, 2 * batch_size)
    waiting: dict[int, Answers] = {}  # the clips that are under way, in order
    read = 0  # clips that were read to their end

    def windows() -> Iterator[Window | None]:
        nonlocal read
        for piece in read_ahead(clips, ahead):
            if piece is None:
                yield None
                continue
            answers = waiting.setdefault(piece.clip, Answers(piece.name))
            begin = answers.seconds
            if isinstance(piece.windows, Exception):
                answers.error = piece.windows
            else:
                yield from answers.noted(piece.windows)
            if on_progress is not None:
                on_progress(answers.seconds - begin)
            if piece.last:
                read = piece.clip + 1
                # Bad clips and silent ones bring no window, after which the clips before them would be answered.
                stuck = len(waiting) > 4 * ahead or all(answers.whole for answers in waiting.values())
                if piece.clip == 0 or stuck:
                    yield None

    @torch.no_grad()
    def answer(batch: Sequence[Window]) -> Rows:
        try:
            return answer_batch(model, extractor, batch, masked, embeddings)
        except (ValueError, RuntimeError) as error:
            if in_step is not None:  # the other processes would wait for this one
                raise
            # Each alone: what is wrong with one, or with their number, is not the others' fault.
            return [error] if len(batch) == 1 else [row for window in batch for row in answer([window])]

    threads = model_threads(model, extractor, batch_size) if in_step is None else 1
    of_thread = -(-batch_size // threads) if model.device.type == "cpu" else batch_size
    batches = batch_windows(windows(), of_thread, masked)
    answered: Iterator[tuple[list[Window], Rows]]
    if in_step is not None:
        answered = ((batch, answer(batch)) for batch in repeat_last(filter(None, batches), in_step))
    else:
        answered = answer_all(answer, batches, threads)
    for batch, rows in answered:
        for window, row in zip(batch, rows, strict=True):
            if window.clip in waiting:  # else the batch is one that was repeated
                waiting[window.clip].add(window, row)
        while waiting and (first := next(iter(waiting))) < read and waiting[first].whole:
            yield waiting.pop(first)
    yield from waiting.values()


class Piece(NamedTuple):
    """Some windows of a clip.

    Attributes:
        clip, name: its number and name.
        windows: the next ones, or why there are none.
        last: whether they are the last ones.
    """

    clip: int
    name: str
    windows: list[Window] | Exception
    last: bool


def read_ahead(clips: Iterable[tuple[str, Iterator[Window]]], most: int) -> Iterator[Piece | None]:
    """Makes the windows of clips in threads, about `most` of them before they are asked for.

    Yields:
        All windows, in their order, in pieces; None where the next ones are not there within a second.
    """

    def make(windows: Iterator[Window]) -> list[Window] | Exception:
        try:
            return list(itertools.islice(windows, WINDOWS_AT_A_TIME))
        except (ValueError, OSError) as error:
            return error

    def count(future: Future[list[Window] | Exception]) -> int:
        if not future.done():
            return WINDOWS_AT_A_TIME
        made = future.result()
        return len(made) if isinstance(made, list) and made else 1

    numbered = enumerate(clips)
    ahead: deque[tuple[int, str, Iterator[Window], Future[list[Window] | Exception]]] = deque()
    pool = ThreadPoolExecutor(min(MOST_READERS, os.cpu_count() or 1))
    try:
        while True:
            while sum(count(future) for *_, future in ahead) < most:
                if (following := next(numbered, None)) is None:
                    break
                number, (name, windows) = following
                ahead.append((number, name, windows, pool.submit(make, windows)))
            if not ahead:
                return
            number, name, windows, future = ahead.popleft()
            if not wait([future], PATIENCE_SECONDS).done:
                yield None
            made = future.result()
            last = isinstance(made, Exception) or len(made) < WINDOWS_AT_A_TIME
            if not last:
                ahead.appendleft((number, name, windows, pool.submit(make, windows)))
            yield Piece(number, name, made, last)
    finally:
        pool.shutdown(cancel_futures=True)


def model_threads(model: Any, extractor: Any, batch_size: int) -> int:
    """How many threads run a model at once.

    On the CPU small batches, one a core, are faster than a larger one on all cores, as most steps of a forward are too
    small to be shared: by 28 % with a small model, by 3 % with a large one. ONNX models share their cores themselves,
    and transformers' models of spectrograms are not all made for several threads. On a GPU the next batch is sent
    while one is computed.
    """
    if model.device.type == "cpu" and isinstance(extractor, Wav2Vec2FeatureExtractor):
        return min(torch.get_num_threads(), batch_size) if next(model.parameters(), None) is not None else 1
    return 2 if model.device.type == "cuda" else 1


def answer_all(
    answer: Callable[[Sequence[Window]], Rows], batches: Iterator[list[Window]], threads: int
) -> Iterator[tuple[list[Window], Rows]]:
    """Yields batches with their answers, in order; after an empty batch, all that were before it.

    The first one is answered in the caller's thread, on all cores: until then nothing else can be done.
    """
    cores = torch.get_num_threads()
    for batch in batches:
        yield batch, answer(batch) if batch else []
        if batch:
            break
    under_way: deque[tuple[list[Window], Future[Rows]]] = deque()
    pool = ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(max(1, cores // threads),))
    try:
        for batch in batches:
            if batch:
                under_way.append((batch, pool.submit(answer, batch)))
            while len(under_way) > (threads if batch else 0):
                oldest, future = under_way.popleft()
                yield oldest, future.result()
            if not batch:
                yield [], []
        for oldest, future in under_way:
            yield oldest, future.result()
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(cores)  # threads that are new take the number that was set last, in whichever thread


def repeat_last(batches: Iterable[Any], in_step: Callable[[bool], bool]) -> Iterator[Any]:
    """Yields batches, the last of them again and again for as long as another process has one."""
    iterator, batch = iter(batches), None
    while True:
        following = next(iterator, None)
        batch = following or batch
        if not in_step(following is not None) or batch is None:
            return
        yield batch
