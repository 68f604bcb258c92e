"""`exhubert predict`: classifies files, folders, globs and standard input."""

from __future__ import annotations

import contextlib
import hashlib
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from exhubert.audio_exhubert import longest_input_seconds
from exhubert.inference.audio_files import STANDARD_INPUT, find_audio, output_file, process_files
from exhubert.inference.prediction_rows import FORMATS, Layout, open_rows
from exhubert.inference.processes import Team, new_part, parts_of, team
from exhubert.inference.speech import Classified, Options, classify_files, open_pipeline
from exhubert.pipeline_exhubert import ExHuBERTPipeline
from exhubert.utils.text import as_text, printable

MODEL_FILES = (".safetensors", ".bin", ".onnx", ".onnx.data", ".json")


def run_predict(
    model: str,
    audio: Sequence[str],
    style: str | None = None,
    output: str | None = None,
    timeline: str | None = None,
    files_from: str | None = None,
    per: str = "clip",
    **options: Any,
) -> int:
    """Classifies audio; prints a row a file, or adds it to a file, as soon as it is known; returns the exit code.

    Of several processes each takes a share of the files, and keeps its rows beside `output` until all are done.

    Args:
        model: folder or Hub id of an audio-classification model, or folder of its ONNX export.
        audio, files_from: see `find_audio`.
        style: table, jsonl or csv; if None, what `output` is called, without one table.
        output: a .jsonl or .csv file. Audio files that have a row there, without an error, are skipped.
        timeline: folder for a picture of each file; a file whose picture cannot be written has its row, and is bad.
        per: "clip", or "window" for a row a window, of which jsonl and csv have the same columns.
        options: those of `Options`.

    Returns:
        0; 2 if some files are bad; 1 if all are.

    Raises:
        ValueError: if an argument is wrong.
        OSError: if there is no such model, or an output cannot be written.
        ImportError: if what speech detection or `timeline` needs is not installed.
    """
    heard = Options(**options)
    with team() as processes, contextlib.ExitStack() as stack:
        style = processes.from_leader(lambda: row_style(style, output, per))
        files = processes.from_leader(lambda: files_of_team(processes, audio, files_from, output))
        plot = None if timeline is None else find_plot()
        pictures = picture_paths(timeline, files) if timeline is not None else {}
        pipeline = processes.leader_first(lambda: open_pipeline(model, heard))
        widest = max(len(printable(name)) for name in files)
        layout = Layout(style, pipeline.class_names, pipeline.quadrant, widest, per, pipeline.dimensions)
        if timeline is not None:
            Path(timeline).mkdir(parents=True, exist_ok=True)

        rows, left = sys.stdout, files
        if output is None:
            rows.write(layout.header())
        else:
            path = output_file(output)
            settings = {"format": style, "per": per, **row_settings(model, pipeline, heard)}

            def begin() -> tuple[list[str], list[Path]]:
                nonlocal rows
                rows, left = stack.enter_context(open_rows(path, layout, settings, files))
                return left, parts_of(path)

            left, earlier = processes.from_leader(begin)
            if processes.size > 1:
                rows = new_part(path, earlier, processes.rank).open("w", encoding="utf-8", newline="")
                rows.write(layout.header())

        def write_row(name: str, result: Any, problem: str) -> str:
            row = {"file": as_text(name), **(result or {"error": problem})}
            rows.write(layout.line(row))
            rows.flush()
            if plot and result:
                try:
                    values = (layout.class_names, layout.quadrant, layout.dimensions)
                    plot(pictures[name], f"{name}, by {model}", result["windows"], *values)
                except OSError as error:
                    return f"no picture: {error}"
            return problem

        def classify(names: Sequence[str], on_progress: Callable[[float], None]) -> Classified:
            return classify_files(pipeline, names, heard, on_progress=on_progress)

        code = process_files(left, classify, write_row, len(files) - len(left), processes)
        if processes.size > 1:
            rows.close()
            processes.gathered(None)  # all are closed
        return code


def files_of_team(processes: Team, audio: Sequence[str], files_from: str | None, output: str | None) -> list[str]:
    """As `find_audio`; raises ValueError for what several processes cannot share."""
    if processes.size > 1 and output is None:
        raise ValueError("several processes write rows to a file: give --output")
    if processes.size > 1 and STANDARD_INPUT in audio:
        raise ValueError(
            "several processes cannot read a file from standard input; --files-from - gives a list of files"
        )
    return find_audio(audio, files_from)


def row_style(style: str | None, output: str | None, per: str) -> str:
    """The format of the rows; raises ValueError for one that cannot be written to `output`, or not `per` window."""
    if output is None:
        style = style or "table"
    else:
        style = style or Path(output).suffix[1:].lower()
        if style not in FORMATS[1:]:
            raise ValueError(f"{output}: rows are written to .jsonl or .csv; or give --format jsonl or csv")
    if per == "window" and style == "table":
        raise ValueError("rows of windows are written as jsonl or csv; give --format or --output")
    return style


def find_plot() -> Callable[..., None]:
    """The function that draws; raises ImportError without matplotlib."""
    try:
        from exhubert.inference.timeline import plot_timeline
    except ImportError as error:
        raise ImportError("timelines need matplotlib: pip install matplotlib") from error
    return plot_timeline


def picture_paths(folder: str, files: Sequence[str]) -> dict[str, Path]:
    """The picture of each file, in folders as the files are."""
    paths = [os.path.abspath("stdin" if name == STANDARD_INPUT else name) for name in files]
    above = os.path.commonpath([os.path.dirname(path) for path in paths])
    return {name: Path(folder, f"{os.path.relpath(path, above)}.png") for name, path in zip(files, paths, strict=True)}


def row_settings(model: str, pipeline: ExHuBERTPipeline, options: Options) -> dict[str, Any]:
    """What the rows depend on; their file names may be relative to the working directory."""
    folder = Path(model)
    version = str(getattr(pipeline.model.config, "_commit_hash", ""))
    if folder.is_dir():
        stats = [(path.name, path.stat()) for path in sorted(folder.iterdir()) if path.name.endswith(MODEL_FILES)]
        files = [(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats]
        version = hashlib.blake2b(repr(files).encode(), digest_size=8).hexdigest()
    window_seconds = options.window_seconds or longest_input_seconds(pipeline.feature_extractor)
    return {
        "model": os.path.abspath(model) if folder.is_dir() else model,
        "model_version": version,
        "window_seconds": window_seconds,
        "hop_seconds": options.hop_seconds or window_seconds / 2,
        "vad": options.vad,
        "dtype": options.dtype,
        "classes": pipeline.class_names,
        "dimensions": pipeline.dimensions,
        "working_directory": os.getcwd(),
    }
