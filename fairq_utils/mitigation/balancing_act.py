"""No group may lose much more accuracy than all do: a constraint with multipliers."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fairq_utils.errors import BadInput
from fairq_utils.mitigation.group_facts import (
    GroupFacts,
    group_means,
    image_losses,
    refuse_number,
    refuse_smoothing,
    two_logits,
)

MEMORY = 40  # predictions of a group from which its accuracy is estimated


def affordable_memory(sizes: Iterable[int]) -> int:
    """:data:`MEMORY`, or as many predictions as the smallest group has images."""
    return min(MEMORY, *sizes)


class BalancingAct(nn.Module):
    r"""Bounds on every group's excess loss of accuracy against FP32.

    Hashemizadeh et al. 2024 (ICLR, arXiv 2310.20673), there for pruning: minimise the loss such
    that for every group g the excess accuracy gap stays within a tolerance,

    .. math:: \psi_g = (A^{fp32}_g - A^q_g) - (A^{fp32} - A^q) \le \epsilon,

    by descent on the weights and ascent on multipliers of a Lagrangian. Accuracies have no
    gradient, so the two players look at different things::

        lambda_g <- max(0, lambda_g + dual_rate (psi_g - epsilon))
        loss      = L + sum_g lambda_g (L_g - L)

    with L the cross-entropy of the batch and L_g that of the group in it (a group that is not in it
    contributes nothing). psi_g comes from the last ``memory`` predictions on each group.

    As in the paper: the constraint, the loss gaps as its proxy for the weights, predictions kept of
    each group, reference accuracies on all training images; and as in its published code: the
    multipliers start at 0, move once per batch by plain gradient ascent and before the weights do,
    and only those of groups whose memory is full; they are never restarted at 0.

    Not as there: the accuracy of all is the mean of the groups' weighted by their shares of the
    training images, where the published code weights full memories alike (the two agree for groups
    of one size); the weights follow the optimiser of :func:`fairq_utils.training.loop.optimise`,
    with its clipped gradient; what is compressed is the number of bits.

    The bound is on training images; the authors report that it need not hold on others.

    Parameters
    ----------
    facts : GroupFacts
        With the accuracies of the FP32 reference.
    tolerance : fraction, epsilon
    dual_rate : float
        Step of the ascent, per unit of accuracy: 5 points too much, 100 batches long, raise a
        multiplier by ``5 * dual_rate``.
    memory : int
        Predictions kept of each group.
    label_smoothing : float

    Attributes
    ----------
    multipliers : lambda (G,), a buffer

    Raises
    ------
    BadInput
        A negative number, or a group with fewer images than ``memory``.
    """

    def __init__(
        self,
        facts: GroupFacts,
        *,
        tolerance: float = 0.01,
        dual_rate: float = 0.1,
        memory: int = MEMORY,
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__()
        refuse_number("BalancingAct: tolerance", tolerance)
        refuse_number("BalancingAct: dual_rate", dual_rate, positive=True)
        refuse_number("BalancingAct: memory", memory, positive=True)
        refuse_smoothing(label_smoothing)
        for name, size in zip(facts.names, facts.sizes, strict=True):
            if size < memory:
                raise BadInput(
                    f"BalancingAct: the group {name.replace('|', ' ')!r} has {size} images, and "
                    f"its accuracy is estimated from memory={memory} predictions; lower memory, or "
                    "add images of it"
                )
        self.names = facts.names
        self.tolerance, self.dual_rate, self.memory = tolerance, dual_rate, memory
        self.label_smoothing = label_smoothing
        count = len(facts.names)
        self.multipliers: Tensor
        self.reference: Tensor
        self.shares: Tensor
        self.answers: Tensor
        self.seen: Tensor
        self.register_buffer("multipliers", torch.zeros(count))
        self.register_buffer("reference", torch.tensor(facts.accuracies))
        self.register_buffer("shares", torch.tensor(facts.shares))
        self.register_buffer("answers", torch.zeros(count, memory))  # 1 where right
        self.register_buffer("seen", torch.zeros(count, dtype=torch.int64))

    def forward(self, logits: Tensor, labels: Tensor, groups: Tensor) -> Tensor:
        """The Lagrangian of a batch, a scalar; in training mode, multipliers move first."""
        losses = image_losses(logits, labels, self.label_smoothing)
        if self.training:
            with torch.no_grad():
                self._remember(two_logits(logits).argmax(dim=1) == labels, groups)
                self._ascend()
        loss = losses.mean()
        means, images = group_means(losses, groups, len(self.names))
        return loss + (self.multipliers * (means - loss) * (images > 0)).sum()

    @property
    def ready(self) -> Tensor:
        """Groups whose memory is full, bool (G,)."""
        return self.seen >= self.memory

    def excess(self) -> Tensor:
        """Excess accuracy gaps psi (G,), fractions; among groups that are ready, NaN for others."""
        gaps = self.reference - self.answers.mean(dim=1)
        shares = self.shares * self.ready
        overall = (gaps * shares).sum() / shares.sum()
        return torch.where(self.ready, gaps - overall, torch.nan)

    def _ascend(self) -> None:
        step = (self.excess() - self.tolerance).nan_to_num(0.0)
        self.multipliers = (self.multipliers + self.dual_rate * step).clamp(min=0)

    def _remember(self, right: Tensor, groups: Tensor) -> None:
        """Put predictions into each group's ring, the oldest out."""
        groups = groups.long()
        members = F.one_hot(groups, len(self.names))
        arrived = members.sum(dim=0)
        rank = (members.cumsum(dim=0) * members).sum(dim=1) - 1  # among its group in the batch
        place = (self.seen[groups] + rank) % self.memory
        kept = rank >= arrived[groups] - self.memory  # of more than fit, the last
        self.answers[groups[kept], place[kept]] = right[kept].float()
        self.seen = self.seen + arrived
