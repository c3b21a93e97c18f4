"""Lets Megatron-Core run on a machine without CUDA: inside `megatron.core`, "the GPU" means the CPU.

Megatron names CUDA in many places (`torch.cuda.current_device()`, `device='cuda'`, `tensor.cuda()`). Rather than
change torch for everybody, each module of `megatron.core` gets its global name `torch` bound to a copy of the
torch module whose factories and `cuda` submodule mean the CPU. All other code sees torch as it is. Only
`Tensor.type` and `Tensor.cuda` are changed globally, and these look at who calls.

`install()` is called once per process, before or after `megatron.core` is imported; where CUDA is there it
does nothing.
"""

import contextlib
import functools
import importlib.abc
import importlib.machinery
import sys
import types

import torch

_FACTORIES = (
    "arange",
    "as_tensor",
    "empty",
    "empty_like",
    "empty_strided",
    "eye",
    "full",
    "full_like",
    "linspace",
    "ones",
    "ones_like",
    "rand",
    "rand_like",
    "randint",
    "randn",
    "randn_like",
    "randperm",
    "tensor",
    "zeros",
    "zeros_like",
)
_installed = False
_package = "megatron.core"


def install(package: str = "megatron.core") -> None:
    """Make `package` run on the CPU. Does nothing where CUDA is available, or when called again.

    "megatron" is for Megatron-LM, whose training code is around `megatron.core`.
    """
    global _installed, _package
    if _installed or torch.cuda.is_available():
        return
    _installed, _package = True, package
    facade, random_facade = _torch_facade(inert_cpu_generator=False), _torch_facade(inert_cpu_generator=True)

    def rebind(module: types.ModuleType) -> None:
        if module.__name__ == "megatron.core.tensor_parallel.random":
            module.torch = random_facade
            module._get_cuda_rng_state = _get_rng_state
            module._set_cuda_rng_state = _set_rng_state
        elif module.__name__ == "megatron.core.jit":
            module.disable_jit_fuser()  # functions that no model here calls, and torch's compiler with them
        elif getattr(module, "torch", None) is torch:
            module.torch = facade

    for name, module in list(sys.modules.items()):
        if _is_inside(name) and module is not None:
            rebind(module)
    sys.meta_path.insert(0, _RebindingFinder(rebind))
    _patch_tensor_methods()


class _RebindingFinder(importlib.abc.MetaPathFinder):
    """Finds modules of megatron.core as usual and rebinds their `torch` once they are executed."""

    def __init__(self, rebind: object) -> None:
        self._rebind = rebind

    def find_spec(self, name: str, path: object, target: object = None) -> importlib.machinery.ModuleSpec | None:
        if not _is_inside(name):
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        if spec is None or spec.loader is None:
            return spec
        execute = spec.loader.exec_module

        def exec_module(module: types.ModuleType) -> None:
            execute(module)
            self._rebind(module)

        spec.loader.exec_module = exec_module
        return spec


def _is_inside(name: str) -> bool:
    return name == _package or name.startswith(_package + ".")


def _torch_facade(inert_cpu_generator: bool) -> types.ModuleType:
    """A copy of torch for Megatron's eyes.

    With one generator serving as "CPU" and as "CUDA" generator, saving and restoring both would undo each other;
    `inert_cpu_generator` makes the CPU half do nothing.
    """
    facade = types.ModuleType("torch")
    facade.__dict__.update(torch.__dict__)
    for name in _FACTORIES:
        setattr(facade, name, _on_cpu(getattr(torch, name)))
    facade.cuda = _cuda_facade()
    if inert_cpu_generator:
        state = torch.zeros(1, dtype=torch.uint8)
        facade.get_rng_state = lambda: state
        facade.set_rng_state = lambda state: None
    return facade


def _on_cpu(factory: object) -> object:
    @functools.wraps(factory)
    def wrapper(*args: object, **kwargs: object) -> torch.Tensor:
        device = kwargs.get("device")
        if device is not None and not isinstance(device, int) and str(device).startswith("cuda"):
            kwargs["device"] = "cpu"
        kwargs.pop("pin_memory", None)
        return factory(*args, **kwargs)

    return wrapper


def _cuda_facade() -> types.ModuleType:
    """`torch.cuda` as Megatron uses it, on the CPU: one device, one stream, nothing to wait for."""
    cuda = types.ModuleType("torch.cuda")
    cuda.__dict__.update({name: value for name, value in torch.cuda.__dict__.items() if not name.startswith("__")})
    cuda.current_device = lambda: torch.device("cpu")
    cuda.device_count = lambda: 1
    cuda.is_available = lambda: False
    for name in ("synchronize", "empty_cache", "set_device", "set_stream"):
        setattr(cuda, name, _nothing)
    for name in ("memory_allocated", "memory_reserved", "max_memory_allocated", "max_memory_reserved"):
        setattr(cuda, name, lambda *args, **kwargs: 0)
    cuda.memory_stats = lambda *args, **kwargs: {}
    cuda.Stream = cuda.Event = _Stream
    cuda.current_stream = cuda.default_stream = lambda *args, **kwargs: _Stream()
    cuda.stream = lambda *args, **kwargs: contextlib.nullcontext()
    cuda.nvtx = types.SimpleNamespace(
        range_push=_nothing, range_pop=_nothing, range=lambda *args, **kwargs: contextlib.nullcontext()
    )
    cuda.get_rng_state, cuda.set_rng_state = _get_rng_state, _set_rng_state
    cuda.manual_seed = torch.default_generator.manual_seed  # torch's own also formats a traceback for each accelerator
    cuda.random = types.SimpleNamespace(get_rng_state=_get_rng_state, set_rng_state=_set_rng_state)
    cuda.FloatTensor, cuda.HalfTensor, cuda.BFloat16Tensor = torch.FloatTensor, torch.HalfTensor, torch.BFloat16Tensor
    return cuda


class _Stream:
    """A stream or event on a device that has no queues."""

    def __init__(self, *args: object, **kwargs: object) -> None:
        pass

    def __getattr__(self, name: str) -> object:
        return _nothing


def _nothing(*args: object, **kwargs: object) -> None:
    return None


def _get_rng_state(*args: object, **kwargs: object) -> torch.Tensor:
    return torch.get_rng_state()


def _set_rng_state(state: torch.Tensor, *args: object, **kwargs: object) -> None:
    torch.set_rng_state(state)


def _patch_tensor_methods() -> None:
    """`tensor.type()` says 'torch.cuda.…' and `tensor.cuda()` stays where it is, for callers in megatron.core."""
    original_type, original_cuda = torch.Tensor.type, torch.Tensor.cuda

    def called_by_megatron() -> bool:
        return _is_inside(sys._getframe(2).f_globals.get("__name__", ""))

    @functools.wraps(original_type)
    def tensor_type(self: torch.Tensor, *args: object, **kwargs: object) -> object:
        result = original_type(self, *args, **kwargs)
        if isinstance(result, str) and not args and not kwargs and called_by_megatron():
            return result.replace("torch.", "torch.cuda.", 1)
        return result

    @functools.wraps(original_cuda)
    def tensor_cuda(self: torch.Tensor, *args: object, **kwargs: object) -> torch.Tensor:
        return self if called_by_megatron() else original_cuda(self, *args, **kwargs)

    torch.Tensor.type, torch.Tensor.cuda = tensor_type, tensor_cuda
