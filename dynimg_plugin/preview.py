"""Sheets to look at: the DynImgs of a video side by side, plain or explained. Nothing here is ever fed to a model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from PIL import Image, ImageDraw, ImageFont

from dynimg_plugin.composition import DynImg, FramePlace

GAP, ZOOM, TITLE = 8, 2, 22
YELLOW, WHITE, BLACK, LINES = (255, 221, 0), (255, 255, 255), (0, 0, 0), (120, 120, 120)


class Tile(NamedTuple):
    """One image of a DynImg, and which DynImg of the video it belongs to."""

    dynimg: DynImg
    number: int
    canvas: int


def sheet(dynimgs: Sequence[DynImg], *, annotate: bool = False, patch_size: int | None = None) -> Image.Image:
    """All images of all DynImgs, at most four in a row; with fusion="after" one row per DynImg.

    Args:
        annotate: twice the size, with title, frame borders, slot and time of every frame; yellow = I-frame.
        patch_size: draws the lines of the patch grid when given.
    """
    tiles = [Tile(d, i, canvas) for i, d in enumerate(dynimgs, start=1) for canvas in range(len(d.images))]
    pictures = [_picture(tile, len(dynimgs), annotate, patch_size) for tile in tiles]
    apart = len(dynimgs[0].images)
    columns = apart if apart > 1 else min(len(pictures), 2 if len(pictures) == 4 else 4)
    width, height = pictures[0].width + GAP, pictures[0].height + GAP
    rows = -(-len(pictures) // columns)
    page = Image.new("RGB", (columns * width - GAP, rows * height - GAP), WHITE)
    for i, picture in enumerate(pictures):
        page.paste(picture, (i % columns * width, i // columns * height))
    return page


def _picture(tile: Tile, count: int, annotate: bool, patch_size: int | None) -> Image.Image:
    image = tile.dynimg.images[tile.canvas]
    zoom = ZOOM if annotate else 1
    picture = image.resize((image.width * zoom, image.height * zoom), Image.Resampling.NEAREST)
    if patch_size:
        draw = ImageDraw.Draw(picture)
        for at in range(patch_size * zoom, max(picture.size), patch_size * zoom):
            draw.line([(at, 0), (at, picture.height)], LINES)
            draw.line([(0, at), (picture.width, at)], LINES)
    return _annotated(picture, tile, count) if annotate else picture


def _annotated(picture: Image.Image, tile: Tile, count: int) -> Image.Image:
    font = ImageFont.load_default(size=14)
    page = Image.new("RGB", (picture.width, picture.height + TITLE), BLACK)
    page.paste(picture, (0, TITLE))
    draw = ImageDraw.Draw(page)
    key = tile.dynimg.frames[0]
    kind = "I-frame" if key.is_iframe else "in-between frame"
    draw.text(
        (4, 3), f"DynImg {tile.number}/{count}   key {key.pts_seconds:.2f} s, {kind}   (yellow: I-frame)", WHITE, font
    )
    for frame in tile.dynimg.frames:
        if frame.canvas == tile.canvas:
            _label(draw, frame, font)
    return page


def _label(draw: ImageDraw.ImageDraw, frame: FramePlace, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> None:
    place = frame.rectangle.scaled(ZOOM)
    left, top = place.x, place.y + TITLE
    colour = YELLOW if frame.is_iframe else WHITE
    draw.rectangle([left, top, left + place.w - 1, top + place.h - 1], outline=colour)
    text = f"t={frame.t:+d}  {frame.pts_seconds:.2f} s" if frame.t else f"t=0  {frame.pts_seconds:.2f} s"
    if draw.textlength(text, font) > place.w - 8:  # twelve prompts in a row
        text = f"{frame.t:+d}"
    box = draw.textbbox((left + 4, top + 3), text, font)
    draw.rectangle([box[0] - 3, box[1] - 2, box[2] + 3, box[3] + 2], fill=BLACK)
    draw.text((left + 4, top + 3), text, colour, font)
