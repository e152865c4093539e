"""Solvers on `tanh(z W + x)`: in our own words, and torchdeq's."""

import torch

try:
    from torchdeq.solver.anderson import anderson_solver
    from torchdeq.solver.broyden import broyden_solver
except ModuleNotFoundError:  # Then our own words stand alone.
    anderson_solver = broyden_solver = None

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
        for solver, theirs, count in (
            (anderson, anderson_solver, steps),
            (broyden, broyden_solver, steps - 1),
        ):
            versions = {"torch": output(own(solver))}
            if theirs:
                versions["torchdeq"] = output(library(theirs, count))
            found.append(versions)
    return found


def output(work):
    def run():
        with torch.no_grad():
            return {"output": work()}

    return run
