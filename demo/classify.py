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
    probabilities = model(**inputs).logits.softmax(dim=-1)[0]

print(path)
for index, probability in enumerate(probabilities.tolist()):
    print(f"  {index} {model.config.id2label[index]:<14} {probability:6.1%}")
