"""`exhubert embed`: mean hidden states of files, folders, globs and standard input, as parquet."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from exhubert.inference.audio_files import find_audio, output_file, process_files
from exhubert.inference.speech import classify_file, open_pipeline
from exhubert.utils.files import locked, whole_file
from exhubert.utils.text import as_text

ROWS_AT_ONCE = 4096  # in memory while parquet is written: 16 MiB at 1,024 values each

Row = tuple[str, float, float, np.ndarray]  # file, start and end in seconds, embedding


class NothingToWrite(Exception):
    """Leaves `whole_file` without a file."""


def run_embed(
    model: str,
    audio: Sequence[str],
    output: str,
    layer: str = "last",
    per: str = "clip",
    window_seconds: float | None = None,
    hop_seconds: float | None = None,
    vad: bool = False,
    trust_remote_code: bool = False,
) -> int:
    """Writes an embedding for each clip or window; returns the exit code.

    Parquet has the columns `file`, `start`, `end` (seconds) and `embedding` (a list of `hidden_size` float32). The file
    is there when it is complete; rows are written as they come.

    Args:
        model, window_seconds, hop_seconds, vad, trust_remote_code: as for `run_predict`; windows without speech have no
            row and no part in their clip's embedding, and a clip without speech counts as bad.
        audio: see `find_audio`.
        output: a .parquet file, which is replaced; a link stays, and what it leads to is replaced.
        layer: "last", "weighted", or the number of a hidden state, as the pipeline's `embeddings`.
        per: "clip", the mean over a clip's windows, or "window".

    Returns:
        0; 2 if some files are bad; 1 if all are, and nothing is written.

    Raises:
        ValueError: if an argument is wrong.
        OSError: if there is no such model, or the output cannot be written.
        ImportError: if what parquet or `vad` needs is not installed.
    """
    suffix = Path(output).suffix.lower()
    if suffix != ".parquet":
        numpy = "; numpy.stack(pandas.read_parquet(FILE)['embedding']) is the array" if suffix == ".npz" else ""
        raise ValueError(f"{output}: embeddings are written to .parquet{numpy}")
    if layer not in ("last", "weighted") and not layer.isdecimal():
        raise ValueError(f"--layer is {layer!r}; it must be last, weighted or a number from 0")
    path = output_file(output)
    files = find_audio(audio)
    embeddings = int(layer) if layer.isdecimal() else layer == "last" or layer
    options = {"window_seconds": window_seconds, "hop_seconds": hop_seconds, "embeddings": embeddings}
    pipeline = open_pipeline(model, vad, trust_remote_code, **options)

    def embed(sound: Any, on_progress: Callable[[float], None]) -> list[tuple[float, float, np.ndarray]]:
        result = classify_file(pipeline, sound, on_progress, vad, **options)
        windows = [window for window in result["windows"] if "embedding" in window]
        if not windows:
            raise ValueError("there is no speech in it")
        if per == "clip":
            return [(0.0, result["windows"][-1]["end"], result["embedding"])]
        return [(window["start"], window["end"], window["embedding"]) for window in windows]

    code = 1
    with (
        contextlib.suppress(NothingToWrite),
        locked(path),
        whole_file(path) as unfinished,
        parquet_rows(unfinished) as write,
    ):

        def write_rows(name: str, rows: Any, problem: str) -> str:
            for row in rows or ():
                write((as_text(name), *row))
            return problem

        code = process_files(files, embed, write_rows)
        if code == 1:
            raise NothingToWrite
    return code


@contextlib.contextmanager
def parquet_rows(path: Path) -> Iterator[Callable[[Row], None]]:
    """Yields a function that adds a row to a parquet file."""
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise ImportError("parquet needs pyarrow: pip install pyarrow") from error
    vector = pyarrow.list_(pyarrow.float32())
    schema = pyarrow.schema(
        {"file": pyarrow.string(), "start": pyarrow.float64(), "end": pyarrow.float64(), "embedding": vector}
    )
    held: list[Row] = []
    with parquet.ParquetWriter(path, schema) as writer:

        def flush() -> None:
            columns = [list(column) for column in zip(*held, strict=True)]
            writer.write_table(pyarrow.table(columns, schema=schema))
            held.clear()

        def write(row: Row) -> None:
            held.append(row)
            if len(held) == ROWS_AT_ONCE:
                flush()

        yield write
        if held:
            flush()
