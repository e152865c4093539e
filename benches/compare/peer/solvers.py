"""Anderson's and Broyden's methods on rows `[batch, dim]`, after the formulas of the original
program: one small problem, one low-rank inverse a sample; the batch as a whole is tested, once a
step, and its best iterate is kept. A solve is `steps` evaluations of `f`.
"""

import torch


class Best:
    """The iterate of the smallest residual of the whole batch."""

    def __init__(self):
        self.residual, self.z, self.fz = float("inf"), None, None

    def see(self, z, fz):
        residual = ((fz - z).norm() / (fz.norm() + 1e-9)).item()
        if residual < self.residual or self.z is None:
            self.residual, self.z, self.fz = residual, z, fz


def anderson(f, z, steps, window=6, ridge=1e-4, relative=False):
    """`alpha = argmin |sum alpha_i g_i|^2 + ridge |alpha|^2` with a sum of 1; the next point is
    `sum alpha_i f(z_i)`. A relative ridge is one of the diagonal."""
    batch, dim = z.shape
    points = z.new_zeros(batch, window, dim)
    values = z.new_zeros(batch, window, dim)
    # The equations of the minimum with a multiplier for the sum.
    system = z.new_zeros(batch, window + 1, window + 1)
    system[:, 0, 1:] = 1.0
    system[:, 1:, 0] = 1.0
    right = z.new_zeros(batch, window + 1, 1)
    right[:, 0] = 1.0
    best = Best()
    for step in range(steps):
        slot = step % window
        fz = f(z)
        points[:, slot], values[:, slot] = z, fz
        best.see(z, fz)
        if step + 1 == steps:
            break
        count = min(step + 1, window)
        residuals = values[:, :count] - points[:, :count]
        gram = torch.bmm(residuals, residuals.transpose(1, 2))
        if relative:
            gram = gram + torch.diag_embed(gram.diagonal(dim1=1, dim2=2) * ridge)
            # The multiplier's rows are of the size of the rest.
            scale = gram.diagonal(dim1=1, dim2=2).mean(1).clamp_min(1e-30)[:, None, None]
            gram = gram / scale
        else:
            gram = gram + ridge * torch.eye(count)
        system[:, 1 : count + 1, 1 : count + 1] = gram
        solution = torch.linalg.solve(
            system[:, : count + 1, : count + 1], right[:, : count + 1]
        )
        weights = solution[:, 1:, 0]
        z = torch.bmm(weights[:, None], values[:, :count])[:, 0]
    return best.z, best.fz


def broyden(f, z, steps):
    """The good update of `B = -I + U V^T`, the inverse Jacobian of `g = f - id`."""
    batch, dim = z.shape
    u = z.new_zeros(batch, dim, steps)
    v = z.new_zeros(batch, steps, dim)

    def times(rank, x):
        along = torch.einsum("bkd,bd->bk", v[:, :rank], x)
        return torch.einsum("bdk,bk->bd", u[:, :, :rank], along) - x

    def transposed(rank, x):
        along = torch.einsum("bdk,bd->bk", u[:, :, :rank], x)
        return torch.einsum("bkd,bk->bd", v[:, :rank], along) - x

    best = Best()
    fz = f(z)
    g = fz - z
    best.see(z, fz)
    move = g
    for rank in range(steps - 1):
        z = z + move
        fz = f(z)
        change = fz - z - g
        g = g + change
        best.see(z, fz)
        if rank + 2 == steps:
            break
        row = transposed(rank, move)
        column = (move - times(rank, change)) / (row * change).sum(1, keepdim=True)
        u[:, :, rank] = column.nan_to_num(0.0)
        v[:, rank] = row.nan_to_num(0.0)
        move = -times(rank + 1, g)
    return best.z, best.fz
