"""`exhubert embed`: mean hidden states of files, folders, globs and standard input, as parquet or npz."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from exhubert.inference.analyse import Options, analyse, open_pipeline
from exhubert.inference.audio_files import as_text, find_audio, go_through, output_file

ROWS_AT_ONCE = 4096  # in memory while parquet is written: 16 MiB at 1,024 values each

Row = tuple[str, float, float, np.ndarray]  # file, start and end in seconds, embedding


def run_embed(
    model: str,
    audio: Sequence[str],
    output: str,
    layer: str = "last",
    per: str = "clip",
    window_seconds: float | None = None,
    hop_seconds: float | None = None,
    vad: bool = False,
) -> int:
    """Writes an embedding for each clip or window; returns the exit code.

    Parquet has the columns `file`, `start`, `end` (seconds) and `embedding` (a list of float32), npz the arrays
    `files`, `starts`, `ends` and `embeddings`, float32 `(rows, hidden_size)`. The file is there when it is complete.
    Parquet is written as rows come; npz is held in memory until the end.

    Args:
        model, window_seconds, hop_seconds, vad: as for `run_predict`; windows without speech have no row and no part
            in their clip's embedding, and a clip without speech counts as bad.
        audio: see `find_audio`.
        output: a .parquet or .npz file, which is replaced; a link stays, and what it leads to is replaced.
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
    if suffix not in WRITERS:
        raise ValueError(f"{output}: embeddings are written to {' or '.join(WRITERS)}")
    path = output_file(output)
    files = find_audio(audio)
    options = Options(window_seconds, hop_seconds, _layer(layer), vad)
    pipeline = open_pipeline(model, options)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.unfinished")

    def embed(sound: Any, heard: Callable[[float], None]) -> list[tuple[float, float, np.ndarray]]:
        result = analyse(pipeline, options, sound, heard)
        windows = [window for window in result["windows"] if "embedding" in window]
        if not windows:
            raise ValueError("there is no speech in it")
        if per == "clip":
            return [(0.0, result["windows"][-1]["end"], result["embedding"])]
        return [(window["start"], window["end"], window["embedding"]) for window in windows]

    try:
        with WRITERS[suffix](unfinished) as write:

            def keep(name: str, rows: Any, problem: str) -> str:
                for row in rows or ():
                    write((as_text(name), *row))
                return problem

            code = go_through(files, embed, keep)
        if code != 1:
            unfinished.replace(path)
        return code
    finally:
        unfinished.unlink(missing_ok=True)


def _layer(layer: str) -> bool | int | str:
    """The pipeline's `embeddings`."""
    if layer == "last":
        return True
    if layer == "weighted":
        return layer
    if not layer.isdecimal():
        raise ValueError(f"--layer is {layer!r}; it must be last, weighted or a number from 0")
    return int(layer)


@contextlib.contextmanager
def _parquet(path: Path) -> Iterator[Callable[[Row], None]]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise ImportError("parquet needs pyarrow: pip install pyarrow; or write .npz") from error
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


@contextlib.contextmanager
def _npz(path: Path) -> Iterator[Callable[[Row], None]]:
    rows: list[Row] = []
    yield rows.append
    if rows:
        files, starts, ends, embeddings = zip(*rows, strict=True)
        with path.open("wb") as file:
            np.savez(file, files=np.array(files), starts=starts, ends=ends, embeddings=np.stack(embeddings))


WRITERS = {".parquet": _parquet, ".npz": _npz}
