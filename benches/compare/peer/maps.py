"""Solvers on `tanh(z W + x)`: in our own words, and torchdeq's."""

import torch
from torchdeq.solver.anderson import anderson_solver
from torchdeq.solver.broyden import broyden_solver

from solvers import anderson, broyden

# Out of reach.
TOLERANCE = 1e-30


def operations(given):
    steps = given.settings["steps"]
    w = given.inputs["w"]
    found = []
    for batch in given.settings["batches"]:
        x = given.inputs[f"x{batch}"]

        def f(z, x=x):
            return torch.tanh(z @ w + x)

        def maps(f=f, x=x):
            z = torch.zeros_like(x)
            for _ in range(steps):
                z = f(z)
            return z

        def own(solver, f=f, x=x):
            return lambda: solver(f, torch.zeros_like(x), steps)[1]

        # torchdeq's Anderson evaluates twice before its first step, all of it counted; its Broyden
        # once before the steps that it counts.
        def library(solver, count, f=f, x=x):
            return lambda: solver(
                f, torch.zeros_like(x), max_iter=count, tol=TOLERANCE, stop_mode="rel"
            )[0]

        found.append({"torch": output(maps)})
        found.append({
            "torch": output(own(anderson)),
            "torchdeq": output(library(anderson_solver, steps)),
        })
        found.append({
            "torch": output(own(broyden)),
            "torchdeq": output(library(broyden_solver, steps - 1)),
        })
    return found


def output(work):
    def run():
        with torch.no_grad():
            return {"output": work()}

    return run
