"""The implicit layer: a solve without a tape, one recorded evaluation, and a hook that solves the
adjoint equation by products along that recording, as the original program has it.
"""

import torch


def equilibrium(f, start, solver, forward):
    """In evaluation: `f` at the best iterate."""
    with torch.no_grad():
        return solver(f, start, forward)[1]


def trained(f, start, solver, forward, adjoint_solver, backward):
    """In training: the output, the recorded evaluation, and the point where it was made."""
    with torch.no_grad():
        z, _ = solver(f, start, forward)
    z = z.detach().requires_grad_()
    fz = f(z)

    def solve(cotangent):
        def product(u):
            return torch.autograd.grad(fz, z, u, retain_graph=True)[0] + cotangent

        return adjoint_solver(product, cotangent, backward)[0]

    # On a view, so that a penalty on `fz` does not pass through the hook.
    output = fz.view_as(fz)
    output.register_hook(solve)
    return output, fz, z


def penalty(fz, z, probe):
    """`|J^T v|^2 / n`, to be differentiated once more."""
    product = torch.autograd.grad(fz, z, probe, create_graph=True)[0]
    return product.square().sum() / product.numel()
