"""What the other side handed over, and how outcomes are compared."""

import json
import os

import torch

KINDS = {"F32": torch.float32, "I32": torch.int32}


def load(path):
    """The tensors of a safetensors file, on the device of the comparison."""
    with open(path, "rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        data = bytearray(file.read())
    tensors = {}
    for name, about in header.items():
        if name != "__metadata__":
            begin, end = about["data_offsets"]
            kind = KINDS[about["dtype"]]
            count = (end - begin) // kind.itemsize
            values = torch.frombuffer(data, dtype=kind, offset=begin, count=count)
            tensors[name] = values.view(about["shape"]).to(torch.get_default_device(), copy=True)
    return tensors


class Given:
    """Weights by the original's names, inputs, and settings."""

    def __init__(self, folder):
        with open(os.path.join(folder, "settings.json")) as file:
            self.settings = json.load(file)
        tensors = load(os.path.join(folder, "tensors.safetensors"))
        self.weights, self.inputs = {}, {}
        for name, tensor in tensors.items():
            kind, rest = name.split(".", 1)
            place = self.weights if kind == "weight" else self.inputs
            place[rest] = tensor.long() if tensor.dtype == torch.int32 else tensor

    def parameters(self):
        """The weights to be trained; running statistics stay buffers."""
        buffers = ("running_mean", "running_var", "num_batches_tracked", "inv_freq")
        names = [name for name in self.weights if not name.endswith(buffers)]
        for name in names:
            self.weights[name].requires_grad_()
        return {name: self.weights[name] for name in names}


def gradients(loss, parameters):
    """Goes backward; the outcome has `loss` and `grad.NAME`."""
    found = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
    outcome = {"loss": loss.detach().reshape(1)}
    for name, gradient in zip(parameters, found):
        if gradient is not None:
            outcome["grad." + name] = gradient
    return outcome


def differences(ours, theirs):
    """Relative Euclidean distances: of each output, and of all gradients as one vector."""
    theirs = {name: tensor.detach() for name, tensor in theirs.items()}
    missing = set(ours) ^ set(theirs)
    # What no gradient reaches may be zeros on one side and absent on the other.
    for name in missing:
        tensor = ours.get(name, theirs.get(name))
        if not name.startswith("grad.") or tensor.abs().max() > 0:
            raise ValueError(f"only one side has {name}")
    common = [name for name in ours if name in theirs]
    errors = {}
    square = {"difference": 0.0, "size": 0.0}
    for name in common:
        a, b = ours[name].double().flatten(), theirs[name].double().flatten()
        if a.shape != b.shape:
            raise ValueError(f"{name} has {a.numel()} numbers here and {b.numel()} there")
        difference, size = (a - b).square().sum().item(), b.square().sum().item()
        if name.startswith("grad."):
            square["difference"] += difference
            square["size"] += size
        else:
            errors[name] = (difference / max(size, 1e-300)) ** 0.5
    if square["size"] > 0.0:
        errors["gradient"] = (square["difference"] / square["size"]) ** 0.5
    return errors
