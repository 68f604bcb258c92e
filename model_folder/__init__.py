"""A model's folder: what is in it, written whole, and loaded."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "load": [
            "load_classifier",
            "load_feature_extractor",
            "load_pipeline",
            "load_trained",
            "make_feature_extractor",
            "read_config",
        ],
        "save": [
            "CODE_FILES",
            "EMOTION_CODE_FILE",
            "SHARD",
            "check_model_folder",
            "repair_model_folder",
            "save_model_folder",
        ],
        "verify": ["verify_model_folder"],
    },
)
