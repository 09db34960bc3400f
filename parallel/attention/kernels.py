"""Attention on one rank: whatever diffusers offers, or xfuser's, with the log-sum-exp that a ring merges by."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from diffusers.models.attention_dispatch import AttentionBackendName, dispatch_attention_fn
from torch import Tensor


@dataclass(frozen=True)
class Attended:
    """out: [batch, queries, heads, head_dim]. lse: log-sum-exp of each query's scores, [batch, queries, heads], fp32; -inf and
    zeros where a query sees no key.
    """

    out: Tensor
    lse: Tensor

    def merge(self, other: Attended) -> Attended:
        """Attention over both sets of keys (arXiv 2310.01889, as in FlashAttention's online softmax, arXiv 2205.14135)."""
        lse = torch.logaddexp(self.lse, other.lse)
        safe = torch.where(lse.isneginf(), 0.0, lse)
        ours, theirs = (torch.exp(part.lse - safe).unsqueeze(-1) for part in (self, other))
        return Attended(self.out.float() * ours + other.out.float() * theirs, lse)


class Kernel(Protocol):
    """query, key, value: [batch, tokens, heads, head_dim]; key_mask: [batch, keys], bool, True where a key counts."""

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, key_mask: Tensor | None, scale: float | None) -> Tensor: ...

    def with_lse(self, query: Tensor, key: Tensor, value: Tensor, key_mask: Tensor | None, scale: float | None) -> Attended: ...


def attend_nothing(query: Tensor, value: Tensor) -> Attended:
    """What a query sees in an empty set of keys."""
    batch, queries, heads, _ = query.shape
    out = query.new_zeros((batch, queries, heads, value.shape[-1]))
    return Attended(out, torch.full((batch, queries, heads), -torch.inf, device=query.device))


class NativeKernel:
    """diffusers' attention backends. backend: `native`, `flash`, `_flash_3_hub`, `sage` ...; None for diffusers' default.

    A query whose keys are all masked gives zeros. Raises ValueError for a backend that diffusers does not know.
    """

    def __init__(self, backend: str | None = None) -> None:
        known = [name.value for name in AttentionBackendName]
        if backend is not None and backend not in known:
            raise ValueError(f"attention_backend is '{backend}'; diffusers knows {', '.join(known)}.")
        self.backend = AttentionBackendName(backend) if backend is not None else None

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, key_mask: Tensor | None, scale: float | None) -> Tensor:
        if not query.numel() or not key.numel():
            return attend_nothing(query, value).out
        if key_mask is None:
            return dispatch_attention_fn(query, key, value, scale=scale, backend=self.backend)
        out = dispatch_attention_fn(query, key, value, attn_mask=key_mask[:, None, None], scale=scale, backend=self.backend)
        return torch.where(key_mask.any(1)[:, None, None, None], out, 0.0)

    def with_lse(self, query: Tensor, key: Tensor, value: Tensor, key_mask: Tensor | None, scale: float | None) -> Attended:
        if not query.numel() or not key.numel():
            return attend_nothing(query, value)
        if query.device.type == "cpu":
            out, lse = _cpu_with_lse(query, key, value, key_mask, scale)
        elif self.backend in (None, AttentionBackendName.NATIVE):
            out, lse = _cuda_with_lse(query, key, value, key_mask, scale)
        else:
            mask = None if key_mask is None else key_mask[:, None, None]
            options = {"return_lse": True}
            out, lse = dispatch_attention_fn(query, key, value, attn_mask=mask, scale=scale, attention_kwargs=options, backend=self.backend)
            lse = lse if lse.shape[1] == query.shape[1] else lse.transpose(1, 2)
        if key_mask is not None:
            seen = key_mask.any(1)[:, None, None]
            out, lse = torch.where(seen[..., None], out, 0.0), torch.where(seen, lse, -torch.inf)
        return Attended(out, lse.float())


def _cpu_with_lse(query: Tensor, key: Tensor, value: Tensor, key_mask: Tensor | None, scale: float | None) -> tuple[Tensor, Tensor]:
    """torch's CPU kernel. It kills the process on empty inputs and says lse = 0 for wholly masked rows: the caller guards both."""
    query, key, value = (tensor.transpose(1, 2) for tensor in (query, key, value))
    mask = None
    if key_mask is not None:
        mask = query.new_zeros(key_mask.shape).masked_fill(~key_mask, -torch.inf)[:, None, None].expand(-1, -1, query.shape[2], -1)
    out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(query, key, value, attn_mask=mask, scale=scale)
    return out.transpose(1, 2), lse.transpose(1, 2)


def _cuda_with_lse(query: Tensor, key: Tensor, value: Tensor, key_mask: Tensor | None, scale: float | None) -> tuple[Tensor, Tensor]:
    """torch's flash kernel, or the memory-efficient one where there is a mask or fp32."""
    query, key, value = (tensor.transpose(1, 2) for tensor in (query, key, value))
    if key_mask is None and query.dtype in (torch.float16, torch.bfloat16):
        out, lse, *_ = torch.ops.aten._scaled_dot_product_flash_attention(query, key, value, scale=scale)
    else:
        bias = None
        if key_mask is not None:
            bias = query.new_zeros(key_mask.shape).masked_fill(~key_mask, -torch.inf)
            padded = torch.nn.functional.pad(bias, (0, -bias.shape[1] % 16))  # the kernel reads rows of 16
            bias = padded[:, : bias.shape[1]][:, None, None].expand(-1, query.shape[1], query.shape[2], -1)
        out, lse, *_ = torch.ops.aten._scaled_dot_product_efficient_attention(query, key, value, bias, True, scale=scale)
    return out.transpose(1, 2), lse[..., : query.shape[2]].transpose(1, 2)


class XfuserKernel:
    """xfuser's attention (0.7 or later): its FlashAttention 3 or 2 where installed, else torch's flash kernel as xfuser calls it.

    Raises ValueError without CUDA or without the package.
    """

    def __init__(self) -> None:
        if not torch.cuda.is_available():
            raise ValueError("parallel.kernel is xfuser, which needs a CUDA device; set parallel.kernel=native.")
        try:
            from xfuser.core.distributed.attention_backend import ATTENTION_FUNCTION_REGISTRY, AttentionBackendType
            from xfuser.envs import PACKAGES_CHECKER
        except ImportError as error:
            raise ValueError(f"parallel.kernel is xfuser, which cannot be imported ({error}); pip install 'longtake[xfuser]'.") from None
        installed = PACKAGES_CHECKER.get_packages_info()
        wanted = (("FLASH_3", "has_flash_attn_3"), ("FLASH", "has_flash_attn"))
        self.backend = next((name for name, package in wanted if installed.get(package)), "SDPA_FLASH")
        self._attend = ATTENTION_FUNCTION_REGISTRY[AttentionBackendType[self.backend]]

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, key_mask: Tensor | None, scale: float | None) -> Tensor:
        return self.with_lse(query, key, value, key_mask, scale).out

    def with_lse(self, query: Tensor, key: Tensor, value: Tensor, key_mask: Tensor | None, scale: float | None) -> Attended:
        if not query.numel() or not key.numel():
            return attend_nothing(query, value)
        if key_mask is not None:
            raise ValueError("parallel.kernel=xfuser cannot mask keys, which this model needs; set parallel.kernel=native.")
        if scale is not None:
            query = query * (scale * query.shape[-1] ** 0.5)  # xfuser always divides by the root of head_dim
        heads_first = (tensor.transpose(1, 2) for tensor in (query, key, value))
        out, lse = self._attend(*heads_first, dropout_p=0.0, is_causal=False)
        return Attended(out.transpose(1, 2), lse[..., : query.shape[1]].transpose(1, 2).float())
