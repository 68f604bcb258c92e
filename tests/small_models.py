"""Small models: ExHuBERT in all its kinds, checkpoints of each family that training takes; not a test."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import (
    ASTConfig,
    ASTForAudioClassification,
    AutoModelForAudioClassification,
    Wav2Vec2BertConfig,
    Wav2Vec2BertModel,
    Wav2Vec2Config,
    Wav2Vec2ForCTC,
    Wav2Vec2ForPreTraining,
    WavLMConfig,
    WavLMModel,
    WhisperConfig,
    WhisperForConditionalGeneration,
)

from conftest import HUBERT_KINDS, SMALL
from exhubert import ExHuBERTConfig, ExHuBERTForSequenceClassification
from exhubert.model_folder import save_model_folder
from exhubert.modeling_wav2vec2_emotion import Wav2Vec2EmotionConfig

LARGE = {**SMALL, **HUBERT_KINDS["large"]}
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


def write_model(kind: str, folder: Path, make_hubert: Callable[..., Path]) -> Path:
    """Writes a small checkpoint of the class that the published one of that kind has, and returns its folder."""
    torch.manual_seed(0)
    if kind == "hubert":
        return make_hubert(head="ctc", name=folder.name)
    if kind == "exhubert":
        model = ExHuBERTForSequenceClassification.from_hubert(make_hubert(), num_labels=6)
        return save_model_folder(model, folder)
    if kind == "emotion":
        return write_emotion(folder)
    size = {"d_model": 32, "encoder_layers": 2, "encoder_attention_heads": 4, "encoder_ffn_dim": 64}
    size |= {"decoder_layers": 1, "decoder_attention_heads": 4, "decoder_ffn_dim": 64, "vocab_size": 40}
    size |= {"max_source_positions": 50, "max_target_positions": 8, "classifier_proj_size": 16}  # 1 s
    size |= {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1}
    plain = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    quantizer = {"codevector_dim": 16, "proj_codevector_dim": 16}
    bert = {"num_conv_pos_embeddings": 16, "conv_depthwise_kernel_size": 3, "classifier_proj_size": 16}
    model = {
        "whisper": lambda: WhisperForConditionalGeneration(WhisperConfig(num_mel_bins=80, **size)),
        "whisper v3": lambda: WhisperForConditionalGeneration(WhisperConfig(num_mel_bins=128, **size)),
        "xls-r": lambda: Wav2Vec2ForPreTraining(Wav2Vec2Config(layerdrop=0.9, **LARGE, **quantizer)),
        "wav2vec2": lambda: Wav2Vec2ForCTC(Wav2Vec2Config(vocab_size=8, **SMALL)),
        "wavlm": lambda: WavLMModel(WavLMConfig(**SMALL)),
        "ast": lambda: ASTForAudioClassification(ASTConfig(max_length=64, num_mel_bins=32, **plain)),
        "bert": lambda: Wav2Vec2BertModel(Wav2Vec2BertConfig(**plain, **bert)),
    }[kind]()
    model.save_pretrained(folder)
    return folder


def write_emotion(folder: Path) -> Path:
    """Writes a checkpoint with the keys and the configuration of audEERING's, its 12 layers as 2."""
    config = Wav2Vec2EmotionConfig(num_labels=3, **{**LARGE, "num_hidden_layers": 2})
    model = AutoModelForAudioClassification.from_config(config)
    folder.mkdir()
    save_file({name: tensor.clone() for name, tensor in model.state_dict().items()}, folder / "model.safetensors")
    values = config.to_dict() | {
        "model_type": "wav2vec2",
        "architectures": ["Wav2Vec2ForSpeechClassification"],
        "problem_type": "regression",
        "pooling_mode": "mean",
        "vocab_size": None,
        "id2label": {"0": "arousal", "1": "dominance", "2": "valence"},
        "label2id": {"arousal": 0, "dominance": 1, "valence": 2},
    }
    (folder / "config.json").write_text(json.dumps(values))
    return folder
