"""`exhubert push` and `push_to_hub`: what is uploaded, what is refused, what breaks; against a stand-in for the Hub.

python -m pytest tests/test_push.py
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from transformers import AutoModelForAudioClassification

from conftest import ROOT, WITHOUT_PACKAGE
from exhubert.convert.hubert import convert_hubert
from exhubert.model_folder import save_model_folder
from exhubert.publish.push import push_model_folder
from exhubert.training.arguments import parse, resolved
from hub_stand_in import READER, WRITER, HubStandIn, Repo

CODE = ["audio_exhubert.py", "configuration_exhubert.py", "modeling_exhubert.py", "pipeline_exhubert.py"]
FILES = sorted([".gitattributes", "README.md", "config.json", "preprocessor_config.json", "model.safetensors", *CODE])
SHARDS = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "model.safetensors.index.json"]

# The command line in a process of its own, as many commands as wanted: importing it takes seconds.
CLIENT = """
import json, os, sys
from exhubert.cli import main, run_with_one_line_errors

for line in sys.stdin:
    arguments, token = json.loads(line)
    os.environ["HF_TOKEN"] = token
    code = run_with_one_line_errors(lambda: main(arguments))
    sys.stdout.flush(), sys.stderr.flush()
    os.write(int(sys.argv[1]), b"%d\\n" % code)
"""


class Client:
    """Runs commands of `exhubert` against the stand-in; no token may ever be in what they print."""

    def __init__(self, hub: HubStandIn, directory: Path) -> None:
        ours, theirs = os.pipe()
        self.files = [(directory / name).open("w+") for name in ("output", "errors")]
        self.process = subprocess.Popen(
            [sys.executable, "-c", CLIENT, str(theirs)],
            stdin=subprocess.PIPE,
            stdout=self.files[0],
            stderr=self.files[1],
            pass_fds=[theirs],
            env=hub.environment(directory / "cache"),
            text=True,
        )
        os.close(theirs)
        self.codes = os.fdopen(ours)
        self.read = [0, 0]

    def __call__(self, *arguments: object, token: str = WRITER) -> tuple[int, str, str]:
        """The exit code, and what was written to standard output and error."""
        self.process.stdin.write(json.dumps([[str(argument) for argument in arguments], token]) + "\n")
        self.process.stdin.flush()
        code = self.codes.readline()
        texts = [Path(file.name).read_text()[start:] for file, start in zip(self.files, self.read, strict=True)]
        self.read = [start + len(text) for start, text in zip(self.read, texts, strict=True)]
        assert code, f"the process died: {texts}"
        assert WRITER not in "".join(texts) and READER not in "".join(texts)
        return int(code), *texts


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with HubStandIn(tmp_path_factory.mktemp("hub")) as hub:
        yield hub


@pytest.fixture(scope="module")
def client(server, tmp_path_factory):
    client = Client(server, tmp_path_factory.mktemp("client"))
    yield client
    client.process.kill()
    client.process.wait()


@pytest.fixture
def hub(server):
    """The stand-in without what earlier tests put there."""
    server.repos.clear()
    server.requests.clear()
    server.troubles.clear()
    for content in server.storage.iterdir():
        content.unlink()
    return server


@pytest.fixture
def folder(tmp_path, make_hubert):
    """A model folder."""
    return convert_hubert(make_hubert(), tmp_path / "model")


def change(folder: Path, seed: int = 1) -> None:
    """Other weights."""
    weights = load_file(folder / "model.safetensors")
    generator = torch.Generator().manual_seed(seed)
    changed = {name: tensor + 0.01 * torch.randn(tensor.shape, generator=generator) for name, tensor in weights.items()}
    save_file(changed, folder / "model.safetensors", {"format": "pt"})


def split(folder: Path) -> None:
    """The same weights in two shards."""
    model = AutoModelForAudioClassification.from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    size = sum(parameter.nbytes for parameter in model.parameters())
    model.save_pretrained(folder, max_shard_size=int(0.7 * size))
    assert [(folder / name).is_file() for name in SHARDS] == [True] * 3


def head(hub: HubStandIn, name: str = "user/model", branch: str = "main") -> str:
    return hub.repos["models", name].branches[branch]


def last_line(text: str) -> str:
    return text.strip().splitlines()[-1]


def sent(hub: HubStandIn, what: str = "PUT") -> list[str]:
    return [request for request in hub.requests if request.startswith(what)]


# What is uploaded


def test_exactly_the_model_files_are_pushed(hub, client, folder):
    """From a folder with all that training, downloading and users leave in one."""
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth", "training_args.bin", "clip.wav", "results.json"):
        (folder / name).write_bytes(b"\0")
    for name in ("predictions.parquet", "trainer_state.json", "adapter_model.safetensors", ".env", "pytorch_model.bin"):
        (folder / name).write_bytes(b"\0")
    for name in ("logs", ".cache"):
        (folder / name).mkdir()
        (folder / name / "confusion_a.png").write_bytes(b"\0")
    (folder / "party.png").write_bytes(b"\0")
    (folder / "confusion_link.png").symlink_to(__file__)
    for name in ("curves.png", "confusion_a.png", "model.onnx", "model.onnx.data"):
        (folder / name).write_bytes(b"\0" + name.encode())
    code, output, _ = client("push", folder, "user/model")
    assert code == 0
    assert hub.files("user/model") == sorted([*FILES, "curves.png", "confusion_a.png", "model.onnx", "model.onnx.data"])
    for name in ("optimizer.pt", "clip.wav", "logs/", ".env", "party.png", "confusion_link.png"):
        assert name in output.split("left out: ")[1].splitlines()[0]
    assert len(hub.repos["models", "user/model"].commits) == 2  # the Hub's own first one, and the push
    pinned = f'AutoModelForAudioClassification.from_pretrained("user/model", revision="{head(hub)}", '
    assert last_line(output) == f"{pinned}trust_remote_code=True)"


def test_a_dry_run_asks_nothing_of_the_hub_and_needs_no_token(hub, client, folder):
    code, output, errors = client("push", folder, "user/model", "--private", "--dry-run", token="")
    assert (code, errors, hub.requests) == (0, "", [])
    assert f"{hub.url}/user/model, branch main, private" in output
    assert all(name in output for name in FILES[1:])


def test_nothing_is_pushed_twice(hub, client, folder):
    client("push", folder, "user/model")
    before = head(hub)
    hub.requests.clear()
    code, output, _ = client("push", folder, "user/model")
    assert (code, head(hub), sent(hub)) == (0, before, [])
    assert f"nothing to change: commit {before}" in output


def test_a_push_removes_the_weights_before_and_leaves_what_people_added(hub, client, folder):
    """`from_pretrained` reads a whole file where both are there, so old weights would hide new shards."""
    client("push", folder, "user/model")
    added = ("LICENSE", "curves.png", "poster.png", "model.onnx")
    add_files(hub, **dict.fromkeys(added, b"mine"))
    split(folder)
    code, output, _ = client("push", folder, "user/model")
    expected = {*FILES, *SHARDS, *added} - {"model.safetensors"}
    assert (code, set(hub.files("user/model"))) == (0, expected)
    assert "removed there: model.safetensors\n" in output
    whole = AutoModelForAudioClassification.from_pretrained(folder)
    save_model_folder(whole, folder)
    assert client("push", folder, "user/model")[0] == 0
    assert set(hub.files("user/model")) == {*FILES, *added}


def add_files(hub: HubStandIn, **files: bytes) -> None:
    """A commit of the account's owner."""
    repo = hub.repos["models", "user/model"]
    repo.add("main", repo.commits[head(hub)] | {name: (hub.keep(text), False) for name, text in files.items()})


def content_of(hub: HubStandIn, name: str) -> bytes:
    digest, _ = hub.repos["models", "user/model"].commits[head(hub)][name]
    return (hub.storage / digest).read_bytes()


def test_a_card_that_was_edited_on_the_hub_stays(hub, client, folder):
    client("push", folder, "user/model")
    pushed = content_of(hub, "README.md")
    edited = pushed.replace(b"---\n", b"---\nlicense: mit\n", 1)
    add_files(hub, **{"README.md": edited})
    change(folder)
    code, output, _ = client("push", folder, "user/model")
    assert (code, content_of(hub, "README.md")) == (0, edited)
    assert content_of(hub, "model.safetensors") == (folder / "model.safetensors").read_bytes()
    assert "README.md there was written or changed by hand and stays" in output
    assert f"all {len(FILES) - 2} files are the same" in output  # but for .gitattributes, and the card
    (folder / "README.md").write_text((folder / "README.md").read_text() + "\nMine.\n")
    assert client("push", folder, "user/model")[0] == 0
    assert content_of(hub, "README.md").endswith(b"Mine.\n")  # who edits the folder's own wants that one


def make_onnx(folder: Path, graph: bytes = b"\0graph") -> None:
    """What an export leaves: other weights, and no model code."""
    config = json.loads((folder / "config.json").read_text())
    del config["auto_map"]
    (folder / "config.json").write_text(json.dumps(config | {"onnx": {"int8": False, "parameters": 1}}))
    (folder / "model.onnx").write_bytes(graph)
    for name in ("model.safetensors", "configuration_exhubert.py", "modeling_exhubert.py", "pipeline_exhubert.py"):
        (folder / name).unlink()


def test_an_onnx_model_takes_the_place_of_safetensors(hub, client, folder):
    client("push", folder, "user/model")
    add_files(hub, **{"model.onnx.data": b"of an export before"})
    make_onnx(folder)
    code, output, _ = client("push", folder, "user/model")
    assert (code, set(hub.files("user/model"))) == (0, {*FILES, "model.onnx"} - {"model.safetensors"})
    assert last_line(output) == f'load_pipeline(snapshot_download("user/model", revision="{head(hub)}"))'


def test_a_branch_is_made_and_main_stays(hub, client, folder):
    client("push", folder, "user/model")
    before = head(hub)
    change(folder)
    code, output, _ = client("push", folder, "user/model", "--revision", "trial/one")
    assert (code, head(hub)) == (0, before)
    assert head(hub, branch="trial/one") != before
    assert head(hub, branch="trial/one") in last_line(output)


@pytest.mark.slow
def test_what_is_pushed_loads_elsewhere_and_so_does_what_was_pushed_before(hub, client, folder, samples, tmp_path):
    """In a fresh process and cache, without this package and without a token: two revisions, and a private model."""
    pushed, expected = [], []
    for seed in (1, 2):
        change(folder, seed)
        assert client("push", folder, "user/model")[0] == 0
        pushed.append(head(hub))
        with torch.no_grad():
            expected.append(AutoModelForAudioClassification.from_pretrained(folder).eval()(samples).logits.tolist())
    assert client("push", folder, "user/secret", "--private")[0] == 0
    script = f"""
    import json, torch
    from transformers import AutoConfig, AutoModelForAudioClassification

    samples = torch.randn(2, 8000, generator=torch.Generator().manual_seed(1))
    logits = []
    for revision in {[*pushed, "main"]}:
        load = AutoModelForAudioClassification.from_pretrained
        model = load("user/model", revision=revision, trust_remote_code=True).eval()
        with torch.no_grad():
            logits.append(model(samples).logits.tolist())
    try:
        AutoConfig.from_pretrained("user/secret", trust_remote_code=True)
    except OSError:
        secret = AutoConfig.from_pretrained("user/secret", trust_remote_code=True, token="{READER}").model_type
    print(json.dumps([logits, secret]))
    """
    environment = {key: value for key, value in hub.environment(tmp_path / "cache").items() if key != "PYTHONPATH"}
    code = WITHOUT_PACKAGE + textwrap.dedent(script)
    done = subprocess.run([sys.executable, "-c", code], env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    logits, secret = json.loads(last_line(done.stdout))
    assert logits == [*expected, expected[1]]
    assert secret == "exhubert"


# What is refused


def spoil(folder: Path, **changes: object) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))


def make_nan(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    weights["classifier.bias"][1] = torch.nan
    save_file(weights, folder / "model.safetensors")


def cut(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4])


def lose_a_shard(folder: Path) -> None:
    split(folder)
    (folder / SHARDS[1]).unlink()


def name_a_shard_oddly(folder: Path) -> None:
    split(folder)
    (folder / SHARDS[1]).rename(folder / "part_b.safetensors")
    (folder / SHARDS[2]).write_text((folder / SHARDS[2]).read_text().replace(SHARDS[1], "part_b.safetensors"))


def name_own_code(folder: Path) -> None:
    (folder / "tokenization_mine.py").write_text("")
    spoil(folder, auto_map={"AutoTokenizer": ["tokenization_mine.Mine", None]})


def link_the_weights(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder.parent / "elsewhere")
    (folder / "model.safetensors").symlink_to(folder.parent / "elsewhere")


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lambda folder: (folder / "README.md").unlink(), "it lacks README.md"),
        (lambda folder: (folder / "audio_exhubert.py").unlink(), "it lacks audio_exhubert.py"),
        (lambda folder: spoil(folder, auto_map={"AutoModel": "modeling_mine.Mine"}), "it lacks modeling_mine.py"),
        (lambda folder: (folder / "model.safetensors").rename(folder / "x.safetensors"), "it lacks model.safetensors"),
        (lambda folder: (folder / "config.json").write_text("{"), "config.json is not a table in JSON"),
        (make_nan, "classifier.bias has values that are not numbers"),
        (cut, r"model.safetensors: the weights cannot be read \(.*is the file whole"),
        (lose_a_shard, "it lacks model-00002-of-00002.safetensors"),
        (name_a_shard_oddly, "the model needs part_b.safetensors, which a push leaves out"),
        (name_own_code, "the model needs tokenization_mine.py, which a push leaves out"),
        (link_the_weights, "the model needs model.safetensors, which a push leaves out: links"),
        (lambda folder: make_onnx(folder, b"\0model.onnx.data"), "it lacks model.onnx.data"),
    ],
)
def test_a_folder_that_is_no_whole_model_is_refused(folder, harm, message):
    harm(folder)
    with pytest.raises(ValueError, match=message):
        push_model_folder(folder, "user/model", dry_run=True)


@pytest.mark.parametrize(
    ("repo_id", "revision", "message"),
    [
        ("model", None, "'model' is no name of a repo; it is user/model"),
        ("datasets/user/model", None, "is no name of a repo"),
        ("user/my model", None, "alphanumeric"),
        ("user/model", "a" * 40, "is a commit; a model is pushed to a branch"),
    ],
)
def test_names_that_cannot_be_are_refused(folder, repo_id, revision, message):
    with pytest.raises(ValueError, match=message):
        push_model_folder(folder, repo_id, revision=revision, dry_run=True)


@pytest.mark.parametrize(
    ("repo_id", "token", "message"),
    [
        ("user/model", "", "there is no token for the Hub; log in with `hf auth login`, or set HF_TOKEN"),
        ("user/model", "hf_an_old_token", "the Hub does not accept the token (401)"),
        ("user/model", READER, "the token may not write there (403)"),
        ("other/model", WRITER, "the token may not write there (403)"),
    ],
)
def test_who_may_not_write_is_told_so_in_one_line(hub, client, folder, repo_id, token, message):
    hub.repos["models", "other/model"] = Repo(private=False)  # so that it can be read
    hub.repos["models", "other/model"].add("main", {})
    code, _, errors = client("push", folder, repo_id, token=token)
    assert (code, len(errors.splitlines()), sent(hub)) == (1, 1, [])
    assert message in errors
    assert "hf_an_old_token" not in errors


def test_a_private_model_is_not_pushed_where_all_can_see_it(hub, client, folder):
    assert client("push", folder, "user/model", "--private")[0] == 0
    assert hub.repos["models", "user/model"].private
    hub.repos["models", "user/model"].private = False
    change(folder)
    hub.requests.clear()
    code, _, errors = client("push", folder, "user/model", "--private")
    assert (code, sent(hub)) == (1, [])
    assert "is there already, and public" in errors


def test_what_somebody_else_pushed_meanwhile_is_not_overwritten(hub, client, folder):
    client("push", folder, "user/model")
    change(folder)
    hub.trouble("POST", "/user/model/preupload/", lambda: add_files(hub, LICENSE=b"mine"))
    code, _, errors = client("push", folder, "user/model")
    assert code == 1
    assert "the repo was changed in the meantime (412); give the same command again" in errors
    assert client("push", folder, "user/model")[0] == 0
    assert hub.files("user/model") == sorted([*FILES, "LICENSE"])


# What breaks


def test_troubles_that_pass_are_waited_for(hub, client, folder):
    """Errors of the Hub, an upload and a download that are cut in the middle."""
    for method, path, what in (
        ("POST", "/create", 503),
        ("POST", "/preupload/", 500),
        ("PUT", "/lfs/", "cut"),
        ("POST", "/commit/", 503),
        ("GET", "/model.safetensors", "cut"),
    ):
        hub.trouble(method, path, what)
    code, _, errors = client("push", folder, "user/model")
    assert code == 0, errors
    assert [trouble.times for trouble in hub.troubles] == [0] * 5
    assert hub.files("user/model") == FILES


def test_after_a_broken_connection_the_same_command_goes_on(hub, client, folder):
    """The first time a shard does not arrive, the second time the answer to the commit."""
    split(folder)
    hub.trouble("PUT", f"/lfs/{digest_of(folder / SHARDS[1])}", 400)
    code, _, errors = client("push", folder, "user/model")
    assert (code, hub.files("user/model")) == (1, [".gitattributes"])
    assert last_line(errors).startswith("error: user/model: the Hub answers with an error (400); try again later")
    hub.requests.clear()
    hub.trouble("POST", "/commit/", "cut")
    code, _, errors = client("push", folder, "user/model")
    assert (code, hub.files("user/model")) == (1, [".gitattributes"])
    assert last_line(errors).startswith("error: user/model: no connection, or it broke (")
    assert last_line(errors).endswith("give the same command again, what has arrived is not sent twice")
    assert sent(hub) == [f"PUT /lfs/{digest_of(folder / SHARDS[1])}"]
    hub.requests.clear()
    assert client("push", folder, "user/model")[0] == 0
    assert (sent(hub), set(hub.files("user/model"))) == ([], {*FILES, *SHARDS} - {"model.safetensors"})


def digest_of(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize("name", ["model.safetensors", "modeling_exhubert.py"])
def test_a_file_that_comes_back_as_another_is_found(hub, client, folder, name):
    hub.trouble("GET", f"/{name}$", "corrupt")
    code, output, errors = client("push", folder, "user/model")
    assert (code, "from_pretrained" in output) == (1, False)
    assert f"commit {head(hub)}" in last_line(errors)
    assert f"{name} comes back as another file" in last_line(errors)


# push_to_hub


@pytest.mark.slow
def test_a_training_pushes_its_model_and_leaves_no_token(hub, client, make_corpus, make_hubert, tmp_path):
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
    from huggingface_hub import HfApi
    import train_hf
    from exhubert.cli import run_with_one_line_errors
    from exhubert.corpora.readers import read_corpus

    logging.basicConfig(level=logging.DEBUG)
    logging.getLogger("matplotlib").setLevel(logging.INFO)
    api = HfApi()
    api.create_repo("user/folder", repo_type="dataset", private=True)
    api.upload_folder(repo_id="user/folder", repo_type="dataset", folder_path=sys.argv[2])
    read_corpus(sys.argv[2]).push_to_hub("user/table", private=True)
    for name in ("finished", "late", "refused"):
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
    assert {*FILES[1:]} <= pushed <= {path.name for path in model.iterdir()}
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

    checkpoint = max((tmp_path / "finished" / "checkpoints").iterdir())
    assert (checkpoint / "optimizer.pt").is_file()
    assert client("push", checkpoint, "user/checkpoint")[0] == 0
    assert hub.files("user/checkpoint") == FILES


def test_the_recipe_keeps_that_a_run_is_pushed_and_takes_no_token(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("{model: m, corpora: [a], output: run, training: {push_to_hub: true, hub_model_id: user/model}}")
    kept = resolved(*parse([str(recipe)])[:2])["training"]
    assert (kept["push_to_hub"], kept["hub_model_id"]) == (True, "user/model")
    for name, value in (("hub_token", WRITER), ("hub_strategy", "every_save"), ("hub_always_push", "true")):
        with pytest.raises(ValueError, match=f"^{name} has no place here") as error:
            parse([str(recipe), f"--{name}", value])
        assert WRITER not in str(error.value)
    with pytest.raises(ValueError, match="push_to_hub needs hub_model_id"):
        parse([str(recipe), "--hub_model_id", ""])
