"""Contact sheets: pictures in rows and columns with labels, drawn with Pillow alone."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

from PIL import Image, ImageDraw, ImageFont


READABLE = 128  # pixels: narrower pictures are enlarged to at least this
FONT_SHARE = 18  # a cell is as wide as this many letters are high ...
LEAST_FONT = 14  # ... but letters are never smaller than this many pixels
GAP = 4  # pixels between cells, in units of the smallest font
PAPER, INK = "white", "black"
BREAKS = re.compile(r"[^._+/=,-]+[._+/=,-]*|[._+/=,-]+")

Box = tuple[int, int, int, int]
"""Left, upper, right and lower edge in pixels."""


@dataclass(frozen=True)
class Sheet:
    """Pictures with a label over each column and before each row.

    Attributes:
        cells: Rows of pictures, all rows of the same length. Smaller pictures stand in the middle of their cell.
        columns: One label per column; line breaks are kept and more are made where a label is too wide.
        rows: One label per row.

    Raises:
        ValueError: There are no pictures, or the numbers of cells and labels differ.

    Example:
        >>> Sheet([[first, second]], columns=["plain", "style"], rows=["a heart"]).draw().save("sheet.png")
    """

    cells: Sequence[Sequence[Image.Image]]
    columns: Sequence[str]
    rows: Sequence[str]

    def __post_init__(self) -> None:
        lengths = sorted({len(row) for row in self.cells})
        if not lengths or lengths == [0]:
            raise ValueError("`cells` holds no pictures.")
        if lengths != [len(self.columns)]:
            raise ValueError(
                f"`columns` has {len(self.columns)} labels, but the rows of `cells` have {lengths} pictures."
            )
        if len(self.rows) != len(self.cells):
            raise ValueError(f"`rows` has {len(self.rows)} labels for {len(self.cells)} rows of `cells`.")

    @cached_property
    def factor(self) -> int:
        """How many times larger pictures are shown: a whole number, so that every pixel stays one colour."""
        return max(1, -(-READABLE // self._largest[0]))

    @cached_property
    def cell(self) -> tuple[int, int]:
        """Width and height of a cell in pixels."""
        width, height = self._largest
        return width * self.factor, height * self.factor

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of the sheet in pixels."""
        left, top = self._corner
        return left + len(self.columns) * (self.cell[0] + self._gap), top + sum(h + self._gap for h in self._heights)

    def box(self, row: int, column: int) -> Box:
        """Return where a cell is."""
        left = self._corner[0] + column * (self.cell[0] + self._gap)
        top = self._tops[row] + (self._heights[row] - self.cell[1]) // 2
        return left, top, left + self.cell[0], top + self.cell[1]

    def column_box(self, column: int) -> Box:
        """Return where a column's label is: over its cells."""
        left, _, right, _ = self.box(0, column)
        bottom = self._corner[1] - self._gap
        return left, bottom - len(self._column_lines[column]) * self._line, right, bottom

    def row_box(self, row: int) -> Box:
        """Return where a row's label is: left of its cells, in the middle of their height."""
        height = len(self._row_lines[row]) * self._line
        top = self._tops[row] + (self._heights[row] - height) // 2
        return self._gap, top, self._corner[0] - self._gap, top + height

    def draw(self) -> Image.Image:
        """Draw the sheet, as an RGB picture."""
        canvas = Image.new("RGB", self.size, PAPER)
        for row, pictures in enumerate(self.cells):
            for column, picture in enumerate(pictures):
                canvas.paste(self._enlarged(picture), self._centred(picture, self.box(row, column)))
        pen = ImageDraw.Draw(canvas)
        for box, lines in self._labels():
            for number, line in enumerate(lines):
                room = box[2] - box[0] - self._font.getlength(line)
                pen.text((box[0] + room // 2, box[1] + number * self._line), line, fill=INK, font=self._font)
        return canvas

    def _labels(self) -> Iterator[tuple[Box, list[str]]]:
        for number, lines in enumerate(self._column_lines):
            yield self.column_box(number), lines
        for number, lines in enumerate(self._row_lines):
            yield self.row_box(number), lines

    def _enlarged(self, picture: Image.Image) -> Image.Image:
        size = (picture.width * self.factor, picture.height * self.factor)
        return picture.convert("RGB").resize(size, Image.Resampling.NEAREST)

    def _centred(self, picture: Image.Image, box: Box) -> tuple[int, int]:
        width, height = picture.width * self.factor, picture.height * self.factor
        return box[0] + (self.cell[0] - width) // 2, box[1] + (self.cell[1] - height) // 2

    @cached_property
    def _largest(self) -> tuple[int, int]:
        pictures = [picture for row in self.cells for picture in row]
        return max(picture.width for picture in pictures), max(picture.height for picture in pictures)

    @cached_property
    def _font(self) -> ImageFont.ImageFont | ImageFont.FreeTypeFont:
        return ImageFont.load_default(max(LEAST_FONT, self.cell[0] // FONT_SHARE))

    @cached_property
    def _line(self) -> int:
        # The height of every letter there may be, so that lines with and without tails stand evenly.
        return int(self._font.getbbox("Äqjy|")[3]) + 2

    @cached_property
    def _gap(self) -> int:
        return GAP * max(LEAST_FONT, self.cell[0] // FONT_SHARE) // LEAST_FONT

    @cached_property
    def _column_lines(self) -> list[list[str]]:
        return [wrap(label, self.cell[0], self._font) for label in self.columns]

    @cached_property
    def _row_lines(self) -> list[list[str]]:
        return [wrap(label, self.cell[0], self._font) for label in self.rows]

    @cached_property
    def _corner(self) -> tuple[int, int]:
        """Where the cells begin."""
        label_width = max(
            (round_up(self._font.getlength(line)) for lines in self._row_lines for line in lines), default=0
        )
        label_height = max(map(len, self._column_lines)) * self._line
        return label_width + 2 * self._gap, label_height + 2 * self._gap

    @cached_property
    def _heights(self) -> list[int]:
        return [max(self.cell[1], len(lines) * self._line) for lines in self._row_lines]

    @cached_property
    def _tops(self) -> list[int]:
        top = self._corner[1]
        return [top + sum(self._heights[:row]) + row * self._gap for row in range(len(self.rows))]


def wrap(text: str, width: int, font: ImageFont.ImageFont | ImageFont.FreeTypeFont) -> list[str]:
    """Break text into lines that fit: between words, else after signs as in block names, else between letters.

    Args:
        text: What to break; its own line breaks stay.
        width: In pixels.
        font: What it is written in.

    Returns:
        The lines, of which none is wider than `width`, unless a single letter is.
    """
    lines = []
    for paragraph in text.splitlines():
        line = ""
        for piece in pieces(paragraph, width, font):
            if line and font.getlength((line + piece).rstrip()) > width:
                lines.append(line.rstrip())
                line = ""
            line += piece if line else piece.lstrip()
        lines.append(line.rstrip())
    return lines


def pieces(text: str, width: int, font: ImageFont.ImageFont | ImageFont.FreeTypeFont) -> Iterator[str]:
    """Split text into the parts that must stay together; they add up to the text."""
    for word in re.findall(r"\S+\s*|\s+", text):
        if font.getlength(word.rstrip()) <= width:
            yield word
            continue
        for part in BREAKS.findall(word):
            yield from [part] if font.getlength(part.rstrip()) <= width else part


def round_up(length: float) -> int:
    """Return the next whole number."""
    return -int(-length // 1)
