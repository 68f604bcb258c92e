"""`exhubert predict` and `exhubert embed`."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "embed": ["run_embed"],
        "live": ["run_live"],
        "predict": ["run_predict"],
        "summary": ["write_summary"],
        "timeline": ["plot_lanes", "plot_timeline"],
    },
)
