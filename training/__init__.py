"""What `train_hf.py` and `pretrain_hf.py` are made of."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "arguments": ["Recipe", "read_recipe"],
        "models": ["load_model"],
        "round_robin": ["MultiCorpus", "RoundRobinSampler"],
        "trainer": ["RoundRobinTrainer"],
    },
)
