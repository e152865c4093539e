"""Residual networks by torchvision's names of their weights."""

import torch
import torch.nn.functional as F

from mdeq import batch_norm, conv
from tensors import gradients


def operations(given):
    weights = given.weights
    parameters = given.parameters()
    small = given.settings["small_images"]
    images, targets = given.inputs["images"], given.inputs["targets"]

    def block(name, x, stride, training):
        y = x
        last = 3 if f"{name}.conv3.weight" in weights else 2
        # The 3x3 convolution strides: the first of two, the second of three.
        for k in range(1, last + 1):
            y = conv(weights, f"{name}.conv{k}", y, stride if k == last - 1 else 1)
            y = batch_norm(weights, f"{name}.bn{k}", y, training)
            y = F.relu(y) if k < last else y
        if f"{name}.downsample.0.weight" in weights:
            x = conv(weights, f"{name}.downsample.0", x, stride)
            x = batch_norm(weights, f"{name}.downsample.1", x, training)
        return F.relu(y + x)

    def network(x, training):
        x = conv(weights, "conv1", x, 1 if small else 2)
        x = F.relu(batch_norm(weights, "bn1", x, training))
        x = x if small else F.max_pool2d(x, 3, 2, 1)
        stage = 1
        while f"layer{stage}.0.conv1.weight" in weights:
            index = 0
            while f"layer{stage}.{index}.conv1.weight" in weights:
                stride = 2 if stage > 1 and index == 0 else 1
                x = block(f"layer{stage}.{index}", x, stride, training)
                index += 1
            stage += 1
        return F.linear(x.mean((2, 3)), weights["fc.weight"], weights["fc.bias"])

    def forward():
        with torch.no_grad():
            return {"output": network(images, False)}

    def step():
        return gradients(F.cross_entropy(network(images, True), targets), parameters)

    return [{"torch": forward}, {"torch": step}]
