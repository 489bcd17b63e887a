"""A picture of the page for a card: some of its images with their labels, side by side."""

import base64
import io
from typing import Any

from matplotlib.font_manager import findfont
from PIL import Image, ImageDraw, ImageFont

_COLUMNS, _MAX_IMAGES = 6, 24
_SIDE_PX, _CAPTION_PX, _GAP_PX = 150, 22, 8
_FONT_PX, _COLORS = 13, 128


def contact_sheet(page: dict[str, Any]) -> bytes:
    """PNG of at most 24 images, evenly spaced over an exported page, each with its label and confidence; empty if it has no images."""
    shown = [item for item in page["items"] if item["id"] in page["thumbs"] and not item["error"]]
    chosen = (
        [shown[round(place * (len(shown) - 1) / (_MAX_IMAGES - 1))] for place in range(_MAX_IMAGES)] if len(shown) > _MAX_IMAGES else shown
    )
    if not chosen:
        return b""
    font = ImageFont.truetype(findfont("DejaVu Sans"), _FONT_PX)
    columns, rows = min(_COLUMNS, len(chosen)), -(-len(chosen) // _COLUMNS)
    step, height = _SIDE_PX + _GAP_PX, _SIDE_PX + _CAPTION_PX + _GAP_PX
    picture = Image.new("RGB", (columns * step + _GAP_PX, rows * height + _GAP_PX), "white")
    draw = ImageDraw.Draw(picture)
    for place, item in enumerate(chosen):
        left, top = _GAP_PX + place % _COLUMNS * step, _GAP_PX + place // _COLUMNS * height
        with Image.open(io.BytesIO(base64.b64decode(page["thumbs"][item["id"]].partition(",")[2]))) as thumb:
            thumb.thumbnail((_SIDE_PX, _SIDE_PX))
            picture.paste(thumb, (left + (_SIDE_PX - thumb.width) // 2, top + (_SIDE_PX - thumb.height) // 2))
        confidence = "" if item["confidence"] is None else f" {item['confidence']:.0%}"
        draw.text((left, top + _SIDE_PX + 4), _fit_caption(item["label"] or "", confidence, font), "black", font)
    content = io.BytesIO()
    picture.quantize(_COLORS).save(content, "PNG", optimize=True)
    return content.getvalue()


def _fit_caption(label: str, confidence: str, font: ImageFont.FreeTypeFont) -> str:
    """A caption, cut to the width of its image."""
    label = " ".join(label.split())
    if font.getlength(label + confidence) <= _SIDE_PX:
        return label + confidence
    while label and font.getlength(f"{label}...{confidence}") > _SIDE_PX:
        label = label[:-1]
    return f"{label}...{confidence}"
