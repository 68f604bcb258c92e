"""SpecAugment, and how weights start that a checkpoint lacks.

python -m pytest tests/test_model_start.py
"""

from __future__ import annotations

import math
import re

import numpy as np
import pytest
import torch
import transformers
from packaging.version import Version
from safetensors.torch import load_file, save_file
from transformers import HubertConfig, HubertModel

from conftest import HUBERT_KINDS, SMALL, run_without_package
from exhubert import ExHuBERTForSequenceClassification, ExHuBERTModel
from small_models import make_model

SPEC_AUGMENT = {"mask_time_prob": 0.5, "mask_time_length": 10}


def masked_frames(model, inputs, **options):
    """Which frames of the encoder's input the SpecAugment vector has replaced, `(batch, frames)`."""
    model.masked_spec_embed.data.fill_(7.0)
    seen = []
    hook = model.encoder.register_forward_pre_hook(lambda module, args: seen.append(args[0].detach().clone()))
    model(inputs, **options)
    hook.remove()
    return (seen[0] == 7.0).all(-1)


def test_spec_augment_never_masks_padding():
    """Clips of 49, 27 and 5 frames, the last one shorter than a span of 10."""
    model = make_model(cls=ExHuBERTModel, **SPEC_AUGMENT).train()
    lengths, frames = [16_000, 9_000, 2_000], [49, 27, 5]
    mask = (torch.arange(16_000) < torch.tensor(lengths)[:, None]).long()
    np.random.seed(0)
    total = sum(masked_frames(model, torch.randn(3, 16_000), attention_mask=mask).long() for _ in range(30))
    for row, valid in enumerate(frames):
        assert not total[row, valid:].any()
    assert total[0, 1:48].all() and total[1, 1:26].all()  # every frame of the others at some time
    assert not total[2].any()


def test_spec_augment_follows_numpys_seed_and_is_off_outside_training(samples):
    model = make_model(cls=ExHuBERTModel, **SPEC_AUGMENT).train()
    np.random.seed(0)
    first, second = masked_frames(model, samples), masked_frames(model, samples)
    assert first.any() and second.any() and not torch.equal(first, second)
    np.random.seed(0)
    assert torch.equal(masked_frames(model, samples), first)
    given = torch.zeros(2, 24, dtype=torch.bool)
    given[1, 3] = True
    assert torch.equal(masked_frames(model, samples, mask_time_indices=given), given)
    assert not masked_frames(model.eval(), samples).any()
    assert torch.equal(masked_frames(model, samples, mask_time_indices=given), given)
    for off in ({"apply_spec_augment": False}, {"mask_time_prob": 0.0, "mask_feature_prob": 1e-9}):
        assert not masked_frames(make_model(cls=ExHuBERTModel, **SPEC_AUGMENT | off).train(), samples).any()
    make_model(mask_time_prob=0.0).train()(samples)  # has no vector at all


def test_spec_augment_takes_clips_shorter_than_its_span(samples):
    """2,000 samples are 5 frames; with HuBERT's own defaults."""
    model = make_model().train()
    model(samples[:, :2000], labels=torch.tensor([0, 1])).loss.backward()
    assert not masked_frames(model.hubert, samples[:, :2000]).any()


@pytest.mark.parametrize("kind", ["base", "large"])
def test_no_more_random_numbers_than_huberts_own(samples, kind):
    """In eval mode; releases before 5.16 draw one a layer, for a LayerDrop that is off."""
    model = make_model(kind)
    values = {**SMALL, **HUBERT_KINDS[kind], "num_attention_heads": 2, "num_hidden_layers": 4}
    hubert = HubertModel(HubertConfig(**values)).eval()
    states = []
    for one in (hubert, model):
        torch.manual_seed(1)
        np.random.seed(1)
        before = np.random.get_state()[1]
        one(samples)
        states.append(torch.get_rng_state())
        assert np.array_equal(np.random.get_state()[1], before)
    assert torch.equal(*states)
    if Version(transformers.__version__) >= Version("5.23"):
        assert torch.equal(states[1], torch.manual_seed(1).get_state())


@pytest.fixture
def poisoned_memory():
    """Memory that nobody has written holds NaN."""
    torch.use_deterministic_algorithms(True)
    assert torch.utils.deterministic.fill_uninitialized_memory
    assert torch.empty(1).isnan()
    yield
    torch.use_deterministic_algorithms(False)


def check_start(name, tensor):
    """What a new model's weight `name` is; of random ones the scale."""
    if name.endswith(("num_batches_tracked", ".bias", "running_mean")) or "zero_linear" in name:
        assert not tensor.any(), name
    elif "identity_linear" in name:
        assert torch.equal(tensor, torch.eye(32))
    elif "norm." in name:  # layer norms, batch norm
        assert torch.equal(tensor, torch.ones_like(tensor)), name
    elif name == "layer_weights":
        assert torch.equal(tensor, torch.full((5,), 0.2))
    elif name.endswith("masked_spec_embed"):
        assert 0 <= tensor.min() < 0.2 and 0.8 < tensor.max() <= 1
    elif name.endswith("original0"):  # the norm, over 32 x 8 weights each, of those below
        assert torch.allclose(tensor, torch.full((1, 1, 16), math.sqrt(32 * 8 * 2 / (8 * 16))))
    else:
        scale = math.sqrt(2 / tensor[0].numel()) if tensor.dim() == 3 else 0.02
        assert tensor.mean().abs() < 0.3 * scale and 0.7 * scale < tensor.std() < 1.3 * scale, name


GATED = {"gate_original_layers": True, "use_weighted_layer_sum": True}


@pytest.mark.parametrize("positions", ["weight norm", "batch norm"])
def test_what_a_checkpoint_lacks_is_initialised(tmp_path, poisoned_memory, positions):
    make_model(**GATED, conv_pos_batch_norm=positions == "batch norm").save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    whole = load_file(file)
    alone = [[name] for name in whole if not re.search(r"layers\.[23]\.", name)]
    kept = "hubert.encoder.layers.0.attention.q_proj.weight"
    for lacking in (*alone, [name for name in whole if name != kept]):
        save_file({name: whole[name] for name in whole if name not in lacking}, file, {"format": "pt"})
        model = ExHuBERTForSequenceClassification.from_pretrained(tmp_path)
        for name, tensor in model.state_dict().items():
            if name in lacking:
                check_start(name, tensor)
            else:
                assert torch.equal(tensor, whole[name]), name


@pytest.mark.slow
def test_what_a_checkpoint_lacks_is_initialised_by_the_code_that_it_carries(tmp_path):
    """transformers initialises classes from the Hub by other rules than those of an installed package."""
    make_model(**GATED).save_pretrained(tmp_path / "ex")
    file = tmp_path / "ex" / "model.safetensors"
    whole = load_file(file)
    lacking = [name for name in whole if "bias" not in name and "q_proj" not in name]
    save_file({name: whole[name] for name in whole if name not in lacking}, file, {"format": "pt"})
    script = """
        import json, torch
        from safetensors.torch import save_file
        from transformers import AutoModelForAudioClassification
        torch.use_deterministic_algorithms(True)
        model = AutoModelForAudioClassification.from_pretrained("ex", trust_remote_code=True)
        save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, "loaded.safetensors")
        print(json.dumps(type(model).__module__))
    """
    assert run_without_package(tmp_path, script).startswith("transformers_modules")
    for name, tensor in load_file(tmp_path / "loaded.safetensors").items():
        if name in lacking:
            check_start(name, tensor)
        else:
            assert torch.equal(tensor, whole[name]), name


@pytest.mark.parametrize("kind", ["base", "large", "batch norm"])
def test_layers_are_never_split_between_devices(kind):
    accelerate = pytest.importorskip("accelerate")
    model = make_model(kind, gate_original_layers=True)
    assert {type(layer).__name__ for layer in model.hubert.encoder.layers} < set(model._no_split_modules)
    # FSDP wraps these classes, and raises for one that does not occur.
    assert set(model._no_split_modules) <= {type(module).__name__ for module in model.modules()}
    size = sum(p.numel() * p.element_size() for p in model.parameters())
    for part in range(1, 8):
        devices = accelerate.infer_auto_device_map(
            model, {0: part * size // 8, "cpu": 2 * size}, no_split_module_classes=list(model._no_split_modules)
        )
        assert not [name for name in devices if re.search(r"layers\.\d+\.|pos_conv_embed\.", name)]
