"""``search`` and ``derive``: eq. (2), and the argmax of its logits."""
