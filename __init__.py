"""ExHuBERT for Transformers: speech emotion recognition by backbone block expansion of HuBERT."""

import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

import lazy_loader

__version__ = "0.1.0"

# torch and transformers are imported when something needs them (PEP 562).
_of_submodules, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "audio_exhubert": ["ExHuBERTFeatureExtractor"],
        "configuration_exhubert": ["SIX_CLASSES", "ExHuBERTConfig"],
        "modeling_exhubert": ["ExHuBERTForSequenceClassification", "ExHuBERTModel"],
    },
)

if TYPE_CHECKING:
    from exhubert.audio_exhubert import ExHuBERTFeatureExtractor as ExHuBERTFeatureExtractor
    from exhubert.configuration_exhubert import SIX_CLASSES as SIX_CLASSES
    from exhubert.configuration_exhubert import ExHuBERTConfig as ExHuBERTConfig
    from exhubert.modeling_exhubert import ExHuBERTForSequenceClassification as ExHuBERTForSequenceClassification
    from exhubert.modeling_exhubert import ExHuBERTModel as ExHuBERTModel


def __getattr__(name: str) -> Any:
    value = _of_submodules(name)
    _register_models()
    return value


def _register_models() -> None:
    """Imports the modules of the models, which make them known to the Auto classes."""
    import_module("exhubert.modeling_exhubert")
    import_module("exhubert.modeling_wav2vec2_emotion")


if "transformers" in sys.modules:  # whoever has the Auto classes already may use them next
    _register_models()
