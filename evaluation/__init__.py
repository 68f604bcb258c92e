"""Predictions of models on corpora, their scores with intervals, calibration and robustness."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "calibration": ["expected_calibration_error", "fit_temperature"],
        "degradations": ["CONDITIONS", "degrade"],
        "predictions": ["classify", "predictions_table"],
        "scores": ["compare", "score"],
    },
)
