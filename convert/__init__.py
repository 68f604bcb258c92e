"""Checkpoints to model folders, and back."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "contract": ["convert_contract"],
        "hubert": ["convert_hubert"],
        "onnx": ["convert_onnx"],
        "published": ["convert_published"],
    },
)
