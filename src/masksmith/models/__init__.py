"""Models: encoders and decoders of the field's libraries behind one interface.

A model is ``forward(image, scalars=None) -> Output``; it declares its divisor, and its mean and standard
deviation travel with the weights. Read ``segmentation.py`` first; ``config.py`` and ``architectures.py``, what a
recipe can say of a model, import no torch.
"""
