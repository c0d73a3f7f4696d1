"""Optimal brain surgeon for whole columns, or groups of them, of one weight matrix. Tensors in, tensors out.

All arithmetic is in float64, as the inverse of a Hessian loses digits with every column that is taken out of it.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from prune_lab.errors import NotPositiveDefinite
from prune_lab.pruning.solvers.least_squares import refit

_PANEL = 64
_FEW_ZEROS = 1024  # of a row: so many are corrected for by a system of that size, more would take longer than `refit`


@dataclass(frozen=True)
class Elimination:
    """The order in which groups of columns go.

    Attributes:
        order: ``(removed,)`` int64, the groups, the first to go first.
        losses: ``(removed,)`` float64, by how much each raises ``tr((W - V) H (W - V)^T)`` when the others have made up
            for it, given those before it.
    """

    order: Tensor
    losses: Tensor


def damped(hessian: Tensor, damping: float) -> Tensor:
    """A Hessian ``(in, in)`` in float64 with ``damping`` times its mean on the diagonal, the mean of live inputs.

    The diagonal of a dead input would be zero, and is that mean, too; nothing that is done to its column changes an
    output, so that its loss is none: see `dead_inputs`.
    """
    matrix = hessian.double()
    if matrix is hessian:
        matrix = matrix.clone()
    diagonal = matrix.diagonal()
    dead = dead_inputs(hessian)
    mean = diagonal[~dead].mean() if bool((~dead).any()) else diagonal.new_ones(())
    diagonal[dead] = mean
    diagonal += damping * mean
    return matrix


def dead_inputs(hessian: Tensor) -> Tensor:
    """Which inputs are zero in all of the text, ``(in,)`` bool: columns that cost nothing, whatever their weights."""
    return hessian.diagonal() <= 0


def eliminate(
    weight: Tensor, hessian: Tensor, group: int, removed: int, together: int = 1, parts: int = 1
) -> Elimination:
    """Removes groups of columns one after the other, each time the one whose loss makes the least error.

    With ``C`` the inverse Hessian of the columns that are left, removing the group S and moving the other weights to
    where the output error is least raises it by ``tr(W_S [C_SS]^-1 W_S^T)``. The weights then are
    ``W - W_S [C_SS]^-1 C_S``, and ``C`` becomes ``C - C_S^T [C_SS]^-1 C_S``. Of the weights only ``W^T W`` is needed
    to say which is next.

    Args:
        weight: ``(out, in)``, any float type.
        hessian: ``(in, in)`` float64, positive definite; from `damped`.
        group: consecutive columns that go together: 1 for neurons, those that read a head for heads.
        removed: how many groups go, fewer than there are.
        together: with a group of 1, so many columns go before the losses of the others are found anew: those with the
            lowest, as in OSSCAR.
        parts: of equally many groups, side by side, each of which loses one before another loses its next; with more
            than one ``together`` is without effect.

    Returns:
        The order; a shorter removal is the beginning of a longer one.

    Raises:
        NotPositiveDefinite: the Hessian is not.

    Source: ZipLM (Kurtic, Frantar and Alistarh, 2023, arXiv:2302.04089), as in the code of DarwinLM (Tang et al., 2025,
    arXiv:2502.07780), which updates the weights and the whole inverse for each column; here single columns are
    eliminated in panels, as a pivoted Cholesky factorisation would, which gives the same order. Several together:
    OSSCAR (Meng, Ibrahim, Behdin, Hazimeh, Ponomareva and Mazumder, 2024, arXiv:2403.12983).
    """
    columns = weight.double()
    gram = columns.T @ columns  # (in, in)
    inverse = _inverse(hessian)
    if group == 1 and parts == 1:
        return _eliminate_columns(gram, inverse, removed, together)
    return _eliminate_groups(gram, inverse, group, removed, parts)


def refit_columns(weight: Tensor, hessian: Tensor, keep: Tensor, zero: Tensor | None = None) -> Tensor:
    """``argmin tr((W - V) H (W - V)^T)`` over all ``V`` whose columns outside ``keep`` are zero.

    ``V_K = W H_K [H_KK]^-1``: one factorisation for all rows, from the weight as it was, so that nothing depends on the
    order in which columns went. Rows with single zeros that stay are corrected for these by the inverse of ``H_KK``,
    exactly; only where a row has more than 1,024 of them it is fitted by `refit` instead.

    Args:
        weight: ``(out, in)``, any float type.
        hessian: ``(in, in)`` float64, positive definite.
        keep: ``(in,)`` bool, at least one.
        zero: ``(out, in)`` bool, where the weight is zero and stays so; ``None``: nowhere.

    Returns:
        ``(out, in)`` float64, exactly zero outside.

    Raises:
        NotPositiveDefinite: the part of the Hessian that is kept is not.
    """
    kept = keep.nonzero().flatten()
    solution = torch.zeros(weight.shape, dtype=torch.float64, device=weight.device)
    # the weights that stay need no product: what is solved for is how they change for those that go
    gone = (~keep).nonzero().flatten()
    columns = weight.double()
    solution[:, kept] = columns[:, kept]
    if not len(gone):
        return solution
    coupling = columns[:, gone] @ hessian[gone[:, None], kept]  # (out, kept)
    factor = cholesky(hessian[kept[:, None], kept])
    solution[:, kept] += torch.cholesky_solve(coupling.T, factor).T
    if zero is None or not bool((zero & keep).any()):
        return solution
    fixed = zero[:, kept]  # (out, kept)
    numbers = fixed.count_nonzero(1)
    inverse = torch.cholesky_inverse(factor)
    for row in ((numbers > 0) & (numbers <= _FEW_ZEROS)).nonzero().flatten().tolist():
        held = fixed[row].nonzero().flatten()
        multipliers = torch.linalg.solve(inverse[held[:, None], held], solution[row, kept[held]])
        solution[row, kept] -= inverse[:, held] @ multipliers
        solution[row, kept[held]] = 0
    many = numbers > _FEW_ZEROS
    if bool(many.any()):
        solution[many] = refit(columns[many], keep & ~zero[many], hessian, damping=0.0)
    return solution


def cholesky(matrix: Tensor) -> Tensor:
    """The lower factor of a positive definite matrix.

    Raises:
        NotPositiveDefinite: it is not.
    """
    factor: Tensor
    factor, info = torch.linalg.cholesky_ex(matrix)
    if int(info) or not bool(torch.isfinite(factor.diagonal()).all()):
        raise NotPositiveDefinite("the Hessian is not positive definite with this damping")
    return factor


def _inverse(matrix: Tensor) -> Tensor:
    return torch.cholesky_inverse(cholesky(matrix))


def _eliminate_columns(gram: Tensor, inverse: Tensor, removed: int, together: int) -> Elimination:
    """Eliminates single columns; updates of the matrices wait until a panel of them is full, those of diagonals do not.

    After the eliminations k of a panel the inverse is ``C - sum a_k a_k^T`` with ``a = c_j / sqrt(c_jj)``, and
    ``W^T W`` is ``M - sum (p_k u_k^T + u_k p_k^T)`` with ``u = c_j / c_jj`` and ``p = m_j - m_jj u / 2``, where
    ``c_j`` and ``m_j`` are rows as they are when column j goes. Of several columns together, ``c_jj`` and ``m_jj`` are
    square blocks, and the root is a Cholesky factor.
    """
    width, together = len(gram), max(1, min(together, removed))  # no room for more than can go
    panel = max(_PANEL, together)
    of_inverse, of_gram = inverse.diagonal().clone(), gram.diagonal().clone()
    gone = torch.zeros(width, dtype=torch.bool, device=gram.device)
    order = torch.empty(removed, dtype=torch.int64, device=gram.device)
    losses = gram.new_empty(removed)
    scaled = gram.new_zeros(panel, width)  # a
    halves, units = gram.new_zeros(2, panel, width)  # p, u
    filled = 0
    for done in range(0, removed, together):
        number = min(together, removed - done)
        if filled + number > panel:
            a, p, u = scaled[:filled], halves[:filled], units[:filled]
            inverse.addmm_(a.T, a, alpha=-1)
            gram.addmm_(p.T, u, alpha=-1).addmm_(u.T, p, alpha=-1)
            filled = 0
        scores = (of_gram / of_inverse).masked_fill_(gone, torch.inf)
        index = scores.argmin()[None] if number == 1 else scores.argsort(stable=True)[:number]
        gone[index] = True
        a, p, u = scaled[:filled], halves[:filled], units[:filled]
        rows = torch.addmm(inverse[index], a[:, index].T, a, alpha=-1)  # c_j
        products = torch.addmm(gram[index], u[:, index].T, p, alpha=-1).addmm_(p[:, index].T, u, alpha=-1)  # m_j
        block, own = rows[:, index], products[:, index]
        now, batch = slice(filled, filled + number), slice(done, done + number)
        if number == 1:
            losses[batch] = scores[index]
            torch.div(rows, block.sqrt(), out=scaled[now])
            torch.div(rows, block, out=units[now])
        else:
            factor = cholesky(block)
            losses[batch] = _both_sides(factor, own).diagonal()
            scaled[now] = torch.linalg.solve_triangular(factor, rows, upper=False)
            units[now] = torch.cholesky_solve(rows, factor)
        torch.addmm(products, own, units[now], alpha=-0.5, out=halves[now])
        of_inverse -= scaled[now].square().sum(0)
        of_gram -= 2 * (halves[now] * units[now]).sum(0)
        order[batch], filled = index, filled + number
    return Elimination(order, losses.clamp_min_(0))


def _both_sides(factor: Tensor, matrix: Tensor) -> Tensor:
    """``L^-1 M L^-T`` of a symmetric matrix: what is lost by one column after the other of a block is its diagonal."""
    half = torch.linalg.solve_triangular(factor, matrix, upper=False)
    whole: Tensor = torch.linalg.solve_triangular(factor, half.T, upper=False)
    return whole


def _eliminate_groups(gram: Tensor, inverse: Tensor, group: int, removed: int, parts: int) -> Elimination:
    """Eliminates groups of consecutive columns; there are few of them."""
    count = len(gram) // group
    of_part = torch.arange(parts, device=gram.device).repeat_interleave(count // parts)
    gone = torch.zeros(parts, dtype=torch.int64, device=gram.device)  # of each
    alive = torch.ones(count, dtype=torch.bool, device=gram.device)
    order = torch.empty(removed, dtype=torch.int64, device=gram.device)
    losses = gram.new_empty(removed)
    for step in range(removed):
        left = (alive & (gone == step // parts)[of_part]).nonzero().flatten()
        blocks = inverse.view(count, group, count, group)[left, :, left]  # (left, group, group)
        products = gram.view(count, group, count, group)[left, :, left]
        scores = torch.linalg.solve(blocks, products).diagonal(dim1=-2, dim2=-1).sum(-1)
        best = scores.argmin()
        index = int(left[best])
        order[step], losses[step] = index, scores[best].clamp_min(0)
        part = slice(index * group, (index + 1) * group)
        update = torch.linalg.solve(blocks[best], inverse[part])  # (group, in)
        mixed, own = gram[:, part] @ update, update.T @ gram[part, part]
        gram.sub_(mixed).sub_(mixed.T).addmm_(own, update)
        inverse.addmm_(inverse[:, part].clone(), update, alpha=-1)
        alive[index] = False
        gone[of_part[index]] += 1
        # what is left of the rows and columns that went is rounding
        for matrix in (gram, inverse):
            matrix[part] = 0
            matrix[:, part] = 0
        inverse.diagonal()[part] = 1
    return Elimination(order, losses)
