"""`push_to_hub`: a training that ends on the Hub, or says how to get there; no token is left anywhere.

python -m pytest tests/test_push_training.py
"""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap

import pytest
import yaml

from conftest import MODEL_FILES, ROOT
from exhubert.training.arguments import parse, resolved
from hub_stand_in import READER, WRITER, HubStandIn


@pytest.fixture
def hub(tmp_path):
    with HubStandIn(tmp_path / "hub") as hub:
        yield hub


@pytest.mark.slow
def test_a_training_pushes_its_model_and_leaves_no_token(hub, make_corpus, make_hubert, tmp_path):
    """From two corpora of the Hub: once to the end, once with a failing push, once without the right to push.

    One corpus is a corpus folder, the other is as `datasets` uploads one, audio and all in a Parquet file.

    All that the processes print at the most talkative settings, and all that they write, is searched for the tokens.
    """
    recipe = {"model": str(make_hubert(head="none")), "corpora": ["user/folder", "user/table"]}
    recipe |= {"rounds": 2, "batch_size": 4}
    recipe["training"] = {"push_to_hub": True, "hub_private_repo": True, "eval_steps": 1}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    hub.trouble("POST", "/user/late/commit/", 403)
    script = """
    import logging, os, sys
    from pathlib import Path
    from huggingface_hub import HfApi
    import train_hf
    from exhubert.corpora.readers import read_corpus
    from exhubert.publish.push import push_model_folder
    from exhubert.utils.command import run_with_one_line_errors

    logging.basicConfig(level=logging.DEBUG)
    logging.getLogger("matplotlib").setLevel(logging.INFO)
    api = HfApi()
    api.create_repo("user/folder", repo_type="dataset", private=True)
    api.upload_folder(repo_id="user/folder", repo_type="dataset", folder_path=sys.argv[2])
    read_corpus(sys.argv[2]).push_to_hub("user/table", private=True)
    for name in ("finished", "late", "refused"):
        if name == "refused":  # a checkpoint of a training is a model folder, too
            push_model_folder(max(Path("finished/checkpoints").iterdir()), "user/checkpoint")
        if name == "refused":
            os.environ["HF_TOKEN"] = sys.argv[1]
        options = ["recipe.yaml", "--output", name, "--hub_model_id", f"user/{name}"]
        print(name, "ends with", run_with_one_line_errors(lambda: train_hf.main(options)))
    """
    environment = hub.environment(tmp_path / "cache", WRITER) | {"HF_DEBUG": "1", "TRANSFORMERS_VERBOSITY": "debug"}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), environment.get("PYTHONPATH", "")])
    command = [sys.executable, "-c", textwrap.dedent(script), READER, str(make_corpus())]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
    endings = [line for line in done.stdout.splitlines() if " ends with " in line]
    assert endings == ["finished ends with 0", "late ends with 2", "refused ends with 1"], done.stderr[-5000:]

    model = tmp_path / "finished" / "model"
    assert hub.repos["models", "user/finished"].private
    pushed = set(hub.files("user/finished")) - {".gitattributes"}
    assert {*MODEL_FILES} <= pushed <= {path.name for path in model.iterdir()}
    again = "(to push it: exhubert push late/model user/late --private)"
    assert [
        line for line in done.stderr.splitlines() if line.startswith("error: the run is complete") and again in line
    ]
    assert (tmp_path / "late" / "results.json").is_file()
    assert "error: user/refused: the token may not write there (403)" in done.stderr
    assert not (tmp_path / "refused").exists()  # told before the training

    written = [path for name in ("finished", "late") for path in (tmp_path / name).rglob("*") if path.is_file()]
    texts = [done.stdout.encode(), done.stderr.encode(), *(path.read_bytes() for path in written)]
    assert "Send: curl" in done.stderr  # the requests themselves are among it
    assert not [text for text in texts if WRITER.encode() in text or READER.encode() in text]

    assert (max((tmp_path / "finished" / "checkpoints").iterdir()) / "optimizer.pt").is_file()
    assert hub.files("user/checkpoint") == sorted([".gitattributes", *MODEL_FILES])


def test_the_recipe_keeps_that_a_run_is_pushed_and_takes_no_token(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("{model: m, corpora: [a], output: run, training: {push_to_hub: true, hub_model_id: user/model}}")
    kept = resolved(*parse([str(recipe)])[:2])["training"]
    assert (kept["push_to_hub"], kept["hub_model_id"]) == (True, "user/model")
    for name, value in (("hub_token", WRITER), ("hub_strategy", "every_save"), ("hub_always_push", "true")):
        with pytest.raises(ValueError, match=f"{name} has no place here") as error:
            parse([str(recipe), f"--{name}", value])
        assert WRITER not in str(error.value)
    with pytest.raises(ValueError, match="push_to_hub needs hub_model_id"):
        parse([str(recipe), "--hub_model_id", ""])
