"""Pictures of scenes: flat figures in a quiet room, drawn with Pillow at any size.

All coordinates are in 64ths of the picture. A picture is drawn four times too large (twice where that is a lot) and
reduced by a box filter, which smooths edges and gives the same pixels everywhere. What a cue looks like depends on
nothing else in the scene, and what a person looks like on nothing but the person.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

from trimtab.errors import MissingExtra, UsageError
from trimtab.roomworld.scene import Person, Scene

if TYPE_CHECKING:
    from PIL.Image import Image

SIZE = 64
"""Pixels a side of what the model is shown."""
UNITS = 64.0

Colour = tuple[int, int, int]


def _rgb(text: str) -> Colour:
    return int(text[0:2], 16), int(text[2:4], 16), int(text[4:6], 16)


def _palette(**named: str) -> dict[str, Colour]:
    return {name: _rgb(text) for name, text in named.items()}


SKIN = _palette(lighter="f2c6a0", darker="7a4a2b")
SHADE = _palette(lighter="d9a47c", darker="5a341c")
"""Of the neck and the ears."""
HAIR = _palette(black="2a2522", brown="6a4426", auburn="a8482a", grey="8f9299")
DYES = _palette(red="cf3f3a", yellow="ecbd35", green="3f944f", blue="3c7fd0", purple="8a4fae")
INK = _rgb("26262c")
TROUSERS = _rgb("4b4f5e")
WHITE = _rgb("fbfbf8")
LINE = _rgb("b8bec6")
STEEL = _rgb("9aa4ae")
WOOD = _rgb("9c6a3c")

ROOM: dict[str, tuple[Colour, Colour, Colour]] = {
    name: (_rgb(wall), _rgb(floor), _rgb(trim))
    for name, wall, floor, trim in (
        ("kitchen", "f3e6c8", "c9a27a", "e2cf9f"),
        ("ward", "dcebf0", "b4c4cc", "bcd8e2"),
        ("workshop", "d8cbbb", "8d8378", "bfae99"),
        ("office", "e4e6ea", "9da3b4", "cdd1d9"),
        ("garden", "cfe8f2", "8fbf78", "a9d3a0"),
        ("studio", "f5dfe0", "d9c3b0", "eac6c9"),
        ("cellar", "b9b3b8", "77727a", "a39ca3"),
        ("hall", "efd9b4", "a8553f", "e0bf86"),
        ("library", "d5c4a8", "7d5a3e", "a98a63"),
        ("street", "d3dde6", "8a8c90", "b58d7a"),
    )
}
"""Wall, floor, and what is set off on the wall."""
FLOOR = 46.0
CENTRES = {1: (31.0,), 2: (18.0, 43.5), 3: (10.4, 30.7, 50.8)}
"""Where people stand: a little to the left, because what they hold is on their right."""
OBJECTS = {"left": 8.0, "middle": 32.0, "right": 56.0}


def draw(scene: Scene | str, size: int = SIZE) -> Image:
    """The scene as an RGB picture of `size` pixels a side, the same bytes at every call.

    Raises UsageError for a text that spells no scene and for a size below 16 or above 4096, MissingExtra without
    Pillow.
    """
    if not 16 <= size <= 4096:
        raise UsageError(f"a picture has 16 to 4096 pixels a side, got {size}")
    scene = Scene.parse(scene) if isinstance(scene, str) else scene
    finer = 4 if size <= 512 else 2
    pen = _Pen(_background(scene.room, size * finer).copy())
    _on_wall(pen, scene)
    pens = [pen.at(c + p.shift) for c, p in zip(CENTRES[len(scene.people)], scene.people, strict=True)]
    for at, person in zip(pens, scene.people, strict=True):
        _person(at, person)
    for at, person in zip(pens, scene.people, strict=True):
        _held(at, person)  # in front of everyone: a neighbour's arm must not hide a cue
    _on_floor(pen, scene)
    return pen.image.reduce(finer)


def box(scene: Scene, index: int) -> tuple[float, float]:
    """Where a person is drawn, tool included: from and to, as shares of the picture's width."""
    middle = CENTRES[len(scene.people)][index] + scene.people[index].shift
    return (middle - 13) / UNITS, (middle + 13) / UNITS


def _pillow() -> Any:
    try:
        from PIL import Image, ImageDraw
    except ImportError as error:
        raise MissingExtra("drawing needs Pillow; run: pip install 'trimtab[vision]'") from error
    return Image, ImageDraw


class _Pen:
    """Draws in 64ths of the picture, around a middle line."""

    def __init__(self, image: Image, middle: float = 0.0) -> None:
        self.image, self.middle = image, middle
        self.scale = image.width / UNITS
        self.ink = _pillow()[1].Draw(image)

    def at(self, middle: float) -> _Pen:
        """The same picture around another middle line."""
        pen = object.__new__(_Pen)
        pen.image, pen.middle, pen.scale, pen.ink = self.image, middle, self.scale, self.ink
        return pen

    def _xy(self, points: tuple[float, ...]) -> list[float]:
        s = self.scale
        return [round((x + self.middle * (i % 2 == 0)) * s) for i, x in enumerate(points)]

    def area(self, colour: Colour, *points: float) -> None:
        """A filled polygon: x, y, x, y, ..."""
        self.ink.polygon(self._xy(points), fill=colour)

    def mirrored(self, colour: Colour, *points: float) -> None:
        """A filled polygon on both sides of the middle line."""
        self.area(colour, *points)
        self.area(colour, *(-x if i % 2 == 0 else x for i, x in enumerate(points)))

    def block(self, colour: Colour, x0: float, y0: float, x1: float, y1: float, radius: float = 0.0) -> None:
        """A filled rectangle, its corners rounded."""
        corners = self._xy((x0, y0, x1, y1))
        corners[2] -= 1
        corners[3] -= 1
        self.ink.rounded_rectangle(corners, radius * self.scale, fill=colour)

    def disk(self, colour: Colour, x: float, y: float, rx: float, ry: float | None = None) -> None:
        """A filled ellipse."""
        ry = rx if ry is None else ry
        self.ink.ellipse(self._xy((x - rx, y - ry, x + rx, y + ry)), fill=colour)

    def arc(
        self, colour: Colour, x: float, y: float, rx: float, ry: float, start: float, end: float, width: float
    ) -> None:
        """Part of an ellipse's outline, degrees clockwise from the right."""
        corners = self._xy((x - rx, y - ry, x + rx, y + ry))
        self.ink.arc(corners, start, end, fill=colour, width=max(1, round(width * self.scale)))

    def stroke(self, colour: Colour, width: float, *points: float) -> None:
        """A line through points, its ends and joints round."""
        xy, r = self._xy(points), width * self.scale / 2
        self.ink.line(xy, fill=colour, width=max(1, round(2 * r)))
        for x, y in zip(xy[::2], xy[1::2], strict=True):
            self.ink.ellipse((x - r, y - r, x + r, y + r), fill=colour)


# ---------------------------------------------------------------------------------------------------------- the room


@cache
def _background(room: str, pixels: int) -> Image:
    wall, floor, trim = ROOM[room]
    pen = _Pen(_pillow()[0].new("RGB", (pixels, pixels), wall))
    if room in ("kitchen", "ward"):  # tiles
        for k in range(1, 8):
            pen.block(trim, 8 * k - 0.25, 0, 8 * k + 0.25, FLOOR)
        for k in range(1, 6):
            pen.block(trim, 0, 8 * k - 0.25, 64, 8 * k + 0.25)
    elif room in ("workshop", "cellar"):  # boards, stones
        for k in range(1, 6):
            pen.block(trim, 0, 8 * k - 0.4, 64, 8 * k + 0.4)
            if room == "cellar":
                for j in range(5):
                    x = 13 * j + (6 if k % 2 else 0)
                    pen.block(trim, x, 8 * k - 8, x + 0.7, 8 * k)
    elif room == "garden":
        pen.disk(trim, 10, FLOOR, 16, 9)
        pen.disk(trim, 36, FLOOR, 18, 12)
        pen.disk(trim, 60, FLOOR, 14, 8)
    elif room == "street":  # a row of houses
        for k, top in enumerate((24, 18, 27, 21)):
            pen.block(trim, 16 * k + 0.5, top, 16 * k + 15.5, FLOOR)
    elif room == "library":
        for y in (16, 26, 36):
            pen.block(trim, 0, y, 64, y + 1.2)
            for k in range(22):
                if (7 * k + y) % 5:
                    pen.block(_mixed(trim, wall, 0.5), 3 * k + 0.4, y - 6 + (k * y) % 3, 3 * k + 2.2, y)
    else:  # office, studio, hall: panels
        for k in range(4):
            pen.block(trim, 16 * k + 1.5, 30, 16 * k + 14.5, FLOOR - 2, 1)
    pen.block(floor, 0, FLOOR, 64, 64)
    pen.block(_mixed(floor, INK, 0.25), 0, FLOOR, 64, FLOOR + 0.7)
    image: Image = pen.image
    return image


def _mixed(a: Colour, b: Colour, share: float) -> Colour:
    red, green, blue = (round(x + (y - x) * share) for x, y in zip(a, b, strict=True))
    return red, green, blue


def _on_wall(pen: _Pen, scene: Scene) -> None:
    at = pen.at(OBJECTS[scene.wall_place])
    if scene.wall == "clock":
        at.disk(INK, 0, 6.5, 5)
        at.disk(WHITE, 0, 6.5, 4)
        at.stroke(INK, 0.9, 0, 3.6, 0, 6.5, 2.2, 7.6)
    elif scene.wall == "window":
        at.block(WHITE, -6.5, 1.5, 6.5, 12.5, 0.5)
        at.block(_rgb("7fc4ea"), -5.5, 2.5, -0.5, 11.5)
        at.block(_rgb("7fc4ea"), 0.5, 2.5, 5.5, 11.5)
    elif scene.wall == "painting":
        at.block(WOOD, -6.5, 2, 6.5, 12)
        at.block(_rgb("f4c76a"), -5.3, 3.2, 5.3, 10.8)
        at.area(_rgb("4f7d5b"), -5.3, 10.8, -1.6, 5.6, 1.2, 9.2, 3, 7.2, 5.3, 10.8)
    else:
        at.block(WOOD, -6.5, 10.5, 6.5, 12)
        for x, colour in ((-5.5, "red"), (-2.9, "blue"), (-0.3, "yellow"), (3.4, "green")):
            at.block(DYES[colour], x, 4.2, x + 2.2, 10.5)


def _on_floor(pen: _Pen, scene: Scene) -> None:
    # Between the people, as far as there is a between, and in front of everyone.
    middle = {2: {"left": 5.5, "middle": 31.0, "right": 58.5}}.get(len(scene.people), OBJECTS)[scene.floor_place]
    at, colour = pen.at(middle), DYES[scene.floor_colour]
    dark = _mixed(colour, INK, 0.35)
    if scene.floor == "ball":
        at.disk(colour, 0, 59.3, 3.7)
        at.arc(WHITE, 0, 59.3, 2.0, 3.6, 90, 270, 0.7)
    elif scene.floor == "box":
        at.block(colour, -4.4, 56.6, 4.4, 63)
        at.block(dark, -4.4, 56.6, 4.4, 58)
        at.block(dark, -0.6, 58, 0.6, 63)
    elif scene.floor == "plant":
        leaf = _rgb("2f6b3a")
        at.stroke(leaf, 1.5, 0, 59, -3.4, 54.6)
        at.stroke(leaf, 1.5, 0, 59, 3.4, 54.6)
        at.stroke(leaf, 1.5, 0, 59, 0, 53)
        at.area(colour, -3.2, 58.6, 3.2, 58.6, 2.3, 63.2, -2.3, 63.2)
    else:
        at.stroke(colour, 1.2, 3.6, 61.6, 5.2, 59.4, 4.6, 57.2)
        at.disk(colour, 0.4, 60.6, 4, 2.5)
        at.disk(colour, -3.4, 57.8, 2.2)
        at.area(colour, -5.4, 57.6, -5.0, 54.6, -3.4, 56.2)
        at.area(colour, -1.4, 57.6, -1.8, 54.6, -3.4, 56.2)
        at.disk(INK, -4.2, 57.6, 0.4)
        at.disk(INK, -2.6, 57.6, 0.4)


# ------------------------------------------------------------------------------------------------------- the people

NAVY = _rgb("2f3a56")
DENIM = _rgb("44608c")
MINT = _rgb("8fd6c8")
ROBE = _rgb("1f1d24")
CREAM = _rgb("f7ecd2")


def _person(pen: _Pen, p: Person) -> None:
    skin, shade, hair, dye = SKIN[p.tone], SHADE[p.tone], HAIR[p.hair], DYES[p.colour]
    woman = p.gender == "woman"
    sleeve = {"coat": WHITE, "suit": NAVY}.get(p.worn or "", dye)
    _hair_behind(pen, p, hair)
    if woman:
        for x in (-2.1, 2.1):
            pen.block(skin, x - 1.1, 48, x + 1.1, 58.4)
            pen.disk(INK, x * 1.15, 58.4, 1.7, 0.95)
    else:
        for x in (-2.5, 2.5):
            pen.block(TROUSERS, x - 2.1, 43, x + 2.1, 58)
            pen.disk(INK, x * 1.1, 58.4, 2.3, 1.0)
    _body(pen, woman, dye)
    _over_body(pen, p, woman)
    _arms(pen, p, skin, sleeve)
    pen.block(shade, -1.6, 27, 1.6, 31.2, 0.8)
    pen.disk(skin, 0, 23.4, 4.7, 5.0)
    _face(pen, p)
    _hair_in_front(pen, p, hair)
    _over_head(pen, p)


def _held(pen: _Pen, p: Person) -> None:
    if p.held is not None:
        _HELD[p.held](pen)
        if p.held not in ("stethoscope", "laptop"):
            pen.disk(SKIN[p.tone], 8.3, 42.2, 1.5)


def _body(pen: _Pen, woman: bool, colour: Colour) -> None:
    if woman:
        pen.area(colour, -4.8, 31, -1.6, 30, 1.6, 30, 4.8, 31, 3.7, 39.5, 8.0, 51, -8.0, 51, -3.7, 39.5)
    else:
        pen.block(colour, -6, 30.2, 6, 45.5, 2)


def _over_body(pen: _Pen, p: Person, woman: bool) -> None:
    if p.worn == "coat":
        pen.mirrored(LINE, -6.6, 30.2, -2.0, 30.2, -1.5, 53.6, -8.2, 53.6)
        pen.mirrored(WHITE, -6.4, 30.0, -2.4, 30.0, -2.0, 53.2, -7.8, 53.2)
        pen.block(LINE, 3.2, 44, 6.2, 44.7)
        pen.block(LINE, -6.2, 44, -3.2, 44.7)
    elif p.worn == "suit":
        pen.mirrored(NAVY, -6.2, 30.0, -3.2, 30.0, -1.0, 40.0, -1.0, 46.5, -6.2, 46.5)
        pen.mirrored(_mixed(NAVY, WHITE, 0.25), -3.2, 30.0, -4.6, 33.4, -1.0, 40.0)
        pen.area(INK, -0.8, 31.4, 0.8, 31.4, 1.1, 37, 0, 38.6, -1.1, 37)
    elif p.worn == "scrubs":
        _body_shape(pen, woman, MINT, 46.0)
        pen.area(SKIN[p.tone], -2.0, 30.0, 2.0, 30.0, 0, 33.6)
        pen.block(_mixed(MINT, INK, 0.35), 1.6, 36, 4.0, 38.6)
    elif p.worn == "overalls":
        _below(pen, woman, DENIM)
        pen.block(DENIM, -3.7, 34.6, 3.7, 45)
        pen.stroke(DENIM, 1.3, -3.1, 35, -3.9, 30.6)
        pen.stroke(DENIM, 1.3, 3.1, 35, 3.9, 30.6)
        pen.block(_rgb("f2c14b"), -3.5, 35.2, -2.1, 36.6)
        pen.block(_rgb("f2c14b"), 2.1, 35.2, 3.5, 36.6)
        pen.block(_mixed(DENIM, WHITE, 0.35), -2.0, 38.4, 2.0, 41.6)
    elif p.worn == "apron":
        pen.stroke(CREAM, 0.9, -2.8, 34.4, -2.2, 30.4)
        pen.stroke(CREAM, 0.9, 2.8, 34.4, 2.2, 30.4)
        pen.area(CREAM, -3.1, 33.6, 3.1, 33.6, 4.8, 41, 5.0, 52, -5.0, 52, -4.8, 41)
        pen.block(_rgb("cdb98c"), -2.6, 43.4, 2.6, 44.1)
    elif p.worn == "robe":
        pen.area(ROBE, -5.6, 30, 5.6, 30, 8.4, 55.4, -8.4, 55.4)
        pen.area(WHITE, -2.6, 30, 2.6, 30, 1.4, 36.4, -1.4, 36.4)
    elif p.worn == "scarf":
        orange = _rgb("f0762e")
        pen.block(orange, -4.2, 28.8, 4.2, 32.6, 1.6)
        pen.block(orange, -3.6, 31, -0.8, 40.4)
        pen.block(WHITE, -3.6, 37.2, -0.8, 38.2)


def _body_shape(pen: _Pen, woman: bool, colour: Colour, bottom: float) -> None:
    if woman:
        pen.area(colour, -5.0, 30.8, -1.6, 29.8, 1.6, 29.8, 5.0, 30.8, 3.9, 39.5, 6.4, bottom, -6.4, bottom, -3.9, 39.5)
    else:
        pen.block(colour, -6.1, 30.0, 6.1, bottom + 1, 2)


def _below(pen: _Pen, woman: bool, colour: Colour) -> None:
    if woman:
        pen.area(colour, -3.9, 41.5, 3.9, 41.5, 8.0, 51, -8.0, 51)
    else:
        for x in (-2.5, 2.5):
            pen.block(colour, x - 2.3, 43, x + 2.3, 57.6)
        pen.block(colour, -4.8, 42, 4.8, 46)


def _arms(pen: _Pen, p: Person, skin: Colour, sleeve: Colour) -> None:
    """The arm on the viewer's left has the pose; the other one holds what is held."""
    free = {
        "stand": (-6.0, 32.2, -7.6, 38, -8.0, 43.4),
        "wave": (-6.0, 32.2, -9.2, 29.6, -9.4, 22.6),
        "hip": (-6.0, 32.2, -10.4, 37.6, -6.6, 42.4),
    }[p.pose]
    for joints in (free, (6.0, 32.2, 8.0, 37.4, 8.3, 41.6)):
        edge = _mixed(sleeve, INK, 0.18)
        pen.stroke(edge, 3.3, *joints)
        pen.stroke(sleeve, 2.7, *joints)
        pen.disk(skin, joints[4], joints[5] + (0.8 if joints[5] > joints[1] else -0.8), 1.6)


def _face(pen: _Pen, p: Person) -> None:
    if p.worn == "glasses":
        pen.stroke(INK, 0.8, -4.4, 23, 4.4, 23)
        for x in (-2.1, 2.1):
            pen.disk(INK, x, 23.4, 2.1)
            pen.disk(_rgb("e6f4fb"), x, 23.4, 1.45)
    for x in (-1.9, 1.9):
        pen.disk(INK, x, 23.4, 0.6, 0.75)
    pen.arc(INK if p.tone == "lighter" else _rgb("2b1810"), 0, 25.0, 1.7, 1.5, 25, 155, 0.45)


def _hair_behind(pen: _Pen, p: Person, hair: Colour) -> None:
    if p.gender == "woman":
        if p.style == 0:  # long
            pen.block(hair, -6.6, 18.6, 6.6, 34.6, 4.5)
        else:  # up, with a bun
            pen.disk(hair, 0, 15.6, 3.4)
            pen.disk(hair, 0, 22.4, 5.9, 6.2)


def _hair_in_front(pen: _Pen, p: Person, hair: Colour) -> None:
    # The fringe leaves the face free; a full cap of hair would hide it from a small picture.
    if p.gender == "man":
        # Sideburns: what shows of the hair's colour under a hat.
        pen.mirrored(hair, -5.5, 18.5, -4.1, 18.5, -4.1, 24.6, -4.8, 25.4, -5.5, 24.6)
    if p.gender == "woman" and p.style == 0:
        pen.area(hair, -5.6, 24, -5.4, 19, -2.4, 16.8, 2.4, 16.8, 5.4, 19, 5.6, 24, 4.4, 20.8, 0.6, 19.6, -4.4, 21)
    elif p.gender == "woman":
        pen.area(hair, -5.4, 23, -5.2, 19, -2.4, 16.8, 2.4, 16.8, 5.2, 19, 5.4, 23, 3.4, 19.8, -3.4, 19.8)
    elif p.style == 0:  # short
        pen.area(hair, -4.9, 22.4, -5.0, 19.4, -2.6, 17.2, 2.6, 17.2, 5.0, 19.4, 4.9, 22.4, 4.1, 20.4, -4.1, 20.4)
    else:  # parted, swept up
        pen.area(hair, -4.9, 22.0, -5.2, 18.2, -1.2, 16.2, 4.6, 16.6, 5.2, 19, 4.9, 22.2, 4.0, 20.2, -2.4, 20.4)


def _over_head(pen: _Pen, p: Person) -> None:
    if p.worn == "helmet":
        yellow = _rgb("f9c80e")
        pen.area(yellow, -5.9, 19.8, -5.2, 16, -2.8, 13.4, 2.8, 13.4, 5.2, 16, 5.9, 19.8)
        pen.block(_mixed(yellow, INK, 0.2), -7.0, 19.2, 7.0, 20.8, 0.7)
        pen.block(_mixed(yellow, WHITE, 0.5), -0.9, 12.9, 0.9, 19.2, 0.6)
    elif p.worn == "straw-hat":
        straw = _rgb("dfb766")
        pen.area(straw, -4.6, 19, -3.9, 13.8, 3.9, 13.8, 4.6, 19)
        pen.disk(straw, 0, 19.4, 9.6, 1.8)
        pen.area(_rgb("7d4b23"), -4.7, 18.4, -4.5, 16.4, 4.5, 16.4, 4.7, 18.4)
    elif p.worn == "cap":
        pen.area(NAVY, -5.4, 18.4, -7.2, 14.6, -3, 12.6, 3, 12.6, 7.2, 14.6, 5.4, 18.4)
        pen.block(INK, -5.4, 18.2, 5.4, 20.2, 0.6)
        pen.disk(_rgb("f5cf4e"), 0, 16.2, 1.5)
    elif p.worn == "scrubs":
        pen.area(MINT, -5.7, 20, -5.4, 16.4, -2.4, 14.2, 2.4, 14.2, 5.4, 16.4, 5.7, 20)
        pen.block(_mixed(MINT, INK, 0.25), -5.7, 19.2, 5.7, 20.3, 0.5)
    elif p.worn == "headset":
        pen.arc(INK, 0, 22.4, 6.4, 7.4, 180, 360, 1.3)
        magenta = _rgb("e0368c")
        pen.block(magenta, -7.4, 20.8, -4.6, 26, 1.2)
        pen.block(magenta, 4.6, 20.8, 7.4, 26, 1.2)
        pen.stroke(INK, 0.8, -6, 26, -4.8, 28, -2.2, 28)
        pen.disk(INK, -2.0, 28, 0.9)


# ------------------------------------------------------------------------------------- what is held, at (8.3, 42)


def _stethoscope(pen: _Pen) -> None:
    pen.stroke(INK, 1.1, -3.2, 29.8, -3.0, 34.2, 0, 37.2, 3.0, 34.2, 3.2, 29.8)
    pen.stroke(INK, 1.1, 0, 37.2, 0, 40)
    pen.disk(INK, 0, 41.4, 2.3)
    pen.disk(_rgb("d6dde3"), 0, 41.4, 1.5)


def _broom(pen: _Pen) -> None:
    pen.stroke(WOOD, 1.2, 8.8, 27, 8.8, 54)
    pen.area(_rgb("e8c45a"), 7.6, 52, 10.0, 52, 12.0, 59.4, 5.6, 59.4)
    pen.block(_rgb("b5453a"), 7.2, 52, 10.4, 53.6)


def _clipboard(pen: _Pen) -> None:
    pen.block(_rgb("7d5330"), 5.4, 35.4, 12.0, 45.4, 0.5)
    pen.block(WHITE, 6.1, 36.8, 11.3, 44.7)
    pen.block(STEEL, 7.4, 34.7, 10.0, 36.8)
    for y in (38.6, 40.4, 42.2):
        pen.block(_rgb("7c8894"), 7.0, y, 10.4, y + 0.7)


def _laptop(pen: _Pen) -> None:
    pen.block(INK, 0.6, 35.0, 11.6, 42.8, 0.7)
    pen.block(_rgb("6ad2f5"), 1.4, 35.8, 10.8, 42.0)
    pen.area(_rgb("c9ced6"), 0.2, 42.6, 12.0, 42.6, 13.0, 45.2, -0.8, 45.2)


def _spade(pen: _Pen) -> None:
    pen.stroke(WOOD, 1.2, 8.8, 30, 8.8, 51)
    pen.stroke(WOOD, 1.2, 7.0, 29.6, 10.6, 29.6)
    pen.area(STEEL, 6.0, 50, 11.6, 50, 11.4, 55.4, 8.8, 59.6, 6.2, 55.4)
    pen.area(_mixed(STEEL, WHITE, 0.4), 6.0, 50, 8.8, 50, 8.8, 59.6, 6.2, 55.4)


def _can(pen: _Pen) -> None:
    teal = _rgb("1fa3a3")
    pen.arc(teal, 8.6, 44.4, 2.7, 3.4, 180, 360, 0.9)
    pen.block(teal, 5.4, 44.6, 11.4, 51, 0.8)
    pen.stroke(teal, 1.2, 11, 49.4, 13.0, 44.4)
    pen.block(_mixed(teal, WHITE, 0.45), 5.4, 46.2, 11.4, 47.4)


def _scissors(pen: _Pen) -> None:
    pen.stroke(_rgb("c3ccd4"), 1.2, 7.4, 41, 11.2, 32.4)
    pen.stroke(_rgb("dfe5ea"), 1.2, 10.2, 41, 6.4, 32.4)
    for x in (6.9, 10.9):
        pen.disk(_rgb("e0302d"), x, 43.6, 2.2)
        pen.disk(WHITE, x, 43.6, 1.1)


def _brush(pen: _Pen) -> None:
    pen.stroke(WOOD, 1.3, 8.8, 46, 8.8, 39)
    pen.block(STEEL, 6.6, 36.4, 11.0, 39.4)
    pen.area(_rgb("e83e9c"), 6.6, 36.4, 6.2, 30.6, 8.8, 29.4, 11.4, 30.6, 11.0, 36.4)


def _case(pen: _Pen) -> None:
    leather = _rgb("8b5a2b")
    pen.arc(INK, 8.3, 44.2, 2.2, 1.9, 180, 360, 0.9)
    pen.block(leather, 4.2, 44.2, 12.8, 51.4, 0.8)
    pen.block(_mixed(leather, INK, 0.35), 4.2, 46.6, 12.8, 47.3)
    pen.block(_rgb("f2cf63"), 7.6, 46.2, 9.4, 48.0)


def _tray(pen: _Pen) -> None:
    pen.block(_rgb("8f99a5"), 3.2, 40.2, 13.4, 41.6, 0.6)
    pen.block(WHITE, 4.6, 36.0, 8.0, 40.2, 0.6)
    pen.arc(WHITE, 8.0, 37.8, 1.2, 1.2, 270, 90, 0.6)
    pen.disk(_rgb("c8813b"), 11.0, 38.6, 2.0, 1.7)
    pen.disk(_rgb("e5395a"), 11.0, 36.8, 0.9)


def _flask(pen: _Pen) -> None:
    glass = _rgb("e3f3f6")
    pen.block(_rgb("7f929c"), 7.2, 32.2, 10.4, 33.4)
    pen.area(_rgb("7f929c"), 7.4, 33, 10.2, 33, 10.2, 36.2, 13.0, 42.6, 4.6, 42.6, 7.4, 36.2)
    pen.area(glass, 8.0, 33.2, 9.6, 33.2, 9.6, 36.4, 12.2, 42.0, 5.4, 42.0, 8.0, 36.4)
    pen.area(_rgb("51d83c"), 7.4, 38.0, 10.2, 38.0, 12.2, 42.0, 5.4, 42.0)


def _book(pen: _Pen) -> None:
    pen.block(_rgb("8e1f3b"), 4.8, 35.4, 12.0, 44.2, 0.5)
    pen.block(WHITE, 11.0, 36.0, 12.0, 43.6)
    pen.block(_rgb("f0c64f"), 6.4, 37.4, 9.8, 38.6)
    pen.block(_rgb("f0c64f"), 6.4, 39.6, 9.8, 40.4)


def _hammer(pen: _Pen) -> None:
    pen.stroke(WOOD, 1.5, 8.6, 46, 8.6, 35)
    pen.block(_rgb("3a4048"), 5.0, 31.6, 12.4, 35.6, 0.6)
    pen.block(_rgb("6d7781"), 11.2, 31.2, 12.8, 36.0, 0.4)


_HELD = {
    "stethoscope": _stethoscope,
    "broom": _broom,
    "clipboard": _clipboard,
    "laptop": _laptop,
    "spade": _spade,
    "can": _can,
    "scissors": _scissors,
    "brush": _brush,
    "case": _case,
    "tray": _tray,
    "flask": _flask,
    "book": _book,
    "hammer": _hammer,
}
