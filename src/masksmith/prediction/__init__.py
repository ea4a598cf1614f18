"""Prediction: probabilities at each image's true size, with test-time augmentation, stored as integer codes."""
