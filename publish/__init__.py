"""A trained model's card, and the way to the Hub."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "push": ["push_model_folder"],
    },
)
