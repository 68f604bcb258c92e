"""What users of the published model wrote runs on a converted one, in a process without the package.

python -m pytest tests/test_users_scripts.py
"""

from __future__ import annotations

import numpy as np
import pytest
import soundfile
import torch
from transformers import Wav2Vec2FeatureExtractor

from conftest import run_without_package
from exhubert import ExHuBERTForSequenceClassification
from exhubert.model_folder import save_model_folder

# As the published model's card has it; only the audio is decoded by soundfile.
CLASSIFY = """
import numpy as np
import soundfile
import torch
import torch.nn.functional as F
from transformers import AutoModelForAudioClassification, Wav2Vec2FeatureExtractor

model_name = "amiriparian/ExHuBERT"
feature_extractor = Wav2Vec2FeatureExtractor.from_pretrained("facebook/hubert-base-ls960")
model = AutoModelForAudioClassification.from_pretrained(
    model_name, trust_remote_code=True, revision="b158d45ed8578432468f3ab8d46cbe5974380812"
)
model.freeze_og_encoder()
device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
model = model.to(device)

waveform, sampling_rate = soundfile.read("speech.wav", dtype="float32")
waveform = feature_extractor(waveform, sampling_rate=16000, padding="max_length", max_length=48000)
waveform = waveform["input_values"][0]
waveform = waveform.reshape(1, -1)
waveform = torch.from_numpy(waveform).to(device)
with torch.no_grad():
    output = model(waveform)
    output = F.softmax(output.logits, dim=1)
    output = output.detach().cpu().numpy().round(2)
"""

TRANSFER = """
import torch
import torch.nn as nn
from transformers import AutoModelForAudioClassification

model = AutoModelForAudioClassification.from_pretrained(
    "amiriparian/ExHuBERT", trust_remote_code=True, revision="b158d45ed8578432468f3ab8d46cbe5974380812"
)
model.classifier = nn.Linear(in_features=256, out_features=7)
model.freeze_og_encoder()
model.freeze_feature_encoder()
model.train()

torch.manual_seed(0)
before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
criterion = nn.CrossEntropyLoss()
non_frozen_parameters = [p for p in model.parameters() if p.requires_grad]
optimizer = torch.optim.AdamW(non_frozen_parameters, lr=1e-3, betas=(0.9, 0.999), eps=1e-08)
inputs, labels = torch.randn(2, 48000), torch.tensor([2, 6])
losses = []
for epoch in range(3):
    optimizer.zero_grad()
    output = model(inputs, output_hidden_states=True)
    loss = criterion(output.logits, labels)
    loss.backward()
    optimizer.step()
    losses.append(loss.item())
assert output.hidden_states[-1].shape[-1] == model.config.hidden_size
own_loss = model(inputs, labels=labels).loss.item()
model.save_pretrained("fine-tuned")
again = AutoModelForAudioClassification.from_pretrained("fine-tuned", trust_remote_code=True)
"""


@pytest.fixture
def hub(tmp_path, make_hubert):
    """A folder in which the Hub's names are local folders: an expanded model and the stock feature extractor."""
    source = make_hubert(head="none", classifier_proj_size=256, id2label={0: "LABEL_0", 1: "LABEL_1"})
    model = ExHuBERTForSequenceClassification.from_hubert(source, gate_original_layers=True)
    save_model_folder(model, tmp_path / "amiriparian" / "ExHuBERT")
    # What facebook/hubert-base-ls960 has: zero mean and unit variance, no attention mask.
    stock = Wav2Vec2FeatureExtractor(do_normalize=True, return_attention_mask=False)
    stock.save_pretrained(tmp_path / "facebook" / "hubert-base-ls960")
    return tmp_path


def test_the_model_cards_script_classifies_as_our_pipeline_does(hub):
    noise = np.random.default_rng(0).standard_normal(20_000).astype(np.float32)
    soundfile.write(hub / "speech.wav", 0.1 * noise, 16_000)
    ours = """
from transformers import pipeline
classify = pipeline("speech-emotion-recognition", model=model_name, trust_remote_code=True)
probabilities = classify("speech.wav")["probabilities"]
import json
print(json.dumps([output.tolist(), list(probabilities.values())]))
"""
    output, probabilities = run_without_package(hub, CLASSIFY + ours)
    assert np.shape(output) == (1, 6)
    assert output[0] == pytest.approx(probabilities, abs=0.0051)  # the card rounds


@pytest.mark.slow
def test_the_transfer_script_trains_copies_and_its_own_head_which_survives_a_save(hub):
    report = """
frozen = [name for name, p in model.named_parameters() if not p.requires_grad]
moved = [name for name, p in model.named_parameters() if not torch.equal(p, before[name])]
import json
print(json.dumps({
    "losses": losses, "own_loss": own_loss, "frozen": frozen, "moved": moved,
    "same": torch.equal(again(inputs).logits, model.eval()(inputs).logits), "labels": again.config.num_labels,
}))
"""
    got = run_without_package(hub, TRANSFER + report)
    assert got["losses"][-1] < got["losses"][0]
    assert got["own_loss"] < got["losses"][0]
    assert not set(got["frozen"]) & set(got["moved"])
    assert any("feature_extractor" in name for name in got["frozen"])
    assert any("encoder.layers.0.identity_linear" in name for name in got["frozen"])
    assert any("encoder.layers.1.zero_linear" in name for name in got["moved"])
    assert "classifier.weight" in got["moved"]
    assert got["same"]
    assert got["labels"] == 7


@pytest.mark.slow
def test_hidden_states_can_be_asked_for_on_loading(hub):
    script = """
import json, torch
from transformers import AutoModelForAudioClassification
model = AutoModelForAudioClassification.from_pretrained(
    "amiriparian/ExHuBERT", trust_remote_code=True, output_hidden_states=True,
    revision="b158d45ed8578432468f3ab8d46cbe5974380812",
)
output = model(torch.zeros(1, 16000) + 0.1)
print(json.dumps([len(output.hidden_states), list(output.hidden_states[-1].shape)]))
"""
    states, shape = run_without_package(hub, script)
    assert states == 7
    assert (shape[0], shape[2]) == (1, 32)
    assert torch.tensor(shape).min() > 0
