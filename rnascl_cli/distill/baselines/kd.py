"""KD: the teacher's softened distribution over the classes (Hinton, Vinyals and Dean 2015).

Shape suffixes: B images, K classes.
"""

from __future__ import annotations

from torch import Tensor

from rnascl_cli.distill.losses import kl_divergence


def soft_label_loss(student_BK: Tensor, teacher_BK: Tensor, *, temperature: float) -> Tensor:
    """Return T^2 KL(q_T || p_T), the mean over the batch; q_T and p_T are softmax(logits / T) of teacher and student.

    Args:
        student_BK: The student's logits.
        teacher_BK: The teacher's logits.
        temperature: T.
    """
    return kl_divergence(student_BK, teacher_BK, direction="teacher-student", temperature=temperature)
