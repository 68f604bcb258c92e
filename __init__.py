"""ExHuBERT for Transformers: speech emotion recognition by backbone block expansion of HuBERT."""

from transformers import AutoConfig, AutoFeatureExtractor, AutoModel, AutoModelForAudioClassification

from exhubert.audio_exhubert import ExHuBERTFeatureExtractor
from exhubert.configuration_exhubert import SIX_CLASSES, ExHuBERTConfig
from exhubert.modeling_exhubert import ExHuBERTForSequenceClassification, ExHuBERTModel
from exhubert.modeling_wav2vec2_emotion import Wav2Vec2EmotionConfig, Wav2Vec2EmotionForSequenceClassification

__version__ = "0.1.0"

__all__ = [
    "SIX_CLASSES",
    "ExHuBERTConfig",
    "ExHuBERTFeatureExtractor",
    "ExHuBERTForSequenceClassification",
    "ExHuBERTModel",
    "__version__",
]

# With the package installed, the Auto classes know these models without `trust_remote_code`.
AutoConfig.register("exhubert", ExHuBERTConfig, exist_ok=True)
AutoModel.register(ExHuBERTConfig, ExHuBERTModel, exist_ok=True)
AutoModelForAudioClassification.register(ExHuBERTConfig, ExHuBERTForSequenceClassification, exist_ok=True)
AutoFeatureExtractor.register(ExHuBERTConfig, ExHuBERTFeatureExtractor, exist_ok=True)
AutoConfig.register("wav2vec2_emotion", Wav2Vec2EmotionConfig, exist_ok=True)
AutoModelForAudioClassification.register(Wav2Vec2EmotionConfig, Wav2Vec2EmotionForSequenceClassification, exist_ok=True)
AutoFeatureExtractor.register(Wav2Vec2EmotionConfig, ExHuBERTFeatureExtractor, exist_ok=True)
