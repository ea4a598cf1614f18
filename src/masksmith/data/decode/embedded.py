"""A picture that lies inside of a JSON file of LabelMe (imageData)."""

import numpy as np

from masksmith.core.arrays import Shaped
from masksmith.core.errors import InputError
from masksmith.data.decode.pictures import decode_image
from masksmith.data.documents import parse_json, unpack_base64


def decode_embedded(raw: bytes, where: str) -> Shaped[np.ndarray, "n h w c"]:
    """Return the one picture of a JSON file.

    Raises:
        InputError: It has none, or a damaged one.
    """
    value = parse_json(raw, where=where)
    try:
        picture = unpack_base64(value.get("imageData") if isinstance(value, dict) else None)
    except ValueError as error:
        raise InputError(f"{where}: imageData is {error}; add the image beside the file") from error
    return decode_image(picture, where=f"{where} (imageData)")[None]
