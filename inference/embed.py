"""`exhubert embed`: mean hidden states of files, folders, globs and standard input, as parquet."""

from __future__ import annotations

import contextlib
import heapq
import importlib.util
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from exhubert.inference.audio_files import STANDARD_INPUT, output_file, process_files
from exhubert.inference.predict import checked_options, files_of_team, row_settings, with_turns
from exhubert.inference.prediction_rows import check_settings
from exhubert.inference.processes import new_part, parts_of, team
from exhubert.inference.speech import Classified, classify_files, open_pipeline
from exhubert.utils.files import locked, whole_file
from exhubert.utils.text import as_text

if TYPE_CHECKING:
    import pyarrow

ROWS_AT_ONCE = 4096  # in memory while parquet is written: 16 MiB at 1,024 values each
SETTINGS = b"exhubert"  # where the schema says what the rows depend on


def run_embed(
    model: str,
    audio: Sequence[str],
    output: str,
    layer: str = "last",
    per: str | None = None,
    files_from: str | None = None,
    **options: Any,
) -> int:
    """Writes an embedding for each clip, window or segment; returns the exit code.

    Parquet has the columns of `row_schema`. The file is there when it is complete. Until then rows are kept beside it,
    in `<name>.unfinished`, as they come, and those of several processes in one each: the same command goes on after a
    stop.

    Args:
        model, audio, files_from: as for `run_predict`.
        output: a .parquet file. Audio files that have a row there are skipped. What a link leads to is replaced.
        layer: "last", "weighted", or the number of a hidden state, as the pipeline's `embeddings`.
        per: "clip", the mean over a clip's windows, "window" or "segment"; by default segments where there are any.
        options: as for `run_predict`; what is no speech has no row and no part in the clip's. All of a clip: it is bad.

    Returns:
        0; 2 if some files are bad; 1 if all are, and nothing is written.

    Raises:
        ValueError: if an argument is wrong, or `output` was written with other settings.
        OSError: if there is no such model, or the output cannot be written.
        ImportError: if what parquet or speech detection needs is not installed.
    """
    per, heard = checked_options(per, options)
    with team() as processes, contextlib.ExitStack() as stack:
        path = processes.from_leader(lambda: checked_output(output, layer))
        import pyarrow

        files = processes.from_leader(lambda: files_of_team(processes, audio, files_from, output))
        heard, segments = processes.leader_first(lambda: with_turns(heard, files))
        embeddings = int(layer) if layer.isdecimal() else layer == "last" or layer
        pipeline = processes.leader_first(lambda: open_pipeline(model, heard, embeddings))
        settings = {"layer": layer, "per": per, **row_settings(model, pipeline, heard, segments)}
        schema = row_schema(settings, callable(heard.segments))
        unfinished = path.with_name(f"{path.name}.unfinished")
        paths = {os.path.abspath(as_text(name)): number for number, name in enumerate(files)}

        def begin() -> tuple[list[str], list[Path]]:
            stack.enter_context(locked(path))
            earlier = parts_of(path)
            done = files_with_rows(path, [unfinished, *earlier], settings)
            return [name for name in files if os.path.abspath(as_text(name)) not in done], earlier

        left, earlier = processes.from_leader(begin)
        mine = unfinished if processes.size == 1 else new_part(path, earlier, processes.rank)

        def embed(names: Sequence[str], on_progress: Callable[[float], None]) -> Classified:
            for recording, result in classify_files(pipeline, names, heard, embeddings, on_progress):
                if not isinstance(result, Exception):
                    result = embeddings_of(result, per, recording.heard.seconds if segments else None)
                yield recording, result

        with mine.open("ab") as file:

            def write_rows(name: str, rows: Any, problem: str) -> str:
                if rows:
                    columns = [[{**row, "file": as_text(name)}.get(each) for row in rows] for each in schema.names]
                    with pyarrow.ipc.new_stream(file, schema) as part:
                        part.write_table(pyarrow.table(columns, schema=schema))
                    file.flush()
                return problem

            code = process_files(left, embed, write_rows, len(files) - len(left), processes)
        processes.gathered(None)  # all are closed
        if processes.leads:
            parts = [part for part in (unfinished, *parts_of(path)) if part.exists()]
            if any(part.stat().st_size for part in parts):
                replaced = [STANDARD_INPUT] if STANDARD_INPUT in left else []  # another recording each time
                rows = write_parquet(path, schema, in_order(parts, paths), replaced)
                print(f"{rows:,} rows written to {output}", file=sys.stderr)
            for part in parts:
                part.unlink()
        return code


def embeddings_of(
    result: Mapping[str, Any], per: str, seconds: float | None = None
) -> list[dict[str, Any]] | ValueError:
    """What each row of a file has, by column; what is wrong with a file that has none.

    Args:
        result: what the pipeline returns.
        per: clip, window or segment.
        seconds: how long the file is; if None, as long as its windows.
    """
    rows = []
    for each in result.get("channels", [result]):
        if per == "clip":
            parts = [{**each, "start": 0.0, "end": seconds or each["windows"][-1]["end"]}] if each["windows"] else []
        else:
            parts = each[f"{per}s"]
        rows += [{**part, "channel": each.get("channel")} for part in parts if "embedding" in part]
    return rows or ValueError("there is no speech in it")


def in_order(parts: Sequence[Path], paths: Mapping[str, int]) -> Iterator[pyarrow.Table]:
    """Yields the rows of each audio file that runs have left, in the order of the files' numbers."""

    def number(table: pyarrow.Table) -> int:
        return paths.get(os.path.abspath(table["file"][0].as_py()), -1)

    return heapq.merge(*map(read_parts, parts), key=number)


def checked_output(output: str, layer: str) -> Path:
    """As `output_file`; raises ValueError for an illegal layer or no parquet, ImportError if pyarrow is missing."""
    suffix = Path(output).suffix.lower()
    if suffix != ".parquet":
        numpy = "; numpy.stack(pandas.read_parquet(FILE)['embedding']) is the array" if suffix == ".npz" else ""
        raise ValueError(f"{output}: embeddings are written to .parquet{numpy}")
    if layer not in ("last", "weighted") and not layer.isdecimal():
        raise ValueError(f"--layer is {layer!r}; it must be last, weighted or a number from 0")
    if importlib.util.find_spec("pyarrow") is None:
        raise ImportError("parquet needs pyarrow: pip install pyarrow")
    return output_file(output)


def row_schema(settings: dict[str, Any], speakers: bool = False) -> pyarrow.Schema:
    """The columns of the rows, with what these depend on.

    They are `file`, `start`, `end` (seconds) and `embedding` (a list of `hidden_size` float32); where channels were
    heard each on its own `channel`, of segments `uncertain`, and with `speakers`, for turns may have one, `speaker`.
    """
    import pyarrow

    columns = {"file": pyarrow.string()}
    if settings.get("channels", "mix") == "each":
        columns["channel"] = pyarrow.int64()
    columns |= {"start": pyarrow.float64(), "end": pyarrow.float64()}
    if settings["per"] == "segment":
        columns |= {"speaker": pyarrow.string()} if speakers else {}
        columns["uncertain"] = pyarrow.string()
    columns["embedding"] = pyarrow.list_(pyarrow.float32())
    return pyarrow.schema(columns, metadata={SETTINGS: json.dumps(settings).encode()})


def files_with_rows(path: Path, parts: Sequence[Path], settings: dict[str, Any]) -> set[str]:
    """The absolute paths of the audio files that have rows; raises ValueError as `check_schema`."""
    done: set[str] = set()
    for place, tables in ((path, read_parquet(path, ["file"])), *((part, read_parts(part)) for part in parts)):
        for table in tables:
            check_schema(str(place), table.schema, settings)
            done |= {os.path.abspath(name) for name in table["file"].to_pylist() if name != STANDARD_INPUT}
    return done


def check_schema(output: str, schema: pyarrow.Schema, settings: dict[str, Any]) -> None:
    """Raises ValueError if rows that are there were written with other settings, or by something else."""
    if SETTINGS not in (schema.metadata or {}):
        raise ValueError(
            f"{output} exists, and was not written by `exhubert embed`; give another --output, or delete it"
        )
    check_settings(output, json.loads(schema.metadata[SETTINGS]), settings)


def read_parquet(path: Path, columns: Sequence[str] | None = None) -> Iterator[pyarrow.Table]:
    """Yields the rows of a parquet file, some at a time; none of a file that is not there."""
    import pyarrow
    from pyarrow import parquet

    if path.exists():
        try:
            with parquet.ParquetFile(path) as file:
                for batch in file.iter_batches(ROWS_AT_ONCE, columns=columns):
                    yield pyarrow.Table.from_batches([batch]).replace_schema_metadata(file.schema_arrow.metadata)
        except pyarrow.ArrowInvalid as error:
            raise ValueError(f"{path} is no parquet file ({error}); give another --output, or delete it") from error


def read_parts(unfinished: Path) -> Iterator[pyarrow.Table]:
    """Yields the rows of each audio file that a run has left; what it did not write to its end is cut off."""
    import pyarrow

    if unfinished.exists():
        with unfinished.open("rb+") as file:
            end = 0
            while True:
                try:
                    table = pyarrow.ipc.open_stream(file).read_all()
                except (pyarrow.ArrowInvalid, OSError):
                    break
                end = file.tell()
                yield table
            file.truncate(end)


def write_parquet(
    path: Path, schema: pyarrow.Schema, found: Iterable[pyarrow.Table], replaced: Sequence[str] = ()
) -> int:
    """Writes the rows that are there, but for those of `replaced` files, and those of a run; returns their number.

    Those of a run are there already where one was killed before its parts were gone.
    """
    import pyarrow
    from pyarrow import dataset, parquet

    rows, held, there = 0, [], set[str]()
    with whole_file(path) as whole, parquet.ParquetWriter(whole, schema) as writer:
        others = ~dataset.field("file").isin(pyarrow.array(replaced, pyarrow.string()))
        before = (table.filter(others) for table in read_parquet(path))
        new = (table for table in found if table["file"][0].as_py() not in there)
        for tables in (before, new):
            for table in tables:
                if tables is before:
                    there.update(table["file"].to_pylist())
                held.append(table)
                if sum(map(len, held)) >= ROWS_AT_ONCE:
                    writer.write_table(pyarrow.concat_tables(held))
                    rows, held = rows + sum(map(len, held)), []
        writer.write_table(pyarrow.concat_tables([schema.empty_table(), *held]))
    return rows + sum(map(len, held))
