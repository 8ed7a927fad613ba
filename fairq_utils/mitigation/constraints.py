"""Group-aware objectives: from logits, labels and group codes of a batch to a scalar loss.

Each is made from :class:`~fairq_utils.mitigation.group_facts.GroupFacts` and its hyperparameters
and has no trained parameter: weights of groups and multipliers are buffers, which move with every
forward pass in training mode. A batch may lack groups or labels. Group codes are positions in
``facts.names``; labels are 0 and 1; logits are (B, 2), (B, 1) or (B,). Losses are computed in
float32, also under autocast.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from fairret.loss import NormLoss
from fairret.statistic import FalsePositiveRate, PositiveRate, TruePositiveRate
from torch import Tensor, nn
from torch.nn import functional as F

from fairq_utils.errors import BadInput
from fairq_utils.mitigation.balancing_act import BalancingAct
from fairq_utils.mitigation.group_facts import (
    GroupFacts,
    group_means,
    image_losses,
    mean_loss,
    refuse_number,
    refuse_smoothing,
    two_logits,
)

VANISHING = 1e-20  # what fairret takes for 0


class Plain(nn.Module):
    """Cross-entropy, whatever the groups: the control of the others.

    Parameters
    ----------
    facts : GroupFacts
        Groups, for the constraints that look at them.
    label_smoothing : share of the target spread over both classes
    """

    def __init__(self, facts: GroupFacts, *, label_smoothing: float = 0.0) -> None:
        super().__init__()
        refuse_smoothing(label_smoothing)
        self.names = facts.names
        self.label_smoothing = label_smoothing

    def forward(self, logits: Tensor, labels: Tensor, groups: Tensor) -> Tensor:
        """Mean cross-entropy, a scalar."""
        return mean_loss(logits, labels, self.label_smoothing)


class ParityPenalty(nn.Module):
    r"""Cross-entropy and a penalty on unequal rates of positive predictions (demographic parity).

    .. math:: L + strength \sum_g |\gamma_g / \gamma - 1|

    with :math:`\gamma_g` the mean probability of a positive prediction in group g of the batch and
    :math:`\gamma` that of the batch: fairret's ``NormLoss`` of ``PositiveRate`` (Buyl, Defrance and
    De Bie, ICLR 2024). Groups that are not in the batch are left out of the sum.

    Where base rates differ between groups, as those of smiling do in CelebA, the classifier that
    is always right violates this; at a large strength the penalty asks for that gap too.

    Parameters
    ----------
    facts : GroupFacts
    strength : weight of the penalty
        A relative violation of a tenth in each of four groups adds 0.4 of it to the loss, in nats.
    label_smoothing : float

    Raises
    ------
    BadInput
        A negative strength; in a forward pass, a label other than 0 and 1.
    """

    def __init__(
        self, facts: GroupFacts, *, strength: float = 0.2, label_smoothing: float = 0.0
    ) -> None:
        super().__init__()
        refuse_number("ParityPenalty: strength", strength)
        refuse_smoothing(label_smoothing)
        self.names = facts.names
        self.strength, self.label_smoothing = strength, label_smoothing
        self.rate = NormLoss(PositiveRate())

    def forward(self, logits: Tensor, labels: Tensor, groups: Tensor) -> Tensor:
        """Cross-entropy plus penalty, a scalar."""
        _refuse_labels(labels)
        loss = mean_loss(logits, labels, self.label_smoothing)
        return loss + self.strength * _violation(self.rate, logits, groups, len(self.names))


class OddsPenalty(nn.Module):
    r"""Cross-entropy and a penalty on unequal true and false positive rates (equalized odds).

    .. math:: L + strength \sum_{r \in \{TPR, FPR\}} \sum_g |r_g / r - 1|

    with rates of probabilities, not of predictions, as in :class:`ParityPenalty`. A group without
    an image of the label in the batch has no such rate and is left out of its sum.

    Parameters
    ----------
    facts, strength, label_smoothing : see :class:`ParityPenalty`

    Raises
    ------
    BadInput
        As :class:`ParityPenalty`.
    """

    def __init__(
        self, facts: GroupFacts, *, strength: float = 0.2, label_smoothing: float = 0.0
    ) -> None:
        super().__init__()
        refuse_number("OddsPenalty: strength", strength)
        refuse_smoothing(label_smoothing)
        self.names = facts.names
        self.strength, self.label_smoothing = strength, label_smoothing
        self.rates = nn.ModuleList([NormLoss(TruePositiveRate()), NormLoss(FalsePositiveRate())])

    def forward(self, logits: Tensor, labels: Tensor, groups: Tensor) -> Tensor:
        """Cross-entropy plus penalty, a scalar."""
        _refuse_labels(labels)
        loss = mean_loss(logits, labels, self.label_smoothing)
        for rate in self.rates:
            found = _violation(rate, logits, groups, len(self.names), labels)
            loss = loss + self.strength * found
        return loss


def _violation(
    penalty: NormLoss, logits: Tensor, groups: Tensor, count: int, *labels: Tensor
) -> Tensor:
    """Norm of the relative violations among groups that have the statistic; 0 where it has none."""
    statistic = penalty.statistic
    two = two_logits(logits)
    chance = torch.sigmoid(two[:, 1:] - two[:, :1])
    members = F.one_hot(groups.long(), count).float()
    given = [label.reshape(-1, 1).float() for label in labels]
    # No image of the label, nothing positive at all, or NaN, which the loop reports.
    if not statistic.num(chance, None, *given) >= VANISHING:
        return chance.new_zeros(())
    compared = statistic.denom(chance, members, *given) > 0
    loss: Tensor = penalty(chance, members[:, compared], *given, pred_as_logit=False)
    return loss


def _refuse_labels(labels: Tensor) -> None:
    if bool(((labels != 0) & (labels != 1)).any()):
        other = labels[(labels != 0) & (labels != 1)][0]
        raise BadInput(
            f"constraint: a batch has the label {int(other)}; rates of positive predictions need "
            "the labels 0 and 1, 1 for what counts as positive"
        )


class GroupDRO(nn.Module):
    r"""The worst group's loss, by weights that follow it (group DRO).

    Sagawa et al. 2020 (ICLR, arXiv 1911.08731), Algorithm 1, on batches. With :math:`l_g` the mean
    loss of group g in the batch::

        q_g <- q_g exp(step (l_g + adjustment / sqrt(n_g)))    normalised, then
        loss = sum_g q_g l_g

    over the groups in the batch; the first line is their generalisation adjustment (section 3.3),
    of which the constant has no gradient. The algorithm draws a group first, each as often. Here
    batches come as the data do, so those of a batch share the weight that they had together, and
    the others keep theirs: with all groups in every batch this is the same, and otherwise a rare
    group does not lose weight by being absent.

    The paper crosses label and attribute; give such groups where that is wanted.

    Parameters
    ----------
    facts : GroupFacts
    step : of the exponentiated gradient, eta_q
    adjustment : C, nats; 0 for none
    label_smoothing : float

    Attributes
    ----------
    weights : q (G,), a buffer; uniform at first

    Raises
    ------
    BadInput
        A negative number.
    """

    def __init__(
        self,
        facts: GroupFacts,
        *,
        step: float = 0.01,
        adjustment: float = 0.0,
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__()
        refuse_number("GroupDRO: step", step, positive=True)
        refuse_number("GroupDRO: adjustment", adjustment)
        refuse_smoothing(label_smoothing)
        self.names = facts.names
        self.step, self.label_smoothing = step, label_smoothing
        count = len(facts.names)
        self.weights: Tensor
        self.margins: Tensor
        self.register_buffer("weights", torch.full((count,), 1 / count))
        self.register_buffer("margins", adjustment / torch.tensor(facts.sizes).sqrt())

    def forward(self, logits: Tensor, labels: Tensor, groups: Tensor) -> Tensor:
        """Weighted loss of a batch, a scalar; in training mode, weights move first."""
        losses = image_losses(logits, labels, self.label_smoothing)
        means, images = group_means(losses, groups, len(self.names))
        there = images > 0
        if self.training:
            # In logarithms, because a large step overflows.
            scores = self.weights.clamp(min=VANISHING).log()
            scores = scores + self.step * (means.detach() + self.margins)
            among = scores.masked_fill(~there, -torch.inf).softmax(dim=0)
            held = (self.weights * there).sum()
            self.weights = torch.where(there, held * among, self.weights)
        return (self.weights * means * there).sum()


CONSTRAINTS: dict[str, Callable[..., nn.Module]] = {
    "none": Plain,
    "parity": ParityPenalty,
    "odds": OddsPenalty,
    "group_dro": GroupDRO,
    "balancing_act": BalancingAct,
}
