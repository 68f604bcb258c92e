"""Augmentation of training audio by the library audiomentations (the extra `augment`)."""

from __future__ import annotations

import contextlib
import inspect
import random
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from exhubert.audio_exhubert import SAMPLING_RATE
from exhubert.utils.text import first_line, nearest


class Augmentation:
    """Applies transforms of audiomentations one after the other, each with its own probability.

    Args:
        transforms: for each the `name` of its class, and its parameters by their names; `p` is its probability (0.5
            if not given).

    Raises:
        ValueError: if the library is not there, or for a name, a parameter or a value that it does not know.
    """

    def __init__(self, transforms: Sequence[Mapping[str, Any]]) -> None:
        try:
            import audiomentations
            from audiomentations.core.transforms_interface import BaseWaveformTransform
        except ImportError as error:
            raise ValueError(
                "`augmentation` needs the library audiomentations: pip install audiomentations "
                f"(or exhubert[augment]); {error}"
            ) from error
        known: dict[str, Any] = {
            name: kind
            for name, kind in vars(audiomentations).items()
            if inspect.isclass(kind) and issubclass(kind, BaseWaveformTransform) and name != "Lambda"  # takes code
        }
        self.transforms = []
        for transform in transforms:
            parameters = dict(transform)
            name = parameters.pop("name", None)
            if name not in known:
                what = "a transform without a `name`" if name is None else f"no transform {name!r}"
                raise ValueError(f"augmentation: {what} in audiomentations; the nearest is {nearest(name, known)!r}")
            legal = [key for key in inspect.signature(known[name]).parameters if key != "self"]
            for key in parameters:
                if key not in legal:
                    raise ValueError(
                        f"augmentation: {name} has no parameter {key!r}; the nearest is {nearest(key, legal)!r}"
                    )
            # Tried once: some say only then that a file or a library is missing, and that must not come up hours later.
            try:
                made = known[name](**parameters)
                probability, made.p = made.p, 1.0
                with seeded(0):
                    noise = np.random.standard_normal(SAMPLING_RATE).astype(np.float32)
                    made(samples=0.1 * noise, sample_rate=SAMPLING_RATE)
                made.p = probability
            except Exception as error:  # the library's are of many kinds
                raise ValueError(f"augmentation: {name} with {parameters} fails: {first_line(error)}") from error
            self.transforms.append(made)

    def __call__(self, samples: np.ndarray, seed: int) -> np.ndarray:
        """Returns 16 kHz mono samples, augmented: a pure function of `samples` and `seed` (0 to 2**32 - 1)."""
        with seeded(seed):
            for transform in self.transforms:
                samples = transform(samples=samples, sample_rate=SAMPLING_RATE)
        return samples


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seeds the generators that audiomentations draws from, which are everybody's; they go on afterwards as before."""
    states = random.getstate(), np.random.get_state()
    random.seed(seed)
    np.random.seed(seed)
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
