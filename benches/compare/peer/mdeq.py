"""MDEQ for classification: residual blocks on every branch, fusion of all branches into each."""

import torch
import torch.nn.functional as F

from layer import equilibrium, penalty, trained
from solvers import broyden
from tensors import gradients


def normed(weights, name):
    """A convolution's weight as length times direction."""
    direction, length = weights[name + ".weight_v"], weights[name + ".weight_g"]
    return direction * (length / direction.flatten(1).norm(dim=1).view_as(length))


def batch_norm(weights, name, x, training):
    return F.batch_norm(
        x, weights[name + ".running_mean"], weights[name + ".running_var"],
        weights.get(name + ".weight"), weights.get(name + ".bias"), training,
    )


def conv(weights, name, x, stride=1):
    weight = weights[name + ".weight"]
    return F.conv2d(x, weight, weights.get(name + ".bias"), stride, weight.shape[3] // 2)


class Norm:
    def __init__(self, weights, name, groups):
        self.groups = groups
        self.scale, self.shift = weights.get(name + ".weight"), weights.get(name + ".bias")

    def __call__(self, x):
        return F.group_norm(x, self.groups, self.scale, self.shift)


class Block:
    """Two convolutions with injection between them, around a residual."""

    def __init__(self, weights, name, groups, injection):
        self.conv1 = normed(weights, name + ".conv1")
        self.conv2 = normed(weights, name + ".conv2")
        self.norms = [Norm(weights, f"{name}.gn{k}", groups) for k in (1, 2, 3)]
        self.injection = injection

    def __call__(self, x):
        h = F.relu(self.norms[0](F.conv2d(x, self.conv1, padding=1)))
        h = F.conv2d(h, self.conv2, padding=1)
        if self.injection is not None:
            h = h + self.injection
        return self.norms[2](F.relu(self.norms[1](h) + x))


class Path:
    """From one branch to another: strided 3x3 steps down, or 1x1 and nearest upsampling."""

    def __init__(self, weights, to, source, groups):
        name = f"fullstage.fuse_layers.{to}.{source}.net"
        if source < to:
            names = [f"{name}.{step}" for step in range(to - source)]
        else:
            names = [name]
        self.steps = [
            (weights[name + ".conv.weight"], Norm(weights, name + ".gnorm", groups))
            for name in names
        ]
        self.stride = 2 if source < to else 1
        self.factor = 2 ** max(source - to, 0)

    def __call__(self, x):
        for index, (weight, norm) in enumerate(self.steps):
            x = F.relu(x) if index else x
            x = norm(F.conv2d(x, weight, stride=self.stride, padding=weight.shape[3] // 2))
        return x if self.factor == 1 else F.interpolate(x, scale_factor=float(self.factor))


class Context:
    """The cell with everything that is constant during a solve."""

    def __init__(self, weights, settings, injection):
        count, groups = len(settings["channels"]), settings["groups"]
        self.blocks = [
            Block(weights, f"fullstage.branches.{i}.blocks.0", groups, None if i else injection)
            for i in range(count)
        ]
        self.paths = [
            [None if to == source else Path(weights, to, source, groups) for source in range(count)]
            for to in range(count)
        ]
        names = [f"fullstage.post_fuse_layers.{i}" for i in range(count)]
        self.post = [
            (normed(weights, name + ".conv"), Norm(weights, name + ".gnorm", groups // 2))
            for name in names
        ]

    def __call__(self, maps):
        maps = [block(x) for block, x in zip(self.blocks, maps)]
        fused = []
        for paths, (weight, norm) in zip(self.paths, self.post):
            parts = [x if path is None else path(x) for path, x in zip(paths, maps)]
            total = parts[0]
            for part in parts[1:]:
                total = total + part
            fused.append(norm(F.conv2d(F.relu(total), weight)))
        return fused


class Model:
    def __init__(self, weights, settings):
        self.weights, self.settings = weights, settings

    def stem(self, x, training):
        w, times = self.weights, self.settings["downsample_times"]
        for (first, second), least in ((("downsample.0", "downsample.1"), 1),
                                       (("downsample.3", "downsample.4"), 2)):
            x = conv(w, first, x, stride=2 if times >= least else 1)
            x = F.relu(batch_norm(w, second, x, training))
        if "stage0.0.weight" in w:
            x = F.relu(batch_norm(w, "stage0.1", conv(w, "stage0.0", x), training))
        return x

    def shapes(self, injection):
        batch, _, height, width = injection.shape
        return [
            (batch, channels, height >> level, width >> level)
            for level, channels in enumerate(self.settings["channels"])
        ]

    def head(self, maps, training):
        w = self.weights
        wide = [self.bottleneck(f"incre_modules.{i}.0", x, training) for i, x in enumerate(maps)]
        total = wide[0]
        for i, own in enumerate(wide[1:]):
            name = f"downsamp_modules.{i}"
            down = batch_norm(w, name + ".1", conv(w, name + ".0", total, stride=2), training)
            total = own + F.relu(down)
        x = batch_norm(w, "final_layer.1", conv(w, "final_layer.0", total), training)
        return F.linear(F.relu(x).mean((2, 3)), w["classifier.weight"], w["classifier.bias"])

    def bottleneck(self, name, x, training):
        w, y = self.weights, x
        for k in (1, 2, 3):
            y = batch_norm(w, f"{name}.bn{k}", conv(w, f"{name}.conv{k}", y), training)
            y = F.relu(y) if k < 3 else y
        if name + ".downsample.0.weight" in w:
            x = conv(w, name + ".downsample.0", x)
            x = batch_norm(w, name + ".downsample.1", x, training)
        return F.relu(y + x)


def join(maps):
    return torch.cat([x.flatten(1) for x in maps], dim=1)


def split(rows, shapes):
    sizes = [shape[1] * shape[2] * shape[3] for shape in shapes]
    return [part.reshape(shape) for part, shape in zip(rows.split(sizes, dim=1), shapes)]


def operations(given):
    settings = given.settings
    parameters = given.parameters()
    model = Model(given.weights, settings)
    images, targets = given.inputs["images"], given.inputs["targets"]
    probe = join([given.inputs[f"probe{i}"] for i in range(len(settings["channels"]))])

    def prepared(training):
        injection = model.stem(images, training)
        shapes = model.shapes(injection)
        cell = Context(given.weights, settings, injection)
        return (lambda rows: join(cell(split(rows, shapes)))), shapes

    def forward():
        with torch.no_grad():
            f, shapes = prepared(False)
            out = equilibrium(f, torch.zeros_like(probe), broyden, settings["forward"])
            return {"output": model.head(split(out, shapes), False)}

    def step(with_penalty):
        def run():
            f, shapes = prepared(True)
            output, fz, at = trained(
                f, torch.zeros_like(probe), broyden, settings["forward"],
                broyden, settings["backward"],
            )
            loss = F.cross_entropy(model.head(split(output, shapes), True), targets)
            if with_penalty:
                loss = loss + settings["penalty_weight"] * penalty(fz, at, probe)
            return gradients(loss, parameters)

        return run

    return [{"torch": work} for work in (forward, step(False), step(True))]
