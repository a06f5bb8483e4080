"""Sends what a program asks of torch.cuda and NCCL to another device: InternEvo's reference versions know only CUDA.

A vendor's own transfer shim is preferred wherever one exists; this one serves the CPU and the vendors without a shim.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Answers = dict[str, Any]


def redirect(target: str, answers: Answers, backend: str) -> None:
    """Answer torch.cuda from another device, for good, in this process.

    Args:
        target: torch's name of the device.
        answers: What takes the place of the attributes of torch.cuda, by name.
        backend: The torch.distributed backend that takes the place of NCCL.
    """
    import torch
    import torch._dynamo  # must see the real torch.cuda before it is replaced

    _redirect_tensors(target)
    _redirect_autocast(target)
    _redirect_loading(target)
    for name, answer in answers.items():
        setattr(torch.cuda, name, answer)
    for kind in ("Float", "Int", "Half", "BFloat16", "Double"):
        setattr(torch.cuda, f"{kind}Tensor", _tensor_constructor(getattr(torch, f"{kind}Tensor").dtype))
    torch.cuda.memory._set_allocator_settings = lambda settings: None
    _redirect_collectives(backend)


def namespace_answers(namespace: Any) -> Answers:
    """The public attributes of a device's torch namespace, which has torch.cuda's names in the usual pattern.

    Args:
        namespace: torch.<device>.

    Returns:
        What `redirect` takes.
    """
    return {name: getattr(namespace, name) for name in dir(namespace) if not name.startswith("_") and name != "memory"}


def moved_to(target: str) -> Callable[[Any], Any]:
    """How a named CUDA device is renamed.

    Args:
        target: torch's name of the device that takes CUDA's place.

    Returns:
        A function from whatever names a device (string, index, torch.device) to the device that is meant.
    """
    import torch

    def move(device: Any) -> Any:
        if isinstance(device, int) and not isinstance(device, bool):
            device = f"cuda:{device}"
        if device is None or not str(device).startswith("cuda"):
            return device
        return torch.device(target if target == "cpu" else str(device).replace("cuda", target))

    return move


def _redirect_tensors(target: str) -> None:
    """Send every tensor meant for a CUDA device to the target, whichever way the device was named."""
    import torch
    from torch.overrides import TorchFunctionMode

    move = moved_to(target)

    class TargetInsteadOfCuda(TorchFunctionMode):  # type: ignore[misc]
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            kwargs = dict(kwargs or {})
            if func is torch.Tensor.cuda:
                named = args[1] if len(args) > 1 else kwargs.get("device")
                return args[0].to(move("cuda" if named is None else named))
            if func is torch.Tensor.pin_memory:
                return args[0]
            if func is torch.Tensor.type and len(args) == 1 and not kwargs:
                # InternEvo sorts gradients into buckets by this name, and reduces none of a type that it does not know.
                return f"torch.cuda.{func(*args).rsplit('.', 1)[1]}"
            if func is torch.Tensor.to and len(args) > 1:
                args = (args[0], move(args[1]), *args[2:])
            if "device" in kwargs:
                kwargs["device"] = move(kwargs["device"])
            return func(*args, **kwargs)

    # Entered for good: the process has no other device.
    TargetInsteadOfCuda().__enter__()


def _redirect_autocast(target: str) -> None:
    import torch

    begin = torch.autocast.__init__

    def init(self: Any, device_type: str, *args: Any, **kwargs: Any) -> None:
        begin(self, target if device_type == "cuda" else device_type, *args, **kwargs)

    torch.autocast.__init__ = init


def _redirect_loading(target: str) -> None:
    """A checkpoint's tensors go to the target where the program names a CUDA device; names are all that it knows."""
    import torch

    load, move = torch.load, moved_to(target)

    def load_to_target(f: Any, map_location: Any = None, *args: Any, **kwargs: Any) -> Any:
        if isinstance(map_location, (str, torch.device)):
            map_location = move(map_location)
        return load(f, map_location, *args, **kwargs)

    torch.load = load_to_target


def _tensor_constructor(dtype: Any) -> Any:
    import torch

    return lambda values, device=None: torch.tensor(values, dtype=dtype, device="cuda")


def _redirect_collectives(backend: str) -> None:
    import torch.distributed as dist

    create, create_group = dist.init_process_group, dist.new_group

    def init_process_group(*args: Any, **kwargs: Any) -> Any:
        kwargs.pop("backend", None)
        return create(backend, *args[1:], **kwargs)

    def new_group(*args: Any, **kwargs: Any) -> Any:
        if kwargs.get("backend") == "nccl":
            kwargs["backend"] = backend
        return create_group(*args, **kwargs)

    dist.init_process_group = init_process_group
    dist.new_group = new_group
    gather = dist.all_gather_into_tensor

    def all_gather_into_tensor(output: Any, input_: Any, *args: Any, **kwargs: Any) -> Any:
        # gloo wants both tensors of the same rank.
        return gather(output.view(-1), input_.reshape(-1), *args, **kwargs)

    if backend == "gloo":
        dist.all_gather_into_tensor = all_gather_into_tensor
