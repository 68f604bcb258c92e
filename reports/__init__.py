"""Tables, pictures and the written report of an evaluation."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "report": ["write_report"],
        "tables": ["uar_table"],
    },
)
