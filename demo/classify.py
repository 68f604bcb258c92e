"""Classifies a sound file with a model folder alone, without this package: `python demo/classify.py MODEL AUDIO`."""

import sys
from importlib import import_module

import torch
from transformers import AutoFeatureExtractor, AutoModelForAudioClassification

folder, path = sys.argv[1:]
model = AutoModelForAudioClassification.from_pretrained(folder, trust_remote_code=True).eval()
feature_extractor = AutoFeatureExtractor.from_pretrained(folder, trust_remote_code=True)
audio = import_module(type(feature_extractor).__module__)  # the folder's own audio_exhubert.py

inputs = feature_extractor(audio.read_audio(path), return_tensors="pt")
with torch.inference_mode():
    outputs = model(**inputs)

print(path)
config, alone = model.config, model.config.problem_type == "regression"  # then dimensions are all that it answers
if not alone:
    for index, probability in enumerate(outputs.logits.softmax(dim=-1)[0].tolist()):
        print(f"  {index} {config.id2label[index]:<14} {probability:6.1%}")
if scales := getattr(config, "dimensions", None):
    values = (outputs.logits if alone else outputs.dimensions)[0].tolist()
    for (name, (low, high)), value in zip(scales.items(), values, strict=True):
        print(f"  {name:<16} {low + value * (high - low):6.2f}  on {low:g} to {high:g}")
