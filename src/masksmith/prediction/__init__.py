"""Prediction: probabilities at each image's true size, with test-time augmentation, stored as 16-bit codes."""
