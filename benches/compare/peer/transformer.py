"""The DEQ-Transformer's cell, penalty and training step."""

import torch

from cell import Model
from layer import equilibrium, penalty, trained
from solvers import anderson, broyden
from tensors import gradients


def forward_solver(f, z, steps):
    return anderson(f, z, steps, relative=True)


def operations(given):
    settings, inputs = given.settings, given.inputs
    parameters = given.parameters()
    # The output layer shares the tables of the embedding, and its projections but the first.
    for name in list(parameters):
        shared = name.startswith("crit.out_projs.") and name != "crit.out_projs.0.weight"
        if shared or (name.startswith("crit.out_layers.") and name.endswith(".weight")):
            parameters.pop(name)
    model = Model(given.weights, settings["cutoffs"])
    tokens, targets = inputs["tokens"], inputs["targets"]
    z, probe = inputs["z"], inputs["probe"]
    memory = (inputs["memory_z"], inputs["memory_injection"])
    shape = z.shape

    def context():
        return model.context(model.inject(tokens), *memory)

    with torch.no_grad():
        constant = context()

    def rows(f):
        return lambda flat: f(flat.view(shape)).flatten(1)

    def evaluate():
        with torch.no_grad():
            return {"output": constant(z)}

    def product():
        at = z.detach().requires_grad_()
        return {"output": torch.autograd.grad(constant(at), at, probe)[0]}

    def penalised():
        f = context()
        at = z.detach().requires_grad_()
        return gradients(penalty(f(at), at, probe), parameters)

    def forward():
        with torch.no_grad():
            start = torch.zeros(shape).flatten(1)
            out = equilibrium(rows(context()), start, forward_solver, settings["forward"])
        return {"output": out.view(shape)}

    def step(with_penalty):
        def run():
            output, fz, at = trained(
                rows(context()), torch.zeros(shape).flatten(1),
                forward_solver, settings["forward"], broyden, settings["backward"],
            )
            loss = model.loss(output.view(shape), targets)
            if with_penalty:
                cost = penalty(fz, at, probe.flatten(1))
                loss = loss + settings["penalty_weight"] * cost
            return gradients(loss, parameters)

        return run

    works = [evaluate, product, penalised, forward, step(False), step(True)]
    return [{"torch": work} for work in works]
