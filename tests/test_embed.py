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
        assert np.array_equal(array, np.stack([result["embedding"] for result in expected]))

        assert main([*command, "--per", "window"]) == 0
        table = pandas.read_parquet("out.parquet")
        of_windows = [window["embedding"] for result in expected for window in result["windows"]]
        assert np.array_equal(np.stack(table["embedding"]), np.stack(of_windows))
        assert table["file"].tolist() == ["clips/a.flac", *["clips/b.wav"] * 3]
        assert table["start"].tolist() == [0, 0, 1.5, 3]
        assert table["end"].tolist() == [1, 3, 4.5, 5.2]


def test_embeddings_of_the_good_files(clips, classifier_folder, capsys):
    write_bad_files()
    assert main(["embed", classifier_folder, "clips", "--output", "out.parquet", "--per", "window"]) == 2
    assert "bad: clips/nan.wav" in capsys.readouterr().err
    assert pandas.read_parquet("out.parquet")["file"].value_counts().to_dict() == {
        **{"clips/a.flac": 1, "clips/b.wav": 3, "clips/more/c.ogg": 1}
    }
    before = (clips / "out.parquet").read_bytes()
    assert main(["embed", classifier_folder, "clips/text.wav", "gone.wav", "--output", "out.parquet"]) == 1
    assert (clips / "out.parquet").read_bytes() == before
    assert sorted(os.listdir()) == ["clips", "out.parquet"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--output", "out.csv"], "out.csv: embeddings are written to .parquet"),
        (["--output", "out.npz"], "out.npz: embeddings are written to .parquet; numpy.stack(pandas.read_parquet(FILE)"),
        (["--output", "out.parquet", "--layer", "5"], "hidden states 0 to 2"),
        (["--output", "out.parquet", "--layer", "-1"], "'-1'; it must be last, weighted or"),
        (["--output", "out.parquet", "--layer", "top"], "'top'; it must be last, weighted or"),
        (["--output", "clips/notes.txt/out.parquet"], "notes.txt"),
    ],
)
def test_mistakes_end_in_one_line(clips, classifier_folder, capsys, options, message):
    assert message in refused(capsys, main, "embed", classifier_folder, "clips", *options)
    assert os.listdir() == ["clips"]
