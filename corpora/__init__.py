"""Emotion corpora: what is known of them, their labels and splits, read, prepared and checked."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "labels": ["load_label_map", "map_labels"],
        "load": ["load_corpora"],
        "prepare": ["prepare_corpus"],
        "readers": ["locate_clip", "read_corpus"],
        "registry": ["find_corpus", "load_registry"],
        "splits": ["split_corpus"],
        "statistics": ["corpus_statistics"],
    },
)
