"""transformers' own common tests on our classes: what HuBERT passes, ours pass; `make test-peers`.

The tests are those of the installed release's source distribution, which `make` fetches; where it could not, all are
skipped. Not collected by `pytest` alone.
"""

from __future__ import annotations

import importlib.util
import re
import sys
import types
import unittest
from typing import Any

import pytest
import torch
import transformers
from transformers import HubertConfig, HubertForSequenceClassification, HubertModel, Wav2Vec2FeatureExtractor

from conftest import SMALL
from exhubert import ExHuBERTConfig, ExHuBERTFeatureExtractor, ExHuBERTForSequenceClassification, ExHuBERTModel

if importlib.util.find_spec("tests") is None or importlib.util.find_spec("tests.test_modeling_common") is None:
    pytest.skip("transformers' source distribution is not there (`make test-peers`)", allow_module_level=True)

# What the distribution leaves out: mixins of exporters and text models, and values of configuration fields.
VALUES = {"output_hidden_states": True, "output_attentions": True, "return_dict": False, "chunk_size_feed_forward": 5}
for module, name, value in (
    ("exporters.test_export", "ExportTesterMixin", type("ExportTesterMixin", (), {})),
    ("generation.test_utils", "GenerationTesterMixin", type("GenerationTesterMixin", (), {})),
    ("utils.test_configuration_utils", "config_common_kwargs", VALUES),
):
    for part in (f"tests.{module.split('.')[0]}", f"tests.{module}"):
        sys.modules.setdefault(part, types.ModuleType(part))
    setattr(sys.modules[f"tests.{module}"], name, value)

from tests.test_configuration_common import ConfigTester  # noqa: E402
from tests.test_modeling_common import ModelTesterMixin  # noqa: E402
from tests.test_sequence_feature_extraction_common import SequenceFeatureExtractionTestMixin  # noqa: E402

BATCH, SAMPLES = 3, 4096


class Sizes:
    """What the common tests ask of a model's tester."""

    def __init__(self, parent: unittest.TestCase, config_class: type[HubertConfig]) -> None:
        self.parent, self.config_class = parent, config_class
        self.batch_size, self.is_training = BATCH, False
        self.num_hidden_layers, self.hidden_size, self.num_attention_heads = 2, 32, SMALL["num_attention_heads"]
        frames = HubertModel(HubertConfig(**SMALL))._get_feat_extract_output_lengths(SAMPLES)
        self.seq_length = self.encoder_seq_length = self.output_seq_length = int(frames)

    def prepare_config_and_inputs_for_common(self) -> tuple[HubertConfig, dict[str, torch.Tensor]]:
        config = self.config_class(**{**SMALL, "num_hidden_layers": 2, "hidden_size": 32, "num_labels": 6})
        generator = torch.Generator().manual_seed(0)
        values = torch.randn(BATCH, SAMPLES, generator=generator)
        return config, {"input_values": values, "attention_mask": torch.ones(BATCH, SAMPLES, dtype=torch.long)}


class Models(ModelTesterMixin):
    __test__ = False  # run by the test below, ours and HuBERT's
    all_parallelizable_model_classes: tuple[type, ...] = ()
    test_resize_embeddings = test_pruning = test_head_masking = False
    config_class: type[HubertConfig]

    def setUp(self) -> None:
        self.model_tester = Sizes(self, self.config_class)
        self.config_tester = ConfigTester(self, config_class=self.config_class, has_text_modality=False, hidden_size=32)

    def test_config(self) -> None:
        self.config_tester.run_common_tests()


class HubertModels(Models, unittest.TestCase):
    all_model_classes = (HubertModel, HubertForSequenceClassification)
    config_class = HubertConfig


class ExHuBERTModels(Models, unittest.TestCase):
    all_model_classes = (ExHuBERTModel, ExHuBERTForSequenceClassification)
    config_class = ExHuBERTConfig


class ExtractorSizes:
    """What the common tests ask of a feature extractor's tester: clips of different lengths."""

    def __init__(self) -> None:
        self.batch_size, self.min_seq_length, self.max_seq_length = 7, 400, 2000
        self.seq_length_diff = (self.max_seq_length - self.min_seq_length) // (self.batch_size - 1)
        self.feature_size, self.padding_value, self.sampling_rate = 1, 0.0, 16_000

    def prepare_feat_extract_dict(self) -> dict[str, Any]:
        return {"feature_size": 1, "padding_value": 0.0, "sampling_rate": 16_000, "do_normalize": True}

    def prepare_inputs_for_common(self, equal_length: bool = False, numpify: bool = False) -> list[Any]:
        lengths = range(self.min_seq_length, self.max_seq_length, self.seq_length_diff)
        generator = torch.Generator().manual_seed(0)
        sizes = [self.max_seq_length] * self.batch_size if equal_length else lengths
        clips = [torch.randn(size, generator=generator).numpy() for size in sizes]
        return clips if numpify else [clip.tolist() for clip in clips]


class Extractors(SequenceFeatureExtractionTestMixin):
    __test__ = False

    def setUp(self) -> None:
        self.feat_extract_tester = ExtractorSizes()


class HubertExtractors(Extractors, unittest.TestCase):
    feature_extraction_class = Wav2Vec2FeatureExtractor


class ExHuBERTExtractors(Extractors, unittest.TestCase):
    feature_extraction_class = ExHuBERTFeatureExtractor


PAIRS = ((HubertModels, ExHuBERTModels), (HubertExtractors, ExHuBERTExtractors))
NAMES = [(pair, name) for pair in PAIRS for name in unittest.defaultTestLoader.getTestCaseNames(pair[1])]
# What ours refuse on purpose, by the refusal's text: where a test asks for it, and only where that is why it fails.
OTHERWISE = {
    "attention_mask has a 1 after a 0": ("_pad_left", "HuBERT's positional convolution would hear the padding"),
    "output_attentions needs eager attention": ("test_", "sdpa computes no attentions, and HuBERT's are None"),
}


def failure(case: type[unittest.TestCase], name: str) -> str:
    result = unittest.TestResult()
    case(name).run(result)
    return "\n".join(text for _, text in (*result.failures, *result.errors))


@pytest.mark.parametrize(("pair", "name"), NAMES, ids=[f"{pair[1].__name__}-{name}" for pair, name in NAMES])
def test_ours_pass_what_huberts_pass(pair, name):
    control, ours = pair
    problem = failure(ours, name)
    raised = set(re.findall(r"^\w*(?:Error|Exception): (.*)", problem, re.MULTILINE))
    for refusal, (part, reason) in OTHERWISE.items():
        if part in name and raised and all(text.startswith(refusal) for text in raised):
            pytest.skip(f"{refusal}: {reason}")
    if problem and failure(control, name):
        pytest.skip(f"transformers {transformers.__version__}'s HuBERT does not pass it either")
    assert not problem, problem
