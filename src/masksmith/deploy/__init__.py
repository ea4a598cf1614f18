"""What is done with a trained model without its project: the bundle, and segmenting new images with it."""
