"""`exhubert predict` and `exhubert embed`."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "embed": ["run_embed"],
        "predict": ["run_predict"],
        "timeline": ["plot_timeline"],
    },
)
