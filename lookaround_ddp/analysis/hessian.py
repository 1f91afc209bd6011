"""The largest eigenvalue of a loss's Hessian, by Lanczos with Hessian-vector products."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lookaround_ddp.errors import UserError

MOST_ITERATIONS = 300  # of restarted Lanczos, 20 products each at most


def hessian_vector_product(
    losses: Callable[[], Sequence[Callable[[], Tensor]]], parameters: Sequence[Tensor], vector: Tensor
) -> Tensor:
    """Returns H v, H the Hessian of the sum of these losses: shape (parameters,), fp64, on the CPU.

    Args:
        losses: makes functions, each of which computes one term of the loss with a graph of its own: they are
            differentiated one after the other, so that one of them has to fit into memory at a time.
        vector: as long as all parameters together.
    """
    parts = vector.split([parameter.numel() for parameter in parameters])
    pieces = [part.view_as(own).to(own) for part, own in zip(parts, parameters, strict=True)]
    total = torch.zeros_like(vector, dtype=torch.float64)
    for loss in losses():
        gradients = torch.autograd.grad(loss(), parameters, create_graph=True, allow_unused=True)
        curved = [(own * part).sum() for own, part in zip(gradients, pieces, strict=True) if _depends(own)]
        if not curved:
            continue
        products = torch.autograd.grad(torch.stack(curved).sum(), parameters, materialize_grads=True)
        total += torch.cat([product.detach().flatten().cpu().double() for product in products])
    return total


def _depends(gradient: Tensor | None) -> bool:
    """Returns whether a gradient depends on parameters: not if a parameter is unused, or the loss linear in it."""
    return gradient is not None and gradient.requires_grad


def top_eigenvalue(
    product: Callable[[Tensor], Tensor], size: int, tolerance: float, seed: int
) -> tuple[float, Tensor, int]:
    """Returns the largest eigenvalue of a symmetric operator, its unit eigenvector, and how many products that took.

    Raises:
        UserError: it did not converge, or a product is no number.
    """
    from scipy.sparse.linalg import ArpackNoConvergence, LinearOperator, eigsh

    products = 0

    def multiply(vector: NDArray[np.float64]) -> NDArray[np.float64]:
        nonlocal products
        products += 1
        found = product(torch.from_numpy(np.ascontiguousarray(vector).reshape(-1))).numpy()
        if not np.isfinite(found).all():
            raise UserError("the Hessian has inf or NaN in it: the network's loss is no number, or too large a one")
        return found

    operator = LinearOperator((size, size), matvec=multiply, dtype=np.float64)
    start = np.random.default_rng(seed).standard_normal(size)  # ARPACK's own would differ from call to call
    if not multiply(start).any():  # all eigenvalues are 0, which ARPACK takes for an error
        return 0.0, torch.from_numpy(start / np.linalg.norm(start)), products
    try:
        values, vectors = eigsh(operator, k=1, which="LA", v0=start, tol=tolerance, maxiter=MOST_ITERATIONS)
    except ArpackNoConvergence:
        raise UserError(
            f"the Hessian's eigenvalue did not converge in {products} products: give a larger --tolerance"
        ) from None
    return float(values[0]), torch.from_numpy(np.ascontiguousarray(vectors[:, 0])), products
