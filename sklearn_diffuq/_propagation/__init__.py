"""From the path to logits."""
