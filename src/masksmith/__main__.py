"""``python -m masksmith``."""

from masksmith.cli import main

main()
