"""Adversarial attacks on any module that maps images in [0, 1] to logits."""
