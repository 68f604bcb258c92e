"""`exhubert predict`: classifies files, folders, globs and standard input."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import math
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from exhubert.audio_exhubert import longest_input_seconds
from exhubert.inference.audio_files import STANDARD_INPUT, find_audio, output_file, process_files
from exhubert.inference.prediction_rows import FORMATS, Layout, open_rows
from exhubert.inference.processes import Team, new_part, parts_of, team
from exhubert.inference.segment_files import STYLES, check_styles, write_segments
from exhubert.inference.speech import Classified, Options, classify_files, open_pipeline
from exhubert.inference.summary import Names, write_summary
from exhubert.inference.turn_files import turns_of_files, turns_version
from exhubert.pipeline_exhubert import ExHuBERTPipeline
from exhubert.segments_exhubert import SPEECH
from exhubert.utils.files import NO_ROOM
from exhubert.utils.text import as_text, printable

Maker = Callable[[str, Mapping[str, Any], float], None]  # takes a file, what was heard in it, and its seconds
MODEL_FILES = (".safetensors", ".bin", ".onnx", ".onnx.data", ".json")


def run_predict(
    model: str,
    audio: Sequence[str],
    style: str | None = None,
    output: str | None = None,
    timeline: str | None = None,
    files_from: str | None = None,
    per: str | None = None,
    segment_files: str | None = None,
    segment_format: Sequence[str] | None = None,
    summary: str | None = None,
    **options: Any,
) -> int:
    """Classifies audio; prints a row a file, or adds it to a file, as soon as it is known; returns the exit code.

    Of several processes each takes a share of the files, and keeps its rows beside `output` until all are done.

    Args:
        model: folder or Hub id of an audio-classification model, or folder of its ONNX export.
        audio, files_from: see `find_audio`.
        style: table, jsonl or csv; if None, what `output` is called, without one table.
        output: a .jsonl or .csv file. Audio files that have a row there, without an error, are skipped.
        timeline, summary: folder for a picture of each file, for its summary.
        per: "clip", "window" or "segment": what has a row; by default a segment where there are any, else a clip. Rows
            of windows are jsonl or csv.
        segment_files: folder for the segments of each file, in `segment_format`: some of `STYLES`, vtt by default. If
            one of these three cannot be written, the file has its row, and is bad; on a full disk the run ends before.
        options: those of `Options`; `segments` may name a file of turns, or a folder of them: see `turns_of_files`.

    Returns:
        0; 2 if some files are bad; 1 if all are.

    Raises:
        ValueError: if an argument is wrong.
        OSError: if there is no such model, or an output cannot be written.
        ImportError: if what an option needs is not installed.
    """
    per, heard = checked_options(per, options)
    styles = checked_styles(segment_files, segment_format, heard, plots=(timeline, summary) != (None, None))
    with team() as processes, contextlib.ExitStack() as stack:
        style = processes.from_leader(lambda: row_style(style, output, per))
        files = processes.from_leader(lambda: files_of_team(processes, audio, files_from, output))
        heard, segments = processes.leader_first(lambda: with_turns(heard, files))
        pipeline = processes.leader_first(lambda: open_pipeline(model, heard))
        layout = layout_of(pipeline, files, style, per, heard)
        folders = {"file of segments": segment_files, "picture": timeline, "summary": summary}
        beside = files_beside(folders, files, styles, layout, heard, pipeline, model)

        rows, left = sys.stdout, files
        if output is None:
            rows.write(layout.header())
        else:
            path = output_file(output)
            settings = {"format": style, "per": per, **row_settings(model, pipeline, heard, segments)}

            def begin() -> tuple[list[str], list[Path]]:
                nonlocal rows
                rows, left = stack.enter_context(open_rows(path, layout, settings, files))
                return left, parts_of(path)

            left, earlier = processes.from_leader(begin)
            if processes.size > 1:
                rows = new_part(path, earlier, processes.rank).open("w", encoding="utf-8", newline="")
                rows.write(layout.header())

        def write_row(name: str, found: Any, problem: str) -> str:
            result, seconds = found or ({"error": problem}, 0.0)
            problem = make_all(beside, name, result, seconds) if found else problem
            rows.write(layout.line({"file": as_text(name), **result}, None if segments is None else seconds))
            rows.flush()
            return problem

        def classify(names: Sequence[str], on_progress: Callable[[float], None]) -> Classified:
            return with_seconds(classify_files(pipeline, names, heard, on_progress=on_progress))

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


def checked_options(per: str | None, options: Mapping[str, Any]) -> tuple[str, Options]:
    """What has a row, and how files are heard; raises ValueError for what does not go together."""
    if options.get("segments") is None:
        if per == "segment":
            raise ValueError("rows of segments need --segments: speech, or a file of turns")
        for name in options.keys() & {"least_probability", "least_seconds"}:
            raise ValueError(f"--{name.replace('_', '-')} says which segments are uncertain, and needs --segments")
    elif options.get("vad"):
        raise ValueError(
            "--vad leaves out windows without speech, --segments all that is in no segment; give one of them"
        )
    heard = Options(**options)
    if not 0 <= heard.least_probability <= 1:
        raise ValueError(f"--least-probability is {heard.least_probability:g}; it must be from 0 to 1")
    if not 0 <= heard.least_seconds < math.inf:
        raise ValueError(f"--least-seconds is {heard.least_seconds:g}; it must be 0 or more")
    return per or ("clip" if heard.segments is None else "segment"), heard


def checked_styles(
    folder: str | None, styles: Sequence[str] | None, options: Options, plots: bool = False
) -> Sequence[str]:
    """The kinds of files of segments that are to be written to a folder.

    Raises:
        ValueError: for what does not go together.
        ImportError: if what these, or `plots`, need is not installed.
    """
    if plots and importlib.util.find_spec("matplotlib") is None:
        raise ImportError("timelines and summaries need matplotlib: pip install matplotlib")
    if folder is None:
        if styles:
            raise ValueError("--segment-format says how files of segments are written, and needs --segment-files")
        return ()
    if options.segments is None:
        raise ValueError("--segment-files needs --segments: speech, or a file of turns")
    styles = list(dict.fromkeys(styles or ("vtt",)))
    check_styles(styles)
    return styles


def with_turns(options: Options, files: Sequence[str]) -> tuple[Options, str | None]:
    """Reads the file or folder of turns, if one is given; returns, too, what stands for the segments in the settings.

    Raises:
        ValueError, OSError: as `turns_of_files`.
    """
    segments = options.segments
    if segments is None or segments == SPEECH:
        return options, segments
    assert isinstance(segments, str)
    turns = turns_of_files(segments, files)
    return options._replace(segments=turns), f"turns {turns_version(segments, files)}"


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


def with_seconds(classified: Classified) -> Classified:
    """Adds to each result how long the file is."""
    for recording, result in classified:
        yield recording, result if isinstance(result, Exception) else (result, recording.heard.seconds)


def layout_of(pipeline: ExHuBERTPipeline, files: Sequence[str], style: str, per: str, options: Options) -> Layout:
    """How rows of these files are written."""
    widest = max(len(printable(name)) for name in files)
    parts = (options.channels == "each", options.segments is not None, callable(options.segments))
    return Layout(style, pipeline.class_names, pipeline.quadrant, widest, per, pipeline.dimensions, *parts)


def files_beside(
    folders: Mapping[str, str | None],
    files: Sequence[str],
    styles: Sequence[str],
    layout: Layout,
    options: Options,
    pipeline: ExHuBERTPipeline,
    model: str,
) -> dict[str, Maker]:
    """What makes files beside the rows, by their name for people, for each of the `folders` that is asked for."""
    makers: dict[str, Callable[[str], Maker]] = {
        "file of segments": lambda folder: segment_maker(folder, files, styles, layout),
        "picture": lambda folder: picture_maker(folder, files, layout, model),
        "summary": lambda folder: summary_maker(folder, files, pipeline, model, options),
    }
    return {what: makers[what](folder) for what, folder in folders.items() if folder is not None}


def make_all(makers: Mapping[str, Maker], name: str, result: Mapping[str, Any], seconds: float) -> str:
    """Makes what is made of a file before its row, by which it counts as done; returns what went wrong, or "".

    Raises:
        OSError: if the disk is full: what all later files would miss as well.
    """
    problems = []
    for what, make in makers.items():
        try:
            make(name, result, seconds)
        except OSError as error:
            if error.errno in NO_ROOM:
                raise OSError(error.errno, f"{name}: no {what}: {error.strerror}", error.filename) from error
            problems.append(f"no {what}: {error}")
    return "; ".join(problems)


def segment_maker(folder: str, files: Sequence[str], styles: Sequence[str], layout: Layout) -> Maker:
    """What writes files of segments."""
    paths = paths_in(folder, files)

    def make(name: str, result: Mapping[str, Any], seconds: float) -> None:
        for style in styles:
            write_segments(Path(paths[name] + STYLES[style]), style, name, result, seconds, list(layout.dimensions))

    return make


def picture_maker(folder: str, files: Sequence[str], layout: Layout, model: str) -> Maker:
    """What draws timelines."""
    from exhubert.inference.timeline import plot_lanes

    paths = paths_in(folder, files)

    def make(name: str, result: Mapping[str, Any], seconds: float) -> None:
        values = (layout.class_names, layout.quadrant, layout.dimensions)
        plot_lanes(Path(f"{paths[name]}.png"), f"{name}, by {model}", result, *values, seconds)

    return make


def summary_maker(folder: str, files: Sequence[str], pipeline: ExHuBERTPipeline, model: str, options: Options) -> Maker:
    """What writes summaries."""
    paths = paths_in(folder, files)
    temperature = getattr(pipeline.model.config, "calibration_temperature", 1.0)
    names = Names(pipeline.class_names, pipeline.quadrant, pipeline.dimensions, temperature)
    least, given = (options.least_probability, options.least_seconds), callable(options.segments)

    def make(name: str, result: Mapping[str, Any], seconds: float) -> None:
        write_summary(Path(f"{paths[name]}.summary"), name, model, result, names, least, seconds, given)

    return make


def paths_in(folder: str, files: Sequence[str]) -> dict[str, str]:
    """Where what is made of each file is, but for the ending, in folders as the files are; makes the folder."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    paths = [os.path.abspath("stdin" if name == STANDARD_INPUT else name) for name in files]
    above = os.path.commonpath([os.path.dirname(path) for path in paths])
    return {name: os.path.join(folder, os.path.relpath(path, above)) for name, path in zip(files, paths, strict=True)}


def row_settings(
    model: str, pipeline: ExHuBERTPipeline, options: Options, segments: str | None = None
) -> dict[str, Any]:
    """What the rows depend on; their file names may be relative to the working directory.

    Args:
        model, options: those of the command.
        pipeline: the model.
        segments: of `with_turns`.
    """
    folder = Path(model)
    version = str(getattr(pipeline.model.config, "_commit_hash", ""))
    if folder.is_dir():
        stats = [(path.name, path.stat()) for path in sorted(folder.iterdir()) if path.name.endswith(MODEL_FILES)]
        files = [(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats]
        version = hashlib.blake2b(repr(files).encode(), digest_size=8).hexdigest()
    parts = (
        {} if segments is None and options.channels == "mix" else {"segments": segments, "channels": options.channels}
    )
    if segments is not None:
        parts |= {name: getattr(options, name) for name in ("least_probability", "least_seconds")}
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
        **parts,
    }
