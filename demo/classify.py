"""Classifies a sound file with a model folder, by transformers alone: `python demo/classify.py MODEL AUDIO`."""

import sys

import soundfile
import torch
from transformers import AutoFeatureExtractor, AutoModelForAudioClassification

folder, path = sys.argv[1:]
model = AutoModelForAudioClassification.from_pretrained(folder, trust_remote_code=True).eval()
feature_extractor = AutoFeatureExtractor.from_pretrained(folder, trust_remote_code=True)

samples, sampling_rate = soundfile.read(path, dtype="float32")
inputs = feature_extractor(samples, sampling_rate=sampling_rate, return_tensors="pt")
with torch.inference_mode():
    probabilities = model(**inputs).logits.softmax(dim=-1)[0]

print(path)
for index, probability in enumerate(probabilities.tolist()):
    print(f"  {index} {model.config.id2label[index]:<14} {probability:6.1%}")
