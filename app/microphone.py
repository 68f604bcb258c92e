"""The live microphone of one visitor: chunks go in, the windows of the pipeline's `stream` come out."""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Iterator
from typing import Any

import numpy as np

MOST_CHUNKS = 64  # that wait for the model; of a browser that sends half a second at a time half a minute
MOST_WINDOWS = 20  # that are kept and shown
PATIENCE_SECONDS = 20.0  # without a chunk the visitor is taken to be gone


class Listener:
    """Classifies what it is fed in a thread of its own, which ends by itself.

    Attributes:
        windows: the newest, as `stream` yields them.
        count: of all windows.
        error: what went wrong, for people; empty if nothing did.
    """

    def __init__(self, pipeline: Any, sampling_rate: int) -> None:
        self.windows: deque[dict[str, Any]] = deque(maxlen=MOST_WINDOWS)
        self.count = 0
        self.error = ""
        self._chunks: queue.Queue[np.ndarray | None] = queue.Queue(MOST_CHUNKS)
        self._thread = threading.Thread(target=self._listen, args=(pipeline, sampling_rate), daemon=True)
        self._thread.start()

    def feed(self, samples: np.ndarray) -> None:
        """Takes mono samples `(samples,)`; nothing after the end, or while the model is half a minute behind."""
        try:
            if self._thread.is_alive():
                self._chunks.put_nowait(samples)
        except queue.Full:
            self.error = "The model is slower than your microphone; parts were left out."

    def finish(self, timeout: float = 10.0) -> None:
        """Ends the stream; what is left makes the last window."""
        try:
            self._chunks.put(None, timeout=timeout)
            self._thread.join(timeout)
        except queue.Full:
            pass

    def _listen(self, pipeline: Any, sampling_rate: int) -> None:
        def chunks() -> Iterator[np.ndarray]:
            try:
                while (chunk := self._chunks.get(timeout=PATIENCE_SECONDS)) is not None:
                    yield chunk
            except queue.Empty:
                pass

        try:
            for window in pipeline.stream(chunks(), sampling_rate=sampling_rate):
                self.windows.append(window)
                self.count += 1
        except ValueError as error:
            self.error = str(error)
