"""The fast path: parts of HuBERT that compute nearly the same in less time, in float32 on the CPU.

`FAST_MODULES` says which class takes the place of which. The two have the same weights, so that a module changes its
class, and back, without anything being moved: `ExHuBERTPreTrainedModel.set_fast_path` does it. Where values are not
float32 on the CPU, or are traced, compiled or cast, each computes as the class that it stands for.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import nn
from torch.autograd.function import once_differentiable
from torch.overrides import TorchFunctionMode
from transformers.activations import GELUActivation
from transformers.models.hubert.modeling_hubert import (
    HubertAttention,
    HubertFeatureEncoder,
    HubertPositionalConvEmbedding,
)


class FastFeatureEncoder(HubertFeatureEncoder):
    """HuBERT's CNN, clip by clip and channels last, where no gradient is needed."""

    def forward(self, input_values: torch.Tensor) -> torch.Tensor:
        needed = torch.is_grad_enabled() and any(each.requires_grad for each in (input_values, *self.parameters()))
        adapted = any(type(layer.conv) is not nn.Conv1d for layer in self.conv_layers)  # by LoRA, for one
        if needed or adapted or not _in_plain_float32(input_values):
            return super().forward(input_values)
        with torch.no_grad():
            return torch.stack([self.encode_clip(clip) for clip in input_values]).transpose(1, 2)

    def encode_clip(self, samples: torch.Tensor) -> torch.Tensor:
        """`(samples,)` to `(frames, channels)`."""
        hidden = samples[:, None]
        for layer in self.conv_layers:
            hidden = convolve_channels_last(hidden, layer.conv)
            norm = getattr(layer, "layer_norm", None)
            if isinstance(norm, nn.GroupNorm):  # of HuBERT Base's first layer, a group a channel
                variance, mean = torch.var_mean(hidden, dim=0, correction=0)
                scale = norm.weight * torch.rsqrt(variance + norm.eps)
                hidden = torch.addcmul(norm.bias - mean * scale, hidden, scale)
            elif norm is not None:
                hidden = norm(hidden)
            in_place = isinstance(layer.activation, GELUActivation) and layer.activation.act is nn.functional.gelu
            hidden = torch.ops.aten.gelu_(hidden) if in_place else layer.activation(hidden)
        return hidden


def convolve_channels_last(hidden: torch.Tensor, conv: nn.Conv1d) -> torch.Tensor:
    """Convolves `(time, channels)`: a product for each `stride` taps, its rows the windows of the input as they lie."""
    (kernel,), (stride,), channels = conv.kernel_size, conv.stride, conv.in_channels
    frames, hidden = (len(hidden) - kernel) // stride + 1, hidden.contiguous()
    if channels == 1:
        return nn.functional.linear(hidden.as_strided((frames, kernel), (stride, 1)), conv.weight[:, 0], conv.bias)
    products: list[torch.Tensor] = []
    for tap in range(0, kernel, stride):
        taps = conv.weight[:, :, tap : tap + stride].transpose(1, 2).flatten(1).contiguous()
        begin = hidden.storage_offset() + tap * channels
        windows = hidden.as_strided((frames, taps.shape[1]), (stride * channels, 1), begin)
        products.append(_onednn_linear(windows, taps, None if products else conv.bias))
    return functools.reduce(torch.Tensor.add_, products)


class FastPositionalConvEmbedding(HubertPositionalConvEmbedding):
    """HuBERT's positional convolution in training, with gradients that are computed as products."""

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        conv, plain = self.conv, not torch.is_grad_enabled() or getattr(self, "batch_norm", None) is not None
        if plain or not isinstance(conv, nn.Conv1d) or not _in_plain_float32(hidden_states):
            return super().forward(hidden_states)
        states = hidden_states.transpose(1, 2)
        convolved = _GroupedConvolution.apply(states, conv.weight, conv.bias, conv.padding[0], conv.groups)
        return self.activation(self.padding(convolved)).transpose(1, 2)


class FastLinear(nn.Linear):
    """A linear layer computed by oneDNN, on some processors twice as fast as what torch takes by itself (MKL)."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        if not _in_plain_float32(input):
            return super().forward(input)
        linear = _Linear.apply if torch.is_grad_enabled() else _onednn_linear
        output: torch.Tensor = linear(input.contiguous(), self.weight, self.bias)
        return output


class FastDropout(nn.Dropout):
    """Dropout of which a byte a value is kept for the backward pass."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        if not self.training or not 0 < self.p < 1 or self.inplace or not _in_plain_float32(input):
            return super().forward(input)
        return _Dropout.apply(input, self.p)


class FastAttention(HubertAttention):
    """Attention whose dropout in training is `FastDropout`'s."""

    def forward(self, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        if not self.training or not _in_plain_float32(hidden_states):
            return super().forward(hidden_states, *args, **kwargs)
        with _AttentionMode():
            return super().forward(hidden_states, *args, **kwargs)


class _AttentionMode(TorchFunctionMode):
    """Takes the place of torch's attention where that has dropout and no mask: on the CPU it is not fused then."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        p = kwargs.get("dropout_p", 0.0)
        if func is not nn.functional.scaled_dot_product_attention or not 0 < p < 1:
            return func(*args, **kwargs)
        if len(args) != 3 or kwargs.get("attn_mask") is not None or kwargs.get("is_causal") or "scale" not in kwargs:
            return func(*args, **kwargs)
        return _AttentionWithDropout.apply(*args, kwargs["scale"], p)


def _onednn_linear(values: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """`values @ weight.T + bias` of float32 matrices whose rows or columns lie together: with others it is slow."""
    if not HAS_ONEDNN_LINEAR:
        return nn.functional.linear(values, weight, bias)
    result: torch.Tensor = torch.ops.mkldnn._linear_pointwise(values, weight, bias, "none", [], "")
    return result


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        of_values, of_weight, _ = ctx.needs_input_grad
        ctx.save_for_backward(values if of_weight else None, weight if of_values else None)
        return _onednn_linear(values, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (values, weight), (of_values, of_weight, of_bias) = ctx.saved_tensors, ctx.needs_input_grad
        gradient = gradient.contiguous()
        rows = gradient.reshape(-1, gradient.shape[-1])
        return (
            _onednn_linear(gradient, weight.t()) if of_values else None,
            _onednn_linear(rows.t(), values.reshape(-1, values.shape[-1]).t()) if of_weight else None,
            rows.sum(dim=0) if of_bias else None,
        )


class _GroupedConvolution(torch.autograd.Function):
    """`conv1d` of stride 1, for whose gradients torch's own way takes three times as long."""

    @staticmethod
    def forward(
        ctx: Any, states: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, padding: int, groups: int
    ) -> torch.Tensor:
        ctx.save_for_backward(states, weight)
        ctx.padding, ctx.groups = padding, groups
        return nn.functional.conv1d(states, weight, bias, padding=padding, groups=groups)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (states, weight), padding, groups = ctx.saved_tensors, ctx.padding, ctx.groups
        (_, inner, kernel), (batch, _, frames) = weight.shape, gradient.shape
        of_states = of_weight = None
        if ctx.needs_input_grad[0]:
            turned = weight.view(groups, -1, inner, kernel).transpose(1, 2).reshape(groups * inner, -1, kernel).flip(-1)
            of_states = nn.functional.conv1d(gradient, turned, padding=kernel - 1 - padding, groups=groups)
            del turned  # as large as the weight
        if ctx.needs_input_grad[1]:
            rows = gradient.transpose(0, 1).reshape(groups, -1, batch * frames)
            padded = nn.functional.pad(states, (padding, padding)).view(batch, groups, inner, -1)
            windows = padded.unfold(-1, frames, 1)  # (batch, groups, inner, kernel, frames)
            of_weight = torch.empty_like(weight)
            for group, part in enumerate(of_weight.view(groups, -1, inner * kernel)):
                columns = windows[:, group].permute(1, 2, 0, 3).reshape(inner * kernel, -1)
                part.copy_(_onednn_linear(rows[group], columns))
        return of_states, of_weight, gradient.sum(dim=(0, 2)) if ctx.needs_input_grad[2] else None, None, None


class _Dropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: torch.Tensor, p: float) -> torch.Tensor:
        kept, ctx.scale = _draw_kept(values.shape, p)
        ctx.save_for_backward(kept)
        return (values * kept).mul_(ctx.scale)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        (kept,) = ctx.saved_tensors
        return (gradient * kept).mul_(ctx.scale), None


class _AttentionWithDropout(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float, p: float
    ) -> torch.Tensor:
        query, key, value = (each.contiguous() for each in (query, key, value))  # else each product would copy them
        shares = _attention_shares(query, key, scaling)
        kept, ctx.scale = _draw_kept(shares.shape, p)
        ctx.scaling = scaling
        ctx.save_for_backward(query, key, value, kept)  # not the shares: the largest, and soon computed again
        return torch.matmul((shares * kept).mul_(ctx.scale), value)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (query, key, value, kept), gradient = ctx.saved_tensors, gradient.contiguous()
        shares = _attention_shares(query, key, ctx.scaling)
        dropped = (shares * kept).mul_(ctx.scale)
        of_value = torch.matmul(dropped.transpose(2, 3), gradient)
        of_shares = (torch.matmul(gradient, value.transpose(2, 3)) * kept).mul_(ctx.scale)
        of_scores = torch.ops.aten._softmax_backward_data(of_shares, shares, -1, shares.dtype).mul_(ctx.scaling)
        return torch.matmul(of_scores, key), torch.matmul(of_scores.transpose(2, 3), query), of_value, None, None


def _attention_shares(query: torch.Tensor, key: torch.Tensor, scaling: float) -> torch.Tensor:
    return torch.softmax(torch.matmul(query, key.transpose(2, 3)).mul_(scaling), dim=-1)


def _draw_kept(shape: torch.Size, p: float) -> tuple[torch.Tensor, float]:
    """What dropout keeps, boolean, and what that is multiplied by; `p` is rounded to a 65,536th."""
    count, dropped = shape.numel(), round(p * 2**16)
    words = torch.empty(-(-count // 4), dtype=torch.int64).random_(-(2**63), None)
    return (words.view(torch.int16)[:count] >= dropped - 2**15).view(shape), 2**16 / (2**16 - dropped)


def _in_plain_float32(values: torch.Tensor) -> bool:
    """Whether values are float32 on the CPU, and computed with as they are: not traced, compiled or cast."""
    if values.device.type != "cpu" or values.dtype != torch.float32 or torch.is_autocast_enabled("cpu"):
        return False
    return not (torch.compiler.is_compiling() or torch.jit.is_tracing() or torch.onnx.is_in_onnx_export())


# What torch's compiler calls on CPUs; there is no public name for it on plain tensors.
HAS_ONEDNN_LINEAR = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
FAST_MODULES: dict[type[nn.Module], type[nn.Module]] = {
    HubertFeatureEncoder: FastFeatureEncoder,
    HubertAttention: FastAttention,
    HubertPositionalConvEmbedding: FastPositionalConvEmbedding,
    nn.Dropout: FastDropout,
    nn.Linear: FastLinear,
}
