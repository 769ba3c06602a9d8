"""Pictures that say by an ICC profile which colours their numbers mean (phones: Display P3), as sRGB.

The VAE was trained on numbers read as sRGB; to pass over the profile would train paler colours than one sees.
"""

from __future__ import annotations

import io
import logging
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL import Image

log = logging.getLogger(__name__)
SPACES = {"RGB": ("RGB", "RGBA"), "CMYK": ("CMYK",)}  # a profile's colour space: modes of pictures it can be about


def to_srgb(picture: Image.Image) -> Image.Image:
    """The picture in sRGB's numbers and without a profile; itself without one, or with one that cannot be used.

    CMYK with a profile becomes RGB, other modes stay.
    """
    profile = picture.info.get("icc_profile")
    if not profile:
        return picture
    from PIL import ImageCms

    try:
        own = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        space = own.profile.xcolor_space.strip()
        if picture.mode not in SPACES.get(space, ()) or "sRGB" in (own.profile.profile_description or ""):
            return picture
        mode = "RGB" if picture.mode == "CMYK" else picture.mode
        srgb = ImageCms.createProfile("sRGB")
        intent = ImageCms.Intent.RELATIVE_COLORIMETRIC
        alpha = picture.getchannel("A") if picture.mode == "RGBA" else None
        plain = picture.convert("RGB") if alpha is not None else picture
        converted = ImageCms.profileToProfile(plain, own, srgb, intent, outputMode="RGB")
    except (ImageCms.PyCMSError, OSError, ValueError) as error:
        log.warning("the colour profile of a picture cannot be used (%s); its numbers are taken as sRGB", error)
        return picture
    assert converted is not None  # only a conversion in place gives None
    if alpha is not None:
        converted = converted.convert(mode)
        converted.putalpha(alpha)
    converted.info.pop("icc_profile", None)
    return converted
