"""``train`` and ``adv-finetune``: eq. (3)."""
