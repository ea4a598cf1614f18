"""Prediction: probabilities at each image's true size, with test-time augmentation, stored as integer codes."""

from masksmith.prediction.codes import MeanCodes, code_of, open_codes, prob_of, to_codes
from masksmith.prediction.config import PredictionConfig
from masksmith.prediction.predict import predict_batches, predict_probs, write_codes

__all__ = [
    "MeanCodes",
    "PredictionConfig",
    "code_of",
    "open_codes",
    "predict_batches",
    "predict_probs",
    "prob_of",
    "to_codes",
    "write_codes",
]
