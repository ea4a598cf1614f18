"""Foreign checkpoints made safe."""

from masksmith.models.convert import convert_checkpoint

__all__ = ["convert_checkpoint"]
