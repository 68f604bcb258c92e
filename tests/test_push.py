"""`exhubert push`: what is uploaded, who may, what breaks, and what is found; against a stand-in for the Hub.

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
from safetensors.torch import load_file, save_file
from transformers import AutoModelForAudioClassification

from conftest import MODEL_FILES, SHARDS, WITHOUT_PACKAGE, make_onnx, split_weights
from exhubert.model_folder import save_model_folder
from exhubert.model_folder.card import with_weights
from hub_stand_in import READER, WRITER, HubStandIn, Repo

FILES = sorted([".gitattributes", *MODEL_FILES])

# The command line in a process of its own, as many commands as wanted: importing it takes seconds.
CLIENT = """
import json, os, sys
from exhubert.cli import main
from exhubert.publish import hub
from exhubert.utils.command import run_with_one_line_errors

hub.WAITS = (0.1, 0.1, 0.1)
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


def change(folder: Path, seed: int = 1) -> None:
    """Other weights, which the card states."""
    weights = load_file(folder / "model.safetensors")
    generator = torch.Generator().manual_seed(seed)
    changed = {name: tensor + 0.01 * torch.randn(tensor.shape, generator=generator) for name, tensor in weights.items()}
    save_file(changed, folder / "model.safetensors", {"format": "pt"})
    (folder / "README.md").write_text(with_weights((folder / "README.md").read_text(), folder))


def head(hub: HubStandIn, name: str = "user/model", branch: str = "main") -> str:
    return hub.repos["models", name].branches[branch]


def last_line(text: str) -> str:
    return text.strip().splitlines()[-1]


def sent(hub: HubStandIn, what: str = "PUT") -> list[str]:
    return [request for request in hub.requests if request.startswith(what)]


# What is uploaded


def test_exactly_the_model_files_are_pushed(hub, client, model_folder):
    """From a model_folder with all that training, downloading and users leave in one."""
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth", "training_args.bin", "clip.wav", "results.json"):
        (model_folder / name).write_bytes(b"\0")
    for name in ("predictions.parquet", "trainer_state.json", "adapter_model.safetensors", ".env", "pytorch_model.bin"):
        (model_folder / name).write_bytes(b"\0")
    for name in ("logs", ".cache"):
        (model_folder / name).mkdir()
        (model_folder / name / "confusion_a.png").write_bytes(b"\0")
    (model_folder / ".eval_results").mkdir()
    (model_folder / ".eval_results" / "emodb.yaml").write_text("- value: 0.7\n")
    (model_folder / ".eval_results" / "link.yaml").symlink_to(__file__)
    (model_folder / "party.png").write_bytes(b"\0")
    (model_folder / "confusion_link.png").symlink_to(__file__)
    for name in ("curves.png", "confusion_a.png", "model.onnx", "model.onnx.data"):
        (model_folder / name).write_bytes(b"\0" + name.encode())
    code, output, _ = client("push", model_folder, "user/model")
    assert code == 0
    added = ("curves.png", "confusion_a.png", "model.onnx", "model.onnx.data", ".eval_results/emodb.yaml")
    assert hub.files("user/model") == sorted([*FILES, *added])
    assert ".eval_results/" not in output.split("left out: ")[1].splitlines()[0]
    for name in ("optimizer.pt", "clip.wav", "logs/", ".env", "party.png", "confusion_link.png"):
        assert name in output.split("left out: ")[1].splitlines()[0]
    assert len(hub.repos["models", "user/model"].commits) == 2  # the Hub's own first one, and the push
    pinned = f'AutoModelForAudioClassification.from_pretrained("user/model", revision="{head(hub)}", '
    assert last_line(output) == f"{pinned}trust_remote_code=True)"


def test_nothing_is_pushed_twice(hub, client, model_folder):
    client("push", model_folder, "user/model")
    before = head(hub)
    hub.requests.clear()
    code, output, _ = client("push", model_folder, "user/model")
    assert (code, head(hub), sent(hub)) == (0, before, [])
    assert f"nothing to change: commit {before}" in output


def test_a_push_removes_the_weights_before_and_leaves_what_people_added(hub, client, model_folder):
    """`from_pretrained` reads a whole file where both are there, so old weights would hide new shards."""
    client("push", model_folder, "user/model")
    added = ("LICENSE", "curves.png", "poster.png", "model.onnx")
    add_files(hub, **dict.fromkeys(added, b"mine"))
    split_weights(model_folder)
    code, output, _ = client("push", model_folder, "user/model")
    expected = {*FILES, *SHARDS, *added} - {"model.safetensors"}
    assert (code, set(hub.files("user/model"))) == (0, expected)
    assert "removed there: model.safetensors\n" in output
    whole = AutoModelForAudioClassification.from_pretrained(model_folder)
    save_model_folder(whole, model_folder)
    assert client("push", model_folder, "user/model")[0] == 0
    assert set(hub.files("user/model")) == {*FILES, *added}


def add_files(hub: HubStandIn, **files: bytes) -> None:
    """A commit of the account's owner."""
    repo = hub.repos["models", "user/model"]
    repo.add("main", repo.commits[head(hub)] | {name: (hub.keep(text), False) for name, text in files.items()})


def content_of(hub: HubStandIn, name: str) -> bytes:
    digest, _ = hub.repos["models", "user/model"].commits[head(hub)][name]
    return (hub.storage / digest).read_bytes()


def test_a_card_that_was_edited_on_the_hub_stays(hub, client, model_folder):
    client("push", model_folder, "user/model")
    pushed = content_of(hub, "README.md")
    edited = pushed.replace(b"---\n", b"---\nlicense: mit\n", 1)
    add_files(hub, **{"README.md": edited})
    change(model_folder)
    code, output, _ = client("push", model_folder, "user/model")
    assert (code, content_of(hub, "README.md")) == (0, edited)
    assert content_of(hub, "model.safetensors") == (model_folder / "model.safetensors").read_bytes()
    assert "README.md there was written or changed by hand and stays" in output
    assert f"all {len(FILES) - 2} files are the same" in output  # but for .gitattributes, and the card
    (model_folder / "README.md").write_text((model_folder / "README.md").read_text() + "\nMine.\n")
    assert client("push", model_folder, "user/model")[0] == 0
    assert content_of(hub, "README.md").endswith(b"Mine.\n")  # who edits the folder's own wants that one


def test_an_onnx_model_takes_the_place_of_safetensors(hub, client, model_folder):
    client("push", model_folder, "user/model")
    add_files(hub, **{"model.onnx.data": b"of an export before"})
    make_onnx(model_folder)
    code, output, _ = client("push", model_folder, "user/model")
    assert (code, set(hub.files("user/model"))) == (0, {*FILES, "model.onnx"} - {"model.safetensors"})
    assert last_line(output) == f'load_pipeline(snapshot_download("user/model", revision="{head(hub)}"))'


def test_a_branch_is_made_and_main_stays(hub, client, model_folder):
    client("push", model_folder, "user/model")
    before = head(hub)
    change(model_folder)
    code, output, _ = client("push", model_folder, "user/model", "--revision", "trial/one")
    assert (code, head(hub)) == (0, before)
    assert head(hub, branch="trial/one") != before
    assert head(hub, branch="trial/one") in last_line(output)


@pytest.mark.slow
def test_what_is_pushed_loads_elsewhere_and_so_does_what_was_pushed_before(
    hub, client, model_folder, samples, tmp_path
):
    """In a fresh process and cache, without this package and without a token: two revisions, and a private model."""
    pushed, expected = [], []
    for seed in (1, 2):
        change(model_folder, seed)
        assert client("push", model_folder, "user/model")[0] == 0
        pushed.append(head(hub))
        with torch.no_grad():
            expected.append(
                AutoModelForAudioClassification.from_pretrained(model_folder).eval()(samples).logits.tolist()
            )
    assert client("push", model_folder, "user/secret", "--private")[0] == 0
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


@pytest.mark.parametrize(
    ("repo_id", "token", "message"),
    [
        ("user/model", "", "there is no token for the Hub; log in with `hf auth login`, or set HF_TOKEN"),
        ("user/model", "hf_an_old_token", "the Hub does not accept the token (401)"),
        ("user/model", READER, "the token may not write there (403)"),
        ("other/model", WRITER, "the token may not write there (403)"),
    ],
)
def test_who_may_not_write_is_told_so_in_one_line(hub, client, model_folder, repo_id, token, message):
    hub.repos["models", "other/model"] = Repo(private=False)  # so that it can be read
    hub.repos["models", "other/model"].add("main", {})
    code, _, errors = client("push", model_folder, repo_id, token=token)
    assert (code, len(errors.splitlines()), sent(hub)) == (1, 1, [])
    assert message in errors
    assert "hf_an_old_token" not in errors


def test_a_private_model_is_not_pushed_where_all_can_see_it(hub, client, model_folder):
    assert client("push", model_folder, "user/model", "--private")[0] == 0
    assert hub.repos["models", "user/model"].private
    hub.repos["models", "user/model"].private = False
    change(model_folder)
    hub.requests.clear()
    code, _, errors = client("push", model_folder, "user/model", "--private")
    assert (code, sent(hub)) == (1, [])
    assert "is there already, and public" in errors


def test_what_somebody_else_pushed_meanwhile_is_not_overwritten(hub, client, model_folder):
    client("push", model_folder, "user/model")
    change(model_folder)
    hub.trouble("POST", "/user/model/preupload/", lambda: add_files(hub, LICENSE=b"mine"))
    code, _, errors = client("push", model_folder, "user/model")
    assert code == 1
    assert "the repo was changed in the meantime (412); give the same command again" in errors
    assert client("push", model_folder, "user/model")[0] == 0
    assert hub.files("user/model") == sorted([*FILES, "LICENSE"])


# What breaks


def test_troubles_that_pass_are_waited_for(hub, client, model_folder):
    """Errors of the Hub, an upload and a download that are cut in the middle."""
    troubles = [("POST", "/create", 503), ("POST", "/preupload/", 500), ("PUT", "/lfs/", "cut")]
    troubles += [("POST", "/commit/", 503), ("POST", "/paths-info/", 502), ("GET", "/modeling_exhubert.py", "cut")]
    for trouble in troubles:
        hub.trouble(*trouble)
    code, _, errors = client("push", model_folder, "user/model")
    assert code == 0, errors
    assert [trouble.times for trouble in hub.troubles] == [0] * len(troubles)
    assert hub.files("user/model") == FILES


def test_after_a_broken_connection_the_same_command_goes_on(hub, client, model_folder):
    """The first time a shard does not arrive, the second time the answer to the commit."""
    split_weights(model_folder)
    hub.trouble("PUT", f"/lfs/{digest_of(model_folder / SHARDS[1])}", 400)
    code, _, errors = client("push", model_folder, "user/model")
    assert (code, hub.files("user/model")) == (1, [".gitattributes"])
    assert last_line(errors).startswith("error: user/model: the Hub answers with an error (400); try again later")
    hub.requests.clear()
    hub.trouble("POST", "/commit/", "cut")
    code, _, errors = client("push", model_folder, "user/model")
    assert (code, hub.files("user/model")) == (1, [".gitattributes"])
    assert last_line(errors).startswith("error: user/model: no connection, or it broke (")
    assert last_line(errors).endswith("give the same command again, what has arrived is not sent twice")
    assert sent(hub) == [f"PUT /lfs/{digest_of(model_folder / SHARDS[1])}"]
    hub.requests.clear()
    assert client("push", model_folder, "user/model")[0] == 0
    assert (sent(hub), set(hub.files("user/model"))) == ([], {*FILES, *SHARDS} - {"model.safetensors"})


def digest_of(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def lose_the_weights(hub: HubStandIn) -> None:
    for tree in hub.repos["models", "user/model"].commits.values():
        tree.pop("model.safetensors", None)


@pytest.mark.parametrize(
    ("method", "path", "what", "message"),
    [
        ("PUT", "/lfs/", "corrupt", "model.safetensors comes back as another file"),
        ("GET", "/modeling_exhubert.py$", "corrupt", "modeling_exhubert.py comes back as another file"),
        ("POST", "/paths-info/", lose_the_weights, "model.safetensors is not there"),
    ],
)
def test_a_file_that_is_another_one_there_is_found(hub, client, model_folder, method, path, what, message):
    hub.trouble(method, path, (lambda: what(hub)) if callable(what) else what)
    code, output, errors = client("push", model_folder, "user/model")
    assert (code, "from_pretrained" in output) == (1, False)
    assert f"commit {head(hub)}" in last_line(errors)
    assert f"{message}{'' if 'not there' in message else ', its SHA-256 differs'}; do not use" in last_line(errors)


def test_weights_are_compared_without_downloading_them(hub, client, model_folder):
    client("push", model_folder, "user/model")
    downloaded = {request.rpartition("/")[2] for request in sent(hub, "GET /user/model/resolve/")}
    assert downloaded == {*MODEL_FILES} - {"model.safetensors"}
