"""`exhubert convert hubert` and `contract`: every source, what is written and said, memory, kills.

python -m pytest tests/test_convert.py
"""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import HubertConfig, HubertForSequenceClassification, HubertModel

from conftest import HEADS, HUBERT_KINDS, ROOT, SMALL, forks_with_package
from exhubert import SIX_CLASSES, ExHuBERTForSequenceClassification
from exhubert.cli import main
from exhubert.convert import checkpoint, hubert
from exhubert.convert.contract import convert_contract
from exhubert.convert.hubert import convert_hubert
from exhubert.model_folder import check_model_folder, save_model_folder


def bytes_of(folder):
    return {file.name: file.read_bytes() for file in folder.glob("*.safetensors")}


def run_python(script: str, *arguments: object, fails: bool = False) -> subprocess.CompletedProcess:
    """Runs a script in a process of its own."""
    done = forks_with_package()(script, *arguments, folder=ROOT)
    assert fails or done.returncode == 0, done.stderr
    return done


@pytest.mark.parametrize("kind", HUBERT_KINDS)
@pytest.mark.parametrize("head", HEADS)
def test_every_kind_of_hubert_expands_and_contracts_to_itself(tmp_path, make_hubert, capsys, kind, head):
    source, target = make_hubert(kind, head), tmp_path / "expanded"
    assert main(["convert", "hubert", str(source), str(target)]) == 0
    said = capsys.readouterr().out
    assert "logits are bit-identical to the source's on 2 x 16000 samples (seed 0): largest difference 0.0" in said
    assert ("left out: lm_head.bias, lm_head.weight\n" in said) == (head == "ctc")
    assert ("it has no classification head: a new one, for 6 classes\n" in said) == (head != "classifier")
    assert check_model_folder(target)
    model = ExHuBERTForSequenceClassification.from_pretrained(target)
    layers = HUBERT_KINDS[kind].get("num_hidden_layers", 3)
    assert (model.config.num_hidden_layers, model.config.num_copies) == (2 * layers, 1)
    if head != "classifier":
        assert tuple(model.config.id2label.values()) == SIX_CLASSES

    assert main(["convert", "contract", str(target), str(tmp_path / "back")]) == 0
    assert "logits are bit-identical to the source's" in capsys.readouterr().out
    weights = load_file(source / "model.safetensors")
    back = HEADS["none" if head == "none" else "classifier"].from_pretrained(tmp_path / "back").state_dict()
    for name, tensor in weights.items():
        if not name.startswith("lm_head"):
            assert torch.equal(back[name], tensor), name


@pytest.mark.slow
@pytest.mark.parametrize("kinds", [("large",), pytest.param(tuple(HUBERT_KINDS), marks=pytest.mark.heavy)])
def test_every_source_in_fresh_processes_in_both_dtypes(tmp_path, make_hubert, kinds):
    """Written by one process, the source computed by a second, the expanded model by a third: eager, CPU."""
    sources = {f"{kind} {head}": (kind, head, {}) for kind in kinds for head in HEADS}
    sources["weighted classifier"] = ("base", "classifier", {"use_weighted_layer_sum": True})
    sources["deep none"] = ("large", "none", {"num_hidden_layers": 12, "hidden_size": 48})
    for name, (kind, head, changes) in list(sources.items()):
        folder = make_hubert(kind, head, name=name, **changes)
        half = shutil.copytree(folder, tmp_path / f"{name} bfloat16")
        HEADS[head].from_pretrained(folder).to(torch.bfloat16).save_pretrained(half)
        sources[half.name] = sources[name]
    pickled = shutil.copytree(tmp_path / "large ctc", tmp_path / "pickled large ctc")
    torch.save(load_file(pickled / "model.safetensors"), pickled / "pytorch_model.bin")
    (pickled / "model.safetensors").unlink()
    names = [*sources, pickled.name]
    run_python(
        """
        import sys
        from exhubert.convert.hubert import convert_hubert
        for name in sys.argv[2:]:
            convert_hubert(f"{sys.argv[1]}/{name}", f"{sys.argv[1]}/{name} expanded")
        """,
        tmp_path,
        *names,
    )
    compute = """
        import sys, torch, exhubert
        from safetensors.torch import save_file
        from transformers import AutoModel, AutoModelForAudioClassification
        outputs = {}
        for name in sys.argv[3:]:
            dtype = torch.bfloat16 if name.endswith("bfloat16") else torch.float32
            samples = torch.randn(2, 8000, generator=torch.Generator().manual_seed(1)).to(dtype)
            load = AutoModelForAudioClassification if "classifier" in name else AutoModel
            model = load.from_pretrained(
                f"{sys.argv[1]}/{name}{sys.argv[2]}", dtype=dtype, attn_implementation="eager", trust_remote_code=True
            )
            with torch.inference_mode():
                outputs[name] = model(samples)[0]
        save_file(outputs, f"{sys.argv[1]}/outputs{sys.argv[2]}.safetensors")
        """
    for suffix in ("", " expanded"):
        run_python(compute, tmp_path, suffix, *names)
    expected, got = (load_file(tmp_path / f"outputs{suffix}.safetensors") for suffix in ("", " expanded"))
    assert sorted(expected) == sorted(names)
    for name, output in expected.items():
        assert torch.equal(got[name], output), name


@pytest.mark.parametrize("form", ["shards", "pickle", "pickled shards", "old pickle", "weight_g and weight_v"])
def test_every_form_of_checkpoint_converts_to_the_same_bytes(tmp_path, make_hubert, form):
    source = make_hubert(head="ctc")
    convert_hubert(str(source), tmp_path / "expected")
    file = source / "model.safetensors"
    weights = load_file(file)
    file.unlink()
    old = {"parametrizations.weight.original0": "weight_g", "parametrizations.weight.original1": "weight_v"}
    for new_part, old_part in old.items():
        if form != "shards":
            weights = {name.replace(new_part, old_part): tensor for name, tensor in weights.items()}
    if form == "shards":
        names = sorted(weights)
        parts = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
        for part, own in parts.items():
            save_file({name: weights[name] for name in own}, source / part, {"format": "pt"})
        index = {"metadata": {}, "weight_map": {name: part for part, own in parts.items() for name in own}}
        (source / "model.safetensors.index.json").write_text(json.dumps(index))
    elif form == "pickled shards":
        names = sorted(weights)
        parts = {"pytorch_model-00001-of-00002.bin": names[:9], "pytorch_model-00002-of-00002.bin": names[9:]}
        for part, own in parts.items():
            torch.save({name: weights[name] for name in own}, source / part)
        index = {"metadata": {}, "weight_map": {name: part for part, own in parts.items() for name in own}}
        (source / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    elif form == "weight_g and weight_v":
        save_file(weights, file, {"format": "pt"})
    else:
        torch.save(weights, source / "pytorch_model.bin", _use_new_zipfile_serialization=form == "pickle")
    convert_hubert(str(source), tmp_path / "expanded")
    assert bytes_of(tmp_path / "expanded") == bytes_of(tmp_path / "expected")
    if form != "old pickle":  # which `from_pretrained` reads on no release
        model = ExHuBERTForSequenceClassification.from_hubert(source)
        expected = ExHuBERTForSequenceClassification.from_pretrained(tmp_path / "expected").hubert.state_dict()
        for name, tensor in model.hubert.state_dict().items():
            assert torch.equal(tensor, expected[name]), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_dtypes_are_kept_and_counters_stay_integers(tmp_path, make_hubert, dtype):
    source = make_hubert("batch norm")
    HubertForSequenceClassification.from_pretrained(source).to(dtype).save_pretrained(source)
    convert_hubert(str(source), tmp_path / "expanded")
    weights = load_file(tmp_path / "expanded" / "model.safetensors")
    dtypes = {name.endswith("num_batches_tracked"): tensor.dtype for name, tensor in weights.items()}
    assert dtypes == {True: torch.int64, False: dtype}
    assert {tensor.dtype for name, tensor in weights.items() if "num_batches" not in name} == {dtype}
    assert json.loads((tmp_path / "expanded" / "config.json").read_text())["dtype"] == str(dtype).split(".")[1]
    assert ExHuBERTForSequenceClassification.from_hubert(source).dtype == dtype


def test_two_copies_and_a_trained_head(tmp_path, make_hubert, samples):
    names = {0: "calm", 1: "loud", 2: "odd", 3: "sad"}
    source, target = make_hubert("base", id2label=names), tmp_path / "expanded"
    assert main(["convert", "hubert", str(source), str(target), "--num-copies", "2"]) == 0
    model = ExHuBERTForSequenceClassification.from_pretrained(target).eval()
    assert model.config.num_hidden_layers == 9
    assert model.config.id2label == names
    reference = HubertForSequenceClassification.from_pretrained(source).eval()
    with torch.inference_mode():
        assert torch.equal(model(samples).logits, reference(samples).logits)
    convert_contract(target, tmp_path / "back")
    assert HubertConfig.from_pretrained(tmp_path / "back").id2label == names
    assert load_file(tmp_path / "back" / "model.safetensors").keys() == reference.state_dict().keys()


@pytest.mark.parametrize("kind", ["base", "large"])
@pytest.mark.parametrize("head", ["classifier", "ctc"])
def test_a_weighted_layer_sum_is_over_the_states_it_was_trained_with(tmp_path, make_hubert, samples, kind, head):
    """A source layer's state is its block's state, and the last one is after the final layer norm, as before 5.16."""
    source = make_hubert(kind, head, use_weighted_layer_sum=True)
    convert_hubert(str(source), tmp_path / "expanded", num_copies=2)
    model = ExHuBERTForSequenceClassification.from_pretrained(tmp_path / "expanded").eval()
    weights = load_file(tmp_path / "expanded" / "model.safetensors")["layer_weights"]
    assert weights.softmax(-1).count_nonzero() == 4
    if head == "classifier":
        assert torch.equal(weights[::3], load_file(source / "model.safetensors")["layer_weights"])
    else:
        assert torch.equal(weights[::3], torch.full((4,), 0.25))
    plain = HubertModel.from_pretrained(source).eval()
    with torch.inference_mode():
        outputs = plain(samples, output_hidden_states=True)
        states = torch.stack((*outputs.hidden_states[:-1], outputs.last_hidden_state), dim=1)
        frames = (states * weights[::3].softmax(-1).view(-1, 1, 1)).sum(dim=1)
        assert torch.equal(model(samples).logits, model.classifier(model.projector(frames).mean(dim=1)))


def test_a_new_head_is_the_same_on_every_run_and_no_zeros(tmp_path, make_hubert):
    source = make_hubert(head="none")
    for name in ("one", "two"):
        torch.manual_seed(hash(name) % 100)
        convert_hubert(str(source), tmp_path / name)
    assert bytes_of(tmp_path / "one") == bytes_of(tmp_path / "two")
    weights = load_file(tmp_path / "one" / "model.safetensors")
    assert 0.01 < weights["classifier.weight"].std() < 0.03  # initializer_range
    assert not weights["classifier.bias"].any()


def test_the_window_of_a_model_folder_is_kept(tmp_path, make_hubert):
    save_model_folder(HubertForSequenceClassification.from_pretrained(make_hubert()), tmp_path / "ours", 2.0)
    convert_hubert(str(tmp_path / "ours"), tmp_path / "expanded")
    assert json.loads((tmp_path / "expanded" / "preprocessor_config.json").read_text())["window_seconds"] == 2.0


def test_a_trained_model_contracts_to_its_frozen_originals_without_the_head(tmp_path, make_hubert, samples, capsys):
    source = make_hubert()
    model = ExHuBERTForSequenceClassification.from_hubert(source, num_copies=2)
    model.freeze_og_encoder()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    model.train()(samples, labels=torch.tensor([0, 1])).loss.backward()
    optimizer.step()
    save_model_folder(model, tmp_path / "trained", window_seconds=2.0)
    assert main(["convert", "contract", str(tmp_path / "trained"), str(tmp_path / "back")]) == 0
    said = capsys.readouterr().out
    assert "left out: the head, as hubert.encoder.layers.1.zero_linear" in said
    assert "last hidden states are bit-identical to the source's without what its copies add" in said
    weights, back = load_file(source / "model.safetensors"), load_file(tmp_path / "back" / "model.safetensors")
    assert not any(name.startswith(("projector", "classifier")) for name in back)
    for name, tensor in back.items():
        original = name.startswith("encoder.layers.")
        assert not original or torch.equal(tensor, weights[f"hubert.{name}"]), name
    assert not torch.equal(
        back["feature_projection.projection.weight"], weights["hubert.feature_projection.projection.weight"]
    )
    assert json.loads((tmp_path / "back" / "preprocessor_config.json").read_text())["window_seconds"] == 2.0
    again = HubertModel.from_pretrained(tmp_path / "back")
    assert again.config.num_hidden_layers == 3
    convert_hubert(str(tmp_path / "back"), tmp_path / "expanded again")


def test_a_weighted_sum_trained_over_the_copies_loses_its_head_too(tmp_path, make_hubert, capsys):
    model = ExHuBERTForSequenceClassification.from_hubert(make_hubert("base", use_weighted_layer_sum=True))
    model.layer_weights.data[:] = 0.5
    save_model_folder(model, tmp_path / "trained")
    convert_contract(tmp_path / "trained", tmp_path / "back")
    assert "left out: the head, as layer_weights was trained" in capsys.readouterr().out


def test_gated_originals_contract_only_as_long_as_their_gates_are_the_identity(tmp_path, make_hubert):
    model = ExHuBERTForSequenceClassification.from_hubert(make_hubert(), gate_original_layers=True)
    save_model_folder(model, tmp_path / "gated")
    convert_contract(tmp_path / "gated", tmp_path / "back")
    model.hubert.encoder.layers[2].identity_linear.weight.data[0, 1] = 0.1
    save_model_folder(model, tmp_path / "gated")
    with pytest.raises(ValueError, match=r"layers\.2\.identity_linear\.weight is not the identity"):
        convert_contract(tmp_path / "gated", tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_a_conversion_that_changes_the_function_is_refused_and_leaves_nothing(tmp_path, make_hubert, monkeypatch):
    source = make_hubert()
    expand = hubert.expanded_weight

    def wrong(name, *arguments):
        return expand(name, *arguments) + (1e-3 if name.endswith("layers.1.zero_linear.bias") else 0)

    monkeypatch.setattr(hubert, "expanded_weight", wrong)
    with pytest.raises(
        ValueError, match=r"the converted model's logits differ from the source's by up to \d\S+ on 2 x"
    ):
        convert_hubert(str(source), tmp_path / "expanded")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["hubert"]


def test_a_kill_while_writing_leaves_no_model_and_the_next_run_succeeds(tmp_path, make_hubert):
    source, target = make_hubert(), tmp_path / "expanded"
    done = run_python(
        """
        import os, signal, sys
        from exhubert.convert import checkpoint, hubert
        save = checkpoint.save_file
        def killed_after_one_shard(*arguments, **options):
            save(*arguments, **options)
            os.kill(os.getpid(), signal.SIGKILL)
        checkpoint.save_file, checkpoint.SHARD_BYTES = killed_after_one_shard, 50_000
        hubert.convert_hubert(sys.argv[1], sys.argv[2])
        """,
        source,
        target,
        fails=True,
    )
    assert done.returncode == -signal.SIGKILL
    assert not target.exists()
    assert len([path for path in tmp_path.iterdir() if ".unfinished-" in path.name]) == 1
    convert_hubert(str(source), target)
    assert check_model_folder(target)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["expanded", "hubert"]


def test_a_full_disk_is_told_in_one_line_and_leaves_nothing(tmp_path, make_hubert):
    command = f"ulimit -f 100; exec '{sys.executable}' -m exhubert convert hubert '{make_hubert()}' '{tmp_path / 'ex'}'"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert done.returncode == 1
    assert "model.safetensors cannot be written" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["hubert"]


def test_an_empty_folder_and_a_link_to_one_are_filled(tmp_path, make_hubert):
    source = make_hubert()
    (tmp_path / "empty").mkdir(mode=0o700)
    (tmp_path / "link").symlink_to("empty")
    convert_hubert(str(source), tmp_path / "link")
    assert check_model_folder(tmp_path / "empty")
    assert (tmp_path / "empty").stat().st_mode & 0o777 == 0o700
    assert (tmp_path / "link").is_symlink()


def test_of_two_conversions_to_one_target_the_slower_is_told_so(tmp_path, make_hubert, monkeypatch):
    source, target = make_hubert(), tmp_path / "expanded"
    check = hubert.check_same_function

    def overtaken(*arguments):
        check(*arguments)
        target.mkdir()
        (target / "config.json").write_text("theirs")

    monkeypatch.setattr(hubert, "check_same_function", overtaken)
    with pytest.raises(ValueError, match="expanded exists already"):
        convert_hubert(str(source), target)
    assert [path.name for path in target.iterdir()] == ["config.json"]


def test_a_checkpoint_of_two_dtypes_keeps_both(tmp_path, make_hubert):
    source = make_hubert()
    model = HubertForSequenceClassification.from_pretrained(source)
    model.hubert.to(torch.bfloat16)
    model.save_pretrained(source)
    convert_hubert(str(source), tmp_path / "expanded")
    weights = load_file(tmp_path / "expanded" / "model.safetensors")
    assert {name.startswith("hubert."): tensor.dtype for name, tensor in weights.items()} == {
        True: torch.bfloat16,
        False: torch.float32,
    }


@pytest.mark.slow
@pytest.mark.parametrize("layers", [4, pytest.param(8, marks=pytest.mark.heavy)])
def test_memory_holds_a_shard_and_not_a_model(tmp_path, make_hubert, layers):
    """A source of 411 MB (of 8 layers) becomes one of 723 MB; what the conversion adds to memory is far less."""
    sizes = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": layers}
    config = HubertConfig(**{**SMALL, **HUBERT_KINDS["large"], **sizes})
    HubertForSequenceClassification(config).save_pretrained(tmp_path / "hubert")
    make_hubert(name="hubert-small")
    done = run_python(
        """
        import resource, sys
        from exhubert.convert import checkpoint, contract, hubert
        checkpoint.SHARD_BYTES = checkpoint.READ_BYTES = 64 * 2**20
        hubert.convert_hubert(sys.argv[1] + "/hubert-small", sys.argv[1] + "/small")  # all is imported then
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        hubert.convert_hubert(sys.argv[1] + "/hubert", sys.argv[1] + "/expanded")
        contract.convert_contract(sys.argv[1] + "/expanded", sys.argv[1] + "/back")
        print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)
        """,
        tmp_path,
    )
    written = sum(file.stat().st_size for file in (tmp_path / "expanded").glob("*.safetensors"))
    assert written > 85e6 * layers
    assert len(list((tmp_path / "expanded").glob("model-*.safetensors"))) > layers
    assert int(done.stdout.splitlines()[-1]) < min(250e6, written / 2)


def test_names_of_weights_are_brought_up_to_date():
    names = {
        "lm_head.weight": None,
        "encoder.layer_norm.bias": "hubert.encoder.layer_norm.bias",
        "hubert.encoder.pos_conv_embed.conv.weight_g": (
            "hubert.encoder.pos_conv_embed.conv.parametrizations.weight.original0"
        ),
        "hubert.encoder.layers.10.gate_bb_linear.weight": "hubert.encoder.layers.10.identity_linear.weight",
        "hubert.encoder.layers.11.gate_bb_linear.bias": "hubert.encoder.layers.11.zero_linear.bias",
        "classifier.weight": "classifier.weight",
        "layer_weights": "layer_weights",
    }
    assert {name: checkpoint.current_name(name) for name in names} == names


def test_a_model_computes_from_its_files_as_from_memory(tmp_path, make_hubert, samples):
    source = make_hubert("large", use_weighted_layer_sum=False)
    model = HubertForSequenceClassification.from_pretrained(source).eval()
    on_meta = checkpoint.on_meta(HubertForSequenceClassification, model.config)
    from_files = checkpoint.compute_from_files(on_meta, checkpoint.Checkpoint(source).read, torch.float32)
    with torch.inference_mode():
        assert torch.equal(from_files(samples).logits, model(samples).logits)
    assert all(parameter.is_meta for parameter in from_files.parameters())
    assert isinstance(from_files.classifier, nn.Linear)


def test_python_m_exhubert(tmp_path, make_hubert):
    command = ["convert", "hubert", str(make_hubert()), str(tmp_path / "expanded")]
    done = subprocess.run([sys.executable, "-m", "exhubert", *command], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "bit-identical" in done.stdout
