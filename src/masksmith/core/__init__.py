"""What every package needs: errors, files, configuration, randomness, progress, stopping. Imports no torch."""
