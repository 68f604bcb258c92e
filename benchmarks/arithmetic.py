"""The arithmetic of a model, counted from its configuration: what a forward and a training step cannot do without.

Everything that grows with the product of two sizes is a matrix product here: a linear layer, a convolution (its windows
times its weights), attention's two products. Norms, activations, softmax and additions are left out; of HuBERT Large's
operations they are less than one in a hundred. The floor of a model is the time that these products alone take, each
at its own shape, on the machine at hand.
"""

from __future__ import annotations

import statistics
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from exhubert.audio_exhubert import SAMPLING_RATE

FEATURE_ENCODER, PROJECTION, POSITION = "feature encoder", "feature projection", "positional convolution"
ORIGINALS, COPIES, HEAD = "originals", "copies", "head"
PARTS = (FEATURE_ENCODER, PROJECTION, POSITION, ORIGINALS, COPIES, HEAD)


@dataclass(frozen=True)
class Product:
    """`count` products of matrices `(rows, inner)` and `(inner, columns)`."""

    count: int
    rows: int
    inner: int
    columns: int

    @property
    def flops(self) -> int:
        """Multiplications and additions."""
        return 2 * self.count * self.rows * self.inner * self.columns


@dataclass(frozen=True)
class Operation:
    """A product of a forward: in which part of the model, and whether its second factor is a weight."""

    part: str
    product: Product
    of_weight: bool = True


def forward_operations(config: Any, batch: int, seconds: float) -> Iterator[Operation]:
    """Yields the products of a classifier's forward, in their order.

    Args:
        config: of a HuBERT, or an ExHuBERT, with a classification head.
        batch: clips.
        seconds: of each clip.
    """
    length, channels = round(seconds * SAMPLING_RATE), 1
    for width, kernel, stride in zip(config.conv_dim, config.conv_kernel, config.conv_stride, strict=True):
        length = (length - kernel) // stride + 1
        yield Operation(FEATURE_ENCODER, Product(1, batch * length, channels * kernel, width))
        channels = width
    hidden, heads, frames = config.hidden_size, config.num_attention_heads, batch * length
    yield Operation(PROJECTION, Product(1, frames, channels, hidden))

    groups, kernel = config.num_conv_pos_embedding_groups, config.num_conv_pos_embeddings
    padded = batch * (length + (kernel % 2 == 0))  # an even kernel makes a frame too many, which is cut off
    yield Operation(POSITION, Product(groups, padded, hidden // groups * kernel, hidden // groups))

    copies = getattr(config, "num_copies", 0)
    square = Product(1, frames, hidden, hidden)
    for index in range(config.num_hidden_layers):
        part = COPIES if index % (copies + 1) else ORIGINALS
        gated = part == COPIES or getattr(config, "gate_original_layers", False)
        yield from [Operation(part, square)] * 3  # queries, keys, values
        yield Operation(part, Product(batch * heads, length, hidden // heads, length), of_weight=False)
        yield Operation(part, Product(batch * heads, length, length, hidden // heads), of_weight=False)
        yield Operation(part, square)
        yield Operation(part, Product(1, frames, hidden, config.intermediate_size))
        yield Operation(part, Product(1, frames, config.intermediate_size, hidden))
        yield from [Operation(part, square)] * gated
    yield Operation(HEAD, Product(1, frames, hidden, config.classifier_proj_size))
    yield Operation(HEAD, Product(1, batch, config.classifier_proj_size, config.num_labels))


def forward_products(config: Any, batch: int, seconds: float) -> list[Product]:
    """The products of a forward; see `forward_operations`."""
    return [operation.product for operation in forward_operations(config, batch, seconds)]


def training_products(config: Any, batch: int, seconds: float, frozen: Collection[str] = ()) -> list[Product]:
    """The products of a training step: forward, gradients of states and gradients of weights.

    Gradients of states are needed above the first trainable parameter, those of weights where they are trained.

    Args:
        config, batch, seconds: as of `forward_operations`.
        frozen: the `PARTS` that are not trained.
    """
    products, trained_below = [], False
    for operation in forward_operations(config, batch, seconds):
        count, rows, inner, columns = (
            getattr(operation.product, name) for name in ("count", "rows", "inner", "columns")
        )
        trained = operation.part not in frozen
        if operation.part == PROJECTION and trained and config.feat_proj_layer_norm:
            trained_below = True  # the norm before the projection
        products.append(operation.product)
        if trained_below:
            products.append(Product(count, rows, columns, inner))
        if (trained_below and not operation.of_weight) or (trained and operation.of_weight):
            products.append(Product(count, inner, rows, columns))
        trained_below |= trained
    return products


def total_flops(products: Iterable[Product]) -> int:
    """Multiplications and additions of all."""
    return sum(product.flops for product in products)


def floor_seconds(products: Iterable[Product], seconds_of: Callable[[Product], float]) -> float:
    """The time of the products alone, of which `seconds_of` gives each one's."""
    return sum(many * seconds_of(product) for product, many in Counter(products).items())


def product_seconds(
    product: Product, device: str = "cpu", dtype: torch.dtype = torch.float32, repeats: int = 3
) -> float:
    """Measures a product by the fastest library that torch has for it: the median of some repeats, after a first."""
    left = torch.randn(product.count, product.rows, product.inner, device=device).to(dtype)
    # As linear layers keep their weights: a row for each output.
    weight = torch.randn(product.count, product.columns, product.inner, device=device).to(dtype)
    ways: list[Callable[[], Any]] = [lambda: torch.matmul(left, weight.transpose(1, 2))]
    if product.count == 1:
        rows, columns = left[0], weight[0]
        ways = [lambda: torch.matmul(rows, columns.t())]
        if device == "cpu" and dtype == torch.float32 and torch.backends.mkldnn.is_available():
            # oneDNN's: on AMD's processors MKL, which `matmul` calls, is less than half as fast.
            ways.append(lambda: torch.ops.mkldnn._linear_pointwise(rows, columns, None, "none", [], ""))
    return min(statistics.median([_seconds(way, device) for _ in range(repeats + 1)][1:]) for way in ways)


def _seconds(work: Callable[[], Any], device: str) -> float:
    synchronize(device)
    start = time.perf_counter()
    work()
    synchronize(device)
    return time.perf_counter() - start


def synchronize(device: str) -> None:
    """Waits until the device has done all that it was given."""
    if device != "cpu":
        torch.accelerator.synchronize()
