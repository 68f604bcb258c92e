"""`exhubert embed`: the pipeline's embeddings as parquet, bad files, what is refused.

python -m pytest tests/test_embed.py
"""

from __future__ import annotations

import os

import numpy as np
import pandas
import pytest

from conftest import refused, write_bad_files
from exhubert.cli import main
from exhubert.inference import embed
from exhubert.model_folder import load_pipeline


def test_embeddings_are_the_pipelines(clips, classifier_folder):
    pipeline = load_pipeline(classifier_folder)
    for layer, asked in (("last", True), ("2", 2), ("weighted", "weighted")):
        expected = [pipeline(f"clips/{name}", embeddings=asked) for name in ("a.flac", "b.wav")]
        command = [
            "embed",
            classifier_folder,
            "clips/a.flac",
            "clips/b.wav",
            "--layer",
            layer,
            "--output",
            "out.parquet",
        ]
        assert main(command) == 0
        table = pandas.read_parquet("out.parquet")
        assert list(table) == ["file", "start", "end", "embedding"]
        assert table["file"].tolist() == ["clips/a.flac", "clips/b.wav"]
        assert table["end"].tolist() == [1.0, 5.2]
        array = np.stack(table["embedding"])
        assert array.dtype == np.float32
        np.testing.assert_allclose(array, [result["embedding"] for result in expected], rtol=0, atol=1e-5)

        assert main([*command[:-1], "windows.parquet", "--per", "window"]) == 0
        table = pandas.read_parquet("windows.parquet")
        of_windows = [window["embedding"] for result in expected for window in result["windows"]]
        np.testing.assert_allclose(np.stack(table["embedding"]), of_windows, rtol=0, atol=1e-5)
        assert table["file"].tolist() == ["clips/a.flac", *["clips/b.wav"] * 3]
        assert table["start"].tolist() == [0, 0, 1.5, 3]
        assert table["end"].tolist() == [1, 3, 4.5, 5.2]
        for name in ("out.parquet", "windows.parquet"):
            os.remove(name)


def test_embeddings_of_the_good_files(clips, classifier_folder, capsys):
    write_bad_files()
    output = ["--output", "out.parquet", "--per", "window"]
    assert main(["embed", classifier_folder, "clips", *output]) == 2
    said = capsys.readouterr().err
    assert "bad: clips/nan.wav" in said and said.endswith("\n5 rows written to out.parquet\n")
    assert pandas.read_parquet("out.parquet")["file"].value_counts().to_dict() == {
        **{"clips/a.flac": 1, "clips/b.wav": 3, "clips/more/c.ogg": 1}
    }
    before = (clips / "out.parquet").read_bytes()
    assert main(["embed", classifier_folder, "clips/text.wav", "gone.wav", *output]) == 1
    assert (clips / "out.parquet").read_bytes() == before
    assert sorted(os.listdir()) == ["clips", "out.parquet"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--output", "out.csv"], "out.csv: embeddings are written to .parquet"),
        (["--output", "out.npz"], "out.npz: embeddings are written to .parquet; numpy.stack(pandas.read_parquet(FILE)"),
        (["--output", "out.parquet", "--layer", "5"], "error: embeddings is 5; this model has the hidden states"),
        (["--output", "out.parquet", "--layer", "-1"], "'-1'; it must be last, weighted or"),
        (["--output", "out.parquet", "--layer", "top"], "'top'; it must be last, weighted or"),
        (["--output", "clips/notes.txt/out.parquet"], "notes.txt"),
    ],
)
def test_mistakes_end_in_one_line(clips, classifier_folder, capsys, options, message):
    assert message in refused(capsys, main, "embed", classifier_folder, "clips", *options)
    assert os.listdir() == ["clips"]


def test_a_run_that_was_stopped_goes_on(clips, classifier_folder, capsys, monkeypatch):
    command = ["embed", classifier_folder, "clips", "--per", "window", "--output"]
    assert main([*command, "whole.parquet"]) == 0
    process = embed.classify_files

    def stop_at_the_third(*arguments):
        for recording, result in process(*arguments):
            if recording.audio == "clips/more/c.ogg":
                raise KeyboardInterrupt
            yield recording, result

    monkeypatch.setattr(embed, "classify_files", stop_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        main([*command, "out.parquet"])
    monkeypatch.setattr(embed, "classify_files", process)
    with open("out.parquet.unfinished", "rb+") as file:  # killed within a file's rows
        file.truncate(file.seek(0, os.SEEK_END) - 20)
    with pytest.raises(ValueError, match=r"out\.parquet\.unfinished was begun with layer 'last', now it is '1'"):
        main([*command, "out.parquet", "--layer", "1"])
    capsys.readouterr()
    assert main([*command, "out.parquet"]) == 0
    said = capsys.readouterr().err
    assert said.startswith("2 files (1 more were done before), 0 bad") and "5 rows written to out.parquet" in said
    whole, resumed = (pandas.read_parquet(name) for name in ("whole.parquet", "out.parquet"))
    pandas.testing.assert_frame_equal(resumed, whole, rtol=0, atol=1e-5)  # in other batches
    assert main([*command, "out.parquet"]) == 0
    assert capsys.readouterr().err == "nothing to do: 3 files were done before\n"

    def stop(path, missing_ok=False):
        if path.name == "out.parquet.unfinished":
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:  # killed when the parquet is there, and its rows are in both
        patched.setattr(embed.Path, "unlink", stop)
        os.remove("out.parquet")
        with pytest.raises(KeyboardInterrupt):
            main([*command, "out.parquet"])
    assert {"out.parquet", "out.parquet.unfinished"} < set(os.listdir())
    assert main([*command, "out.parquet"]) == 0
    assert len(pandas.read_parquet("out.parquet")) == 5
    assert capsys.readouterr().err.endswith("5 rows written to out.parquet\n")

    os.rename("clips/a.flac", "clips/new.flac")  # one that is not there yet comes to the others
    assert main([*command, "out.parquet"]) == 0
    assert len(pandas.read_parquet("out.parquet")) == 6
    assert sorted(os.listdir()) == ["clips", "out.parquet", "whole.parquet"]
    pandas.DataFrame({"file": ["mine"]}).to_parquet("mine.parquet")
    with pytest.raises(ValueError, match=r"mine\.parquet exists, and was not written by"):
        main([*command, "mine.parquet"])
