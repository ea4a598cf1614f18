"""A picture that lies inside of a JSON file of LabelMe (imageData)."""

import base64
import binascii

import numpy as np

from masksmith.core.arrays import Shaped
from masksmith.core.errors import InputError
from masksmith.data.decode.pictures import decode_image
from masksmith.data.documents import parse_json


def decode_embedded(raw: bytes, where: str) -> Shaped[np.ndarray, "n h w c"]:
    """Return the one picture of a JSON file.

    Raises:
        InputError: It has none, or a damaged one.
    """
    value = parse_json(raw, where=where)
    text = value.get("imageData") if isinstance(value, dict) else None
    if not isinstance(text, str):
        raise InputError(f"{where}: no picture in it (imageData); add the image beside it")
    try:
        picture = base64.b64decode(text.encode("ascii"))
    except (binascii.Error, UnicodeEncodeError) as error:
        raise InputError(f"{where}: imageData is no base64 ({error}); export it again") from error
    return decode_image(picture, where=f"{where} (imageData)")[None]
