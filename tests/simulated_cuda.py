"""A CUDA device in name only: its tensors are computed on the CPU, by the rules of a GPU.

What a machine without a GPU can tell of code for one: tensors on two devices, kernels called with what they
refuse, waiting where nothing need be waited for, and how much memory is held. Numbers are those of the CPU;
times mean nothing.
"""

from __future__ import annotations

import inspect
import math
import sys
import weakref
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from types import ModuleType
from typing import Any
from unittest.mock import patch

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

__all__ = ["Gpu", "GpuTensor", "simulated_cuda"]

GIB = 2**30
# Operators whose result says something of the numbers, for which the host waits.
_READS = {"_local_scalar_dense", "nonzero", "masked_select", "_unique2", "equal", "is_nonzero"}
_COPIES = {"_to_copy", "copy_", "_copy_from"}
# Of the CPU alone.
_HOST_LIBRARIES = {"mkldnn", "onednn", "quantized"}


class GpuTensor(torch.Tensor):
    """A tensor that says it is on the GPU, around the one that holds its numbers."""

    host: torch.Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, host: torch.Tensor) -> GpuTensor:
        found: Any = torch.Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls,
            host.size(),
            strides=host.stride(),
            storage_offset=host.storage_offset(),
            dtype=host.dtype,
            device="cuda:0",
        )
        found.host = host
        return found  # type: ignore[no-any-return]

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise AssertionError(f"{func} was called with a tensor of a simulated GPU that is gone")


class Gpu(TorchDispatchMode):
    """What was asked of the device.

    Attributes:
        waits: How often the host waited for it, by what for.
        calls: Of kernels that tests ask about, by name.
        peak: The most bytes of tensors that it held, since this was last set to 0.
    """

    def __init__(self, *, capability: tuple[int, int], num_bytes: int) -> None:
        super().__init__()
        self.capability, self.num_bytes = capability, num_bytes
        self.waits: Counter[str] = Counter()
        self.calls: Counter[str] = Counter()
        self.allocated = self.peak = 0
        self._held: dict[int, list[int]] = {}  # by address: bytes, and the tensors that share them

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        flat = tree_flatten((args, kwargs))[0]
        tensors = [value for value in flat if isinstance(value, torch.Tensor)]
        here = [tensor for tensor in tensors if isinstance(tensor, GpuTensor)]
        name = func.overloadpacket.__name__
        asked = kwargs.get("device", next((value for value in args if isinstance(value, torch.device)), None))
        to_gpu = bool(here) if asked is None else torch.device(asked).type == "cuda"
        if not here and not to_gpu:
            return func(*args, **kwargs)
        if func.has_kernel_for_dispatch_key(torch._C.DispatchKey.CompositeImplicitAutograd):
            with self:  # in inference mode these come as they are
                return func.decompose(*args, **kwargs)
        if "device" in kwargs and asked is not None:
            kwargs["device"] = torch.device("cpu")
        if name in _COPIES:
            self._note_copy(name, args, kwargs, to_gpu)
        else:
            self._check(func, name, args, tensors)
        call: Callable[..., Any] = _varlen_attn if name == "_varlen_attn" else func
        host_args, host_kwargs = tree_map(_host, (tuple(args), kwargs))
        if name == "_to_copy":  # never the same memory, whatever the dtype
            host_kwargs.pop("non_blocking", None)
        found = call(*host_args, **host_kwargs)
        known = {id(tensor.host): tensor for tensor in here}
        if name == "copy_":
            return args[0]
        return tree_map(lambda value: self._placed(value, known, to_gpu), found)

    def _placed(self, value: Any, known: dict[int, GpuTensor], to_gpu: bool) -> Any:
        if not isinstance(value, torch.Tensor) or not to_gpu:
            return value
        same = known.get(id(value))
        return self.hold(value) if same is None else same

    def hold(self, host: torch.Tensor) -> GpuTensor:
        """The tensor on the device, whose memory counts until nobody has it."""
        storage = host.untyped_storage()
        address, size = storage.data_ptr(), storage.nbytes()
        held = self._held.setdefault(address, [size, 0]) if size else [0, 0]
        if size and held[1] == 0:
            if self.allocated + size > self.num_bytes:
                del self._held[address]
                raise torch.OutOfMemoryError(f"CUDA out of memory. Tried to allocate {size} bytes.")
            self.allocated += size
            self.peak = max(self.peak, self.allocated)
        held[1] += 1
        with torch.inference_mode(False):  # a view of a tensor from elsewhere must be one, too
            tensor = GpuTensor(host)
        weakref.finalize(tensor, self._release, address, held)
        return tensor

    def _release(self, address: int, held: list[int]) -> None:
        held[1] -= 1
        if held[1] == 0 and held[0]:
            self.allocated -= held[0]
            if self._held.get(address) is held:
                del self._held[address]

    def _note_copy(self, name: str, args: Any, kwargs: Any, to_gpu: bool) -> None:
        source = args[0] if name == "_to_copy" else args[1]
        target_is_gpu = to_gpu if name == "_to_copy" else isinstance(args[0], GpuTensor)
        if isinstance(source, GpuTensor) and not target_is_gpu:
            self.waits["copy to the host"] += 1
        elif target_is_gpu and not isinstance(source, GpuTensor):
            non_blocking = kwargs.get("non_blocking") or (name == "copy_" and len(args) > 2 and args[2])
            if not non_blocking or not getattr(source, "is_page_locked", False):
                self.waits["copy from pageable memory"] += 1

    def _check(self, func: Any, name: str, args: Any, tensors: Sequence[torch.Tensor]) -> None:
        here = [tensor for tensor in tensors if isinstance(tensor, GpuTensor)]
        if here:
            if func.namespace in _HOST_LIBRARIES:
                raise RuntimeError(f"{func} was called with tensors of a GPU")
            elsewhere = [t for t in tensors if not isinstance(t, GpuTensor) and t.ndim > 0]
            if elsewhere and name in ("index", "index_put_"):
                self.waits["indices on the host"] += 1
            elif elsewhere:
                raise RuntimeError(
                    f"Expected all tensors to be on the same device, but {name} has some on cuda:0 and cpu"
                )
        if name in _READS or (
            name.startswith("index") and any(t.dtype in (torch.bool, torch.uint8) for t in tensors[1:])
        ):
            self.waits[name] += 1
        if name == "_int_mm":
            self._check_int_mm(*args)
        if name == "_varlen_attn":
            self.calls["varlen"] += 1
            _check_varlen(*args[:7])

    def _check_int_mm(self, left: torch.Tensor, right: torch.Tensor) -> None:
        self.calls["int8"] += 1
        (rows, inner), outer = left.shape, right.shape[1]
        if rows <= 16 or inner % 8 or outer % 8:
            raise RuntimeError(f"_int_mm takes 17 rows and multiples of 8, not {rows}x{inner}x{outer}")
        if self.capability < (7, 5):
            raise RuntimeError("_int_mm needs compute capability 7.5")
        if right.stride(0) != 1:
            raise RuntimeError("_int_mm is slow where its second matrix does not lie by columns")


class _Functions(TorchFunctionMode):
    """What is decided before operators are reached: memory that is locked, and which attention is taken."""

    def __init__(self, gpu: Gpu) -> None:
        super().__init__()
        self._gpu = gpu

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.Tensor.pin_memory:
            locked = args[0].clone()
            locked.is_page_locked = True
            return locked
        if func is torch.Tensor.tolist and isinstance(args[0], GpuTensor):
            self._gpu.waits["tolist"] += 1
            return args[0].host.tolist()
        if func is torch.nn.functional.scaled_dot_product_attention and isinstance(args[0], GpuTensor):
            return self._attend(*args, **kwargs)
        return func(*args, **kwargs)

    def _attend(self, q: Any, k: Any, v: Any, attn_mask: Any = None, dropout_p: float = 0.0) -> Any:
        gpu = self._gpu
        gpu.calls["sdpa"] += 1
        if torch.backends.cuda.cudnn_sdp_enabled():  # Hopper's first choice: a plan for each length, kept
            gpu.calls["cudnn"] += 1
        if {q.dtype} != {k.dtype, v.dtype}:
            raise RuntimeError(f"query, key and value are {q.dtype}, {k.dtype} and {v.dtype}")
        scratch = None
        if attn_mask is not None:
            if not isinstance(attn_mask, GpuTensor):
                raise RuntimeError("attn_mask is on another device than the query")
            if attn_mask.dtype not in (torch.bool, q.dtype):
                raise RuntimeError(f"attn_mask is {attn_mask.dtype}, the query {q.dtype}")
            if any(stride % 8 for stride in attn_mask.stride()[:-1]) or attn_mask.stride(-1) != 1:
                gpu.calls["mask copied"] += 1
                scratch = gpu.hold(attn_mask.host.contiguous().clone())
            elif attn_mask.storage_offset() * attn_mask.itemsize % 16:
                raise RuntimeError("attn_bias is not correctly aligned")
        mask = _host(attn_mask)
        with torch._C.DisableTorchFunction():
            found = torch.nn.functional.scaled_dot_product_attention(
                *map(_host, (q, k, v)), attn_mask=mask, dropout_p=dropout_p
            )
        del scratch
        return gpu.hold(found)


def _host(value: Any) -> Any:
    return value.host if isinstance(value, GpuTensor) else value


def _check_varlen(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, q_ends: torch.Tensor, k_ends: torch.Tensor, *most: int
) -> None:
    for name, x in (("query", q), ("key", k), ("value", v)):
        if x.ndim != 3 or x.stride(-1) != 1 or x.dtype not in (torch.float16, torch.bfloat16):
            raise RuntimeError(f"{name} has shape {tuple(x.shape)}, strides {x.stride()} and {x.dtype}")
        if x.shape[-1] % 8 or x.shape[-1] > 256:
            raise RuntimeError(f"FlashAttention has no kernel for heads of {x.shape[-1]}")
    for ends, x, longest in ((q_ends, q, most[0]), (k_ends, k, most[1])):
        if ends.dtype != torch.int32 or not isinstance(ends, GpuTensor) or not ends.is_contiguous():
            raise RuntimeError(f"cumulative lengths are {ends.dtype} on {ends.device}, not int32 on cuda")
        if type(longest) is not int or longest != int(ends.host.diff().max()) or ends.host[-1] != len(x):
            raise RuntimeError(f"the longest of {ends.host.tolist()} is said to be {longest!r} of {len(x)}")


def _varlen_attn(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, ends: torch.Tensor, *rest: Any
) -> tuple[torch.Tensor, ...]:
    """FlashAttention's result, by the plain formula, with what else torch's own operator returns."""
    cut = [x.tensor_split(ends[1:-1].long()) for x in (q, k, v)]
    parts = []
    for some in zip(*cut, strict=True):
        q_HLD, k_HLD, v_HLD = (x.transpose(0, 1).float() for x in some)
        scores = (q_HLD @ k_HLD.transpose(1, 2)) / math.sqrt(q.shape[-1])
        parts.append((scores.softmax(-1) @ v_HLD).transpose(0, 1).to(q.dtype))
    nothing = q.new_zeros(0)
    return torch.cat(parts), nothing, nothing


def _flash_attn(gpu: Gpu) -> ModuleType:
    """The functions of flash-attn 2.8 that are called, with its arguments in its order."""

    def flash_attn_varlen_func(
        q: Any,
        k: Any,
        v: Any,
        cu_seqlens_q: Any,
        cu_seqlens_k: Any,
        max_seqlen_q: int,
        max_seqlen_k: int,
        dropout_p: float = 0.0,
    ) -> Any:
        gpu.calls["flash-attn"] += 1
        _check_varlen(q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k)
        return gpu.hold(_varlen_attn(*map(_host, (q, k, v, cu_seqlens_q)))[0])

    def flash_attn_func(q: Any, k: Any, v: Any, dropout_p: float = 0.0) -> Any:
        gpu.calls["flash-attn"] += 1
        heads_first = (x.host.transpose(1, 2) for x in (q, k, v))
        return gpu.hold(torch.nn.functional.scaled_dot_product_attention(*heads_first).transpose(1, 2))

    module: Any = ModuleType("flash_attn")
    module.__spec__ = inspect.getmodule(inspect).__spec__  # type: ignore[union-attr]
    module.flash_attn_varlen_func, module.flash_attn_func = flash_attn_varlen_func, flash_attn_func
    return module  # type: ignore[no-any-return]


def _flex_attention(q: Any, k: Any, v: Any, *, score_mod: Callable[..., Any]) -> Any:
    """torch's flex_attention, by the plain formula."""
    scores = (q @ k.transpose(-1, -2)) * q.shape[-1] ** -0.5
    places = [
        torch.arange(size, device=q.device).view([-1 if axis == i else 1 for axis in range(4)])
        for i, size in enumerate(scores.shape)
    ]
    return score_mod(scores, *places).softmax(-1).to(v.dtype) @ v


def _put_back(name: str, module: ModuleType | None) -> None:
    del sys.modules[name]
    if module is not None:
        sys.modules[name] = module


@contextmanager
def simulated_cuda(
    *, capability: tuple[int, int] = (9, 0), num_bytes: int = 16 * GIB, name: str = "NVIDIA H100 80GB HBM3"
) -> Iterator[Gpu]:
    """One GPU for as long as this is open, with flash-attn installed."""
    gpu = Gpu(capability=capability, num_bytes=num_bytes)
    torch._C._ensureCUDADeviceGuardSet()

    def reset(device: Any = None) -> None:
        gpu.peak = gpu.allocated

    functions: dict[str, Any] = {
        "is_available": lambda: True,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "_lazy_init": lambda: None,
        "get_device_capability": lambda device=None: gpu.capability,
        "get_device_name": lambda device=None: name,
        "synchronize": lambda device=None: None,
        "empty_cache": lambda: None,
        "mem_get_info": lambda device=None: (gpu.num_bytes - gpu.allocated, gpu.num_bytes),
        "memory_allocated": lambda device=None: gpu.allocated,
        "max_memory_allocated": lambda device=None: gpu.peak,
        "reset_peak_memory_stats": reset,
    }
    with ExitStack() as stack:
        for key, value in functions.items():
            stack.enter_context(patch.object(torch.cuda, key, value))
        # By hand, as patch.dict would also forget what is imported meanwhile.
        installed = sys.modules.get("flash_attn")
        sys.modules["flash_attn"] = _flash_attn(gpu)
        stack.callback(_put_back, "flash_attn", installed)
        compiled = "w2v_ray.models.attention._compiled_flex"
        stack.enter_context(patch(compiled, lambda device: _flex_attention))
        lifts = torch._C._only_lift_cpu_tensors()
        torch._C._set_only_lift_cpu_tensors(True)
        stack.callback(torch._C._set_only_lift_cpu_tensors, lifts)
        # Else a module that is moved keeps its parameters, which are of another class.
        overwrites = torch.__future__.get_overwrite_module_params_on_conversion()
        torch.__future__.set_overwrite_module_params_on_conversion(True)
        stack.callback(torch.__future__.set_overwrite_module_params_on_conversion, overwrites)
        stack.enter_context(_Functions(gpu))
        stack.enter_context(gpu)
        yield gpu
