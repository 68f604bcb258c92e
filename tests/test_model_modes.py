"""The model in every mode: attention, checkpointing, compilation, export, precision, SpecAugment, missing weights.

python -m pytest tests/test_model_modes.py
"""

from __future__ import annotations

import copy
import importlib.util
import json
import math
import re
import shutil

import numpy as np
import pytest
import torch
import transformers
from packaging.version import Version
from safetensors.torch import load_file, save_file
from transformers import HubertConfig, HubertModel

from conftest import HUBERT_KINDS, SMALL, run_without_package
from exhubert import ExHuBERTConfig, ExHuBERTForSequenceClassification, ExHuBERTModel, modeling_exhubert

# HuBERT's own CNN, narrow: 400 samples for the first frame, 320 for each one more.
STANDARD_CNN = {
    "conv_dim": (8,) * 7,
    "conv_kernel": (10, 3, 3, 3, 3, 2, 2),
    "conv_stride": (5, 2, 2, 2, 2, 2, 2),
}
# HuBERT Large's own convolutions: narrow ones are wrong in bfloat16 on processors with AMX (torch 2.13, oneDNN), and so
# refused.
WIDE = {
    **{"conv_dim": (512,) * 7, "conv_kernel": (10, 3, 3, 3, 3, 2, 2), "conv_stride": (5, 2, 2, 2, 2, 2, 2)},
    **{"hidden_size": 1024, "num_conv_pos_embeddings": 128, "num_conv_pos_embedding_groups": 16},
}
NO_DROPOUT = {
    "hidden_dropout": 0.0,
    "attention_dropout": 0.0,
    "activation_dropout": 0.0,
    "feat_proj_dropout": 0.0,
    "apply_spec_augment": False,
}


def make_model(kind="large", num_copies=1, cls=ExHuBERTForSequenceClassification, **changes):
    """A small model in eval mode, two originals and their copies, no weight at its start value."""
    torch.manual_seed(0)
    values = {**SMALL, **HUBERT_KINDS[kind], "num_attention_heads": 2, "num_hidden_layers": 2 * (num_copies + 1)}
    model = cls(ExHuBERTConfig(**{**values, "num_copies": num_copies, **changes})).eval()
    for parameter in model.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    return model


@pytest.fixture
def mask(samples):
    mask = torch.ones_like(samples, dtype=torch.long)
    mask[1, 5000:] = 0
    return mask


@pytest.mark.parametrize("num_copies", [0, 1, 2])
@pytest.mark.parametrize("kind", ["base", "large"])
def test_eager_and_sdpa_attention_agree(samples, mask, kind, num_copies):
    check_that_it_computes_what_eager_computes("sdpa", samples, mask, kind, num_copies)


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("c++"), reason="on a CPU, flex attention is compiled with a C++ compiler")
@pytest.mark.skipif(" " in torch.__file__, reason="torch's compiler does not work where its path has a space")
def test_eager_and_flex_attention_agree(samples, mask):
    heads_of_32 = {"num_attention_heads": 1}
    check_that_it_computes_what_eager_computes("flex_attention", samples, mask, "large", 1, **heads_of_32)


def test_flex_attention_is_refused_where_torch_computes_it_wrongly(samples, monkeypatch):
    monkeypatch.setattr(modeling_exhubert, "HAS_AVX512", False)
    model = make_model(num_attention_heads=2)
    model.set_attn_implementation("flex_attention")
    with pytest.raises(ValueError, match=r'heads of 16 values is wrong .* use attn_implementation="sdpa"'):
        model(samples)


@torch.inference_mode()
def check_that_it_computes_what_eager_computes(implementation, samples, mask, kind, num_copies, **changes):
    model = make_model(kind, num_copies, **changes)
    for attention_mask in (None, mask):
        model.set_attn_implementation("eager")
        expected = model(samples, attention_mask, output_hidden_states=True)
        model.set_attn_implementation(implementation)
        got = model(samples, attention_mask, output_hidden_states=True)
        assert model.hubert.config._attn_implementation == implementation
        assert torch.allclose(got.logits, expected.logits, atol=1e-5)
        for state, expected_state in zip(got.hidden_states, expected.hidden_states, strict=True):
            assert torch.allclose(state[:, :14], expected_state[:, :14], atol=1e-5)  # both clips have 14 frames
        assert torch.equal(got.hidden_states[-1], model.hubert(samples, attention_mask).last_hidden_state)


@pytest.mark.skipif(bool(importlib.util.find_spec("flash_attn")), reason="flash_attn is installed")
def test_flash_attention_that_is_not_installed_is_asked_for_by_name(tmp_path):
    make_model().save_pretrained(tmp_path)
    with pytest.raises(ImportError, match=r"FlashAttention2.*installed"):
        ExHuBERTForSequenceClassification.from_pretrained(tmp_path, attn_implementation="flash_attention_2")


@pytest.mark.parametrize("num_copies", [0, 1, 2])
@pytest.mark.parametrize("kind", ["base", "large"])
def test_attentions_of_every_layer(tmp_path, samples, kind, num_copies):
    make_model(kind, num_copies).save_pretrained(tmp_path)
    by_config = {"attn_implementation": "eager", "output_attentions": True}
    model = ExHuBERTForSequenceClassification.from_pretrained(tmp_path, **by_config).eval()
    with torch.inference_mode():
        for outputs in (model(samples), model.hubert(samples, output_attentions=True)):
            assert len(outputs.attentions) == 2 * (num_copies + 1)
            for attentions in outputs.attentions:
                assert attentions.shape == (2, 2, 24, 24)
                assert torch.allclose(attentions.sum(-1), torch.ones(2, 2, 24), atol=1e-5)
        assert model(samples, output_attentions=False).attentions is None
        assert torch.equal(model(samples, return_dict=False)[1][-1], model(samples).attentions[-1])


def test_attentions_that_the_implementation_does_not_give_are_refused(samples):
    message = "this model has 'sdpa': load it with attn_implementation=\"eager\" or call model.set_attn_implementation"
    for model in (make_model(), make_model(cls=ExHuBERTModel)):
        with pytest.raises(ValueError, match=message):
            model(samples, output_attentions=True)
        model.set_attn_implementation("eager")
        assert len(model(samples, output_attentions=True).attentions) == 4
    with pytest.raises(ValueError, match=message):
        make_model(output_attentions=True)(samples)


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("kind", ["base", "large"])
def test_the_last_hidden_state_comes_last(samples, kind, implementation):
    model = make_model(kind, cls=ExHuBERTModel, **NO_DROPOUT)
    model.set_attn_implementation(implementation)
    for checkpointing in (False, True):
        if checkpointing:
            model.train().gradient_checkpointing_enable({"use_reentrant": False})
        outputs = model(samples, output_hidden_states=True)
        last, states = model(samples, output_hidden_states=True, return_dict=False)
        assert len(states) == len(outputs.hidden_states) == 5
        assert all(state.shape == (2, 24, 32) for state in states)
        assert all(torch.equal(state, same) for state, same in zip(states, outputs.hidden_states, strict=True))
        assert torch.equal(states[-1], last)
        assert torch.equal(last, outputs.last_hidden_state)


@pytest.mark.parametrize("frozen", [False, True], ids=["nothing frozen", "CNN and originals frozen"])
@pytest.mark.parametrize("kind", ["base", "large"])
def test_gradient_checkpointing_gives_the_same_gradients(samples, mask, kind, frozen):
    model = make_model(kind, **NO_DROPOUT).train()
    if frozen:
        model.freeze_og_encoder()
        model.freeze_feature_encoder()

    def step():
        model.zero_grad()
        outputs = model(samples, mask, labels=torch.tensor([0, 1]), output_hidden_states=True)
        outputs.loss.backward()
        gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
        return gradients, outputs.hidden_states

    expected, expected_states = step()
    calls = 0

    def count(*_):
        nonlocal calls
        calls += 1

    model.hubert.encoder.layers[1].attention.q_proj.register_forward_hook(count)
    for use_reentrant in (False, True):
        calls = 0
        model.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
        got, states = step()
        assert calls == 2  # forward, and again in the backward pass
        assert got.keys() == expected.keys()
        for name, gradient in got.items():
            assert torch.allclose(gradient, expected[name], rtol=1e-4, atol=1e-7), name
        assert all(torch.equal(state, same) for state, same in zip(states, expected_states, strict=True))


def lengths_and_masks():
    """Inputs `(batch, samples)` of other sizes than the one that is traced, two frames being the shortest."""
    for batch, length in ((2, 720), (5, 4321), (3, 16_000)):
        inputs = torch.randn(batch, length, generator=torch.Generator().manual_seed(length))
        mask = torch.ones(batch, length, dtype=torch.long)
        mask[-1, length - 240 :] = 0
        yield inputs, mask


def check_traced(traced, model, masked, **options):
    for inputs, mask in lengths_and_masks():
        given = {"input_values": inputs, **({"attention_mask": mask} if masked else {}), **options}
        with torch.no_grad():
            expected, got = model(**given), traced(**given)
        assert (got.logits - expected.logits).abs().max() < 1e-5
        for state, expected_state in zip(got.hidden_states or (), expected.hidden_states or (), strict=True):
            assert (state - expected_state).abs().max() < 1e-4


@pytest.fixture(scope="module")
def compiles_whole():
    """Whether this release's own HuBERT compiles without a graph break; 5.0 to 5.10 log inside their forward."""
    model = HubertModel(HubertConfig(**SMALL)).eval()
    torch._dynamo.reset()
    try:
        torch.compile(model, fullgraph=True, backend="eager")(torch.randn(2, 8000))
    except torch._dynamo.exc.Unsupported:
        return False
    return True


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "masked", "weighted", "output_hidden_states"),
    [("base", False, False, True), ("large", True, True, False)],
    ids=["post-norm, hidden states", "pre-norm, mask, weighted sum"],
)
def test_compiled_it_computes_the_same(compiles_whole, kind, masked, weighted, output_hidden_states):
    model = make_model(kind, **STANDARD_CNN, use_weighted_layer_sum=weighted)
    torch._dynamo.reset()
    # A copy, so that nothing has run when it is traced.
    compiled = torch.compile(copy.deepcopy(model), fullgraph=compiles_whole, dynamic=True, backend="eager")
    check_traced(compiled, model, masked, output_hidden_states=output_hidden_states)


@pytest.mark.parametrize(
    ("kind", "masked", "weighted"),
    [("base", False, False), ("base", True, True), ("large", True, False), ("large", False, True)],
    ids=["post-norm", "post-norm, mask, weighted sum", "pre-norm, mask", "pre-norm, weighted sum"],
)
def test_exported_it_computes_the_same(kind, masked, weighted):
    model = make_model(kind, **STANDARD_CNN, use_weighted_layer_sum=weighted)
    shape = {0: torch.export.Dim("batch", max=64), 1: torch.export.Dim("samples", min=720, max=480_000)}
    given = {"input_values": torch.randn(4, 8000)}
    if masked:
        given["attention_mask"] = torch.ones(4, 8000, dtype=torch.long)
    exported = torch.export.export(
        copy.deepcopy(model),
        (),
        {**given, "output_hidden_states": True},
        dynamic_shapes={**dict.fromkeys(given, shape), "output_hidden_states": None},
        strict=False,
    )
    check_traced(exported.module(), model, masked, output_hidden_states=True)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 0.05), (torch.float16, 0.01)])
@pytest.mark.parametrize("kind", ["base", "large"])
def test_half_precision_is_close_to_single(samples, mask, kind, dtype, tolerance):
    model = make_model(kind, use_weighted_layer_sum=True, **WIDE)
    with torch.inference_mode():
        expected = model(samples, mask).logits
        got = model.to(dtype)(samples.to(dtype), mask).logits
    assert got.dtype == dtype
    assert (got.float() - expected).abs().max() < tolerance * expected.abs().max()


@pytest.mark.parametrize("autocast", [False, True])
def test_bfloat16_is_refused_where_the_processor_computes_a_convolution_wrongly(samples, monkeypatch, autocast):
    tried = []

    def narrow_ones_are_wrong(*sizes):
        tried.append(sizes)
        return 1.1 if sizes[:2] == (16, 16) else 0.003

    monkeypatch.setattr(modeling_exhubert, "bfloat16_error", narrow_ones_are_wrong)
    model = make_model()
    model(samples)
    assert not tried  # float32
    samples = samples if autocast else samples.bfloat16()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast), pytest.raises(ValueError, match="ONEDNN_MAX_CPU_ISA"):
        (model if autocast else model.bfloat16())(samples)
    wide = make_model("large", 1, **WIDE).bfloat16()
    for _ in range(2):
        wide(samples.bfloat16())
    assert tried[-1] == (1024, 1024, 128, 1, 16)
    assert len(tried) == 2 + 8  # once for each convolution


def test_how_far_bfloat16_is_from_float32_here():
    for sizes in ((512, 512, 3, 2, 1), (1024, 1024, 128, 1, 16)):
        assert 0 < modeling_exhubert.bfloat16_error(*sizes) < 0.01


def test_training_under_autocast_is_close_to_single_precision(samples, mask):
    model = make_model(**NO_DROPOUT, **WIDE).train()
    model.freeze_og_encoder()

    def step(enabled):
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            loss = model(samples, mask, labels=torch.tensor([0, 1])).loss
        loss.backward()
        return loss.item(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

    expected_loss, expected = step(enabled=False)
    loss, got = step(enabled=True)
    assert loss == pytest.approx(expected_loss, rel=0.02)
    assert any(".layers.1." in name for name in got)
    assert got.keys() == expected.keys()
    flat, expected_flat = (torch.cat([g.flatten() for g in gradients.values()]) for gradients in (got, expected))
    assert torch.nn.functional.cosine_similarity(flat, expected_flat, dim=0) > 0.99


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


@pytest.mark.parametrize(
    ("marked", "message"),
    [
        (399, "attention_mask marks 399 samples of clip 1; at least 400 are needed"),
        (0, "attention_mask marks 0 samples of clip 1"),
    ],
)
def test_masks_that_leave_no_frame_are_refused(marked, message):
    model = make_model(**STANDARD_CNN)
    mask = torch.ones(3, 1000, dtype=torch.long)
    mask[1, marked:] = 0
    with pytest.raises(ValueError, match=message):
        model(torch.randn(3, 1000), mask)
    mask[1, :400] = 1
    assert model(torch.randn(3, 1000), mask).logits.isfinite().all()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([0, 1, 1], "attention_mask has a 1 after a 0; padding must be at the end of a clip"),
        ([1, 2, 0], "attention_mask holds other values than 1, for samples, and 0, for padding"),
    ],
)
def test_masks_of_other_forms_are_refused(samples, values, message):
    mask = torch.tensor(values).repeat_interleave(2000).expand(2, -1)
    with pytest.raises(ValueError, match=message):
        make_model()(samples[:, :6000], mask)


def test_a_boolean_mask_is_the_same_mask(samples, mask):
    model = make_model()
    assert torch.equal(model(samples, mask.bool()).logits, model(samples, mask).logits)


@pytest.mark.parametrize(
    ("problem", "labels", "message"),
    [
        (None, torch.tensor([0, 6]), r"labels holds 6; the classes are 0 to 5"),
        (None, torch.tensor([-1, 0]), r"labels holds -1; the classes are 0 to 5"),
        (None, torch.tensor([0, 1, 2]), r"labels has shape \(3,\); .* \(2,\)"),
        (None, torch.tensor([[0, 1]]), r"labels has shape \(1, 2\); .* \(2,\)"),
        (
            None,
            torch.tensor([0.0, 1.0]),
            r"labels is torch.float32; class indices are needed, or problem_type='regression'",
        ),
        ("regression", torch.zeros(2), r"labels has shape \(2,\); .* \(2, 6\)"),
        ("regression", torch.zeros(6, 2), r"labels has shape \(6, 2\); .* \(2, 6\)"),
    ],
)
def test_bad_labels_are_refused(samples, problem, labels, message):
    with pytest.raises(ValueError, match=message):
        make_model(problem_type=problem)(samples, labels=labels)


def test_labels_of_other_integer_types_and_of_one_output(samples):
    model = make_model()
    outputs = model(samples, labels=torch.tensor([-100, 5], dtype=torch.int32))
    assert torch.equal(outputs.loss, torch.nn.functional.cross_entropy(outputs.logits[1:], torch.tensor([5])))
    assert torch.equal(model(samples, labels=torch.tensor([5, 5], dtype=torch.uint8)).logits, outputs.logits)
    model = make_model(problem_type="regression", num_labels=1)
    outputs = model(samples, labels=torch.tensor([0.5, 1.0]))
    assert torch.allclose(outputs.loss, ((outputs.logits[:, 0] - torch.tensor([0.5, 1.0])) ** 2).mean())


@pytest.mark.parametrize("problem", ["single_label_classification", "regression"])
def test_the_configuration_is_left_as_it_is(samples, problem):
    values = {**SMALL, "num_hidden_layers": 2, "problem_type": problem, "use_weighted_layer_sum": True}
    config = ExHuBERTConfig(**values)
    given = json.dumps(config.to_dict(), default=str)
    model = ExHuBERTForSequenceClassification(config)
    model.freeze_og_encoder()
    model.freeze_feature_encoder()
    targets = torch.rand(2, 6) if problem == "regression" else torch.tensor([0, 1])
    model.train()(samples, labels=targets, output_hidden_states=True, return_dict=False)[0].backward()
    model.freeze_base_model()
    assert model.config is config
    assert json.dumps(config.to_dict(), default=str) == given
