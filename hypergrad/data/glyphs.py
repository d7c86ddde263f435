"""The embedded data set: letters of six scripts, rendered from the fonts that matplotlib ships.

Needs no file of the user's. A class is a letter; its drawings are distinct faces of DejaVu, STIX and Computer
Modern under small random affine maps. Letters of one outline (Latin A, Greek Α, Cyrillic А) are one class.
Train: Latin and Cyrillic; validation: Greek; test: Georgian, Armenian and Lao, so no letter of a test
script is seen before.
"""

from __future__ import annotations

import math
import unicodedata
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import PIL
from matplotlib.ft2font import FT2Font
from numpy.typing import NDArray
from PIL import Image, ImageFont, features

from ..errors import ArgumentError, DataError
from .cache import SplitPlan

SCRIPTS = {"LATIN": "train", "CYRILLIC": "train", "GREEK": "validation", "GEORGIAN": "test", "ARMENIAN": "test", "LAO": "test"}
SIZE = 28
MIN_FACES = 5
_FACES = ("DejaVuSans", "DejaVuSerif", "STIXGeneral", "cm")
_NOT_FACES = ("DejaVuSansDisplay", "DejaVuSerifDisplay", "cmex10", "cmsy10")  # symbols and parts of symbols
_EM = 64  # pixels of the master drawings' em
_FINE = 2  # the affine map draws at _FINE times the final size; averaging squares then smooths the edges
_FORMAT = 1

# Random maps: largest rotation (degrees), shear, change of scale of each axis and shift (pixels of 28).
ROTATION = 10.0
SHEAR = 0.15
SCALE = (0.85, 1.1)
SHIFT = 1.25
_CAP = 18.0 / (0.72 * _EM)  # a capital letter is 18 pixels high before scaling
_FIT = 24.0  # no letter is drawn wider or higher than this before scaling


@dataclass(frozen=True)
class Master:
    """One letter in one face, unmapped: ink as (height, width) bytes."""

    width: int
    height: int
    ink: bytes = field(repr=False)


@dataclass(frozen=True)
class Letter:
    """A class of letters: its name, the split it belongs to and its distinct drawings."""

    name: str
    split: str
    masters: tuple[Master, ...]


class Glyphs:
    """The glyphs data set as a source for the cache.

    Args:
        drawings: drawings of each class, 2 to 1000.
        rotations: make each train letter four classes by rotations of 90 degrees; validation and test keep theirs.
        seed: of the random maps, 0 to 2**64 - 1.
    Raises: ArgumentError if a number is out of its range; DataError if matplotlib's fonts are not there.
    Cost: about 0.3 ms a drawing, once.
    """

    name = "glyphs"

    def __init__(self, drawings: int = 20, rotations: bool = False, seed: int = 0) -> None:
        if not 2 <= drawings <= 1000:
            raise ArgumentError(
                f"glyphs: drawings is {drawings}, expected 2 to 1000 because an episode needs support and query "
                "drawings; choose a number between"
            )
        if not 0 <= seed < 2**64:
            raise ArgumentError(
                f"glyphs: seed is {seed}, expected 0 to 2**64 - 1 because it is one 64-bit word of the generator's key; choose another"
            )
        self.drawings, self.rotations, self.seed = drawings, rotations, seed

    @property
    def options(self) -> Mapping[str, Any]:
        return {"drawings": self.drawings, "rotations": self.rotations, "seed": self.seed}

    @property
    def key(self) -> Mapping[str, Any]:
        return {
            **self.options,
            "format": _FORMAT,
            "matplotlib": matplotlib.__version__,
            "pillow": PIL.__version__,
            "freetype": features.version("freetype2"),
            "unicode": unicodedata.unidata_version,
        }

    @property
    def notes(self) -> tuple[str, ...]:
        return ("rendered from the fonts that matplotlib ships; test scripts are Georgian, Armenian and Lao",)

    def plan(self) -> Mapping[str, SplitPlan]:
        letters = find_letters()
        plans = {}
        for split in ("train", "validation", "test"):
            chosen = [letter for letter in letters if letter.split == split]
            turns = (0, 1, 2, 3) if self.rotations and split == "train" else (0,)
            names = tuple(f"{x.name}/rot{90 * t:03d}" if len(turns) > 1 else x.name for x in chosen for t in turns)

            def blocks(chosen: list[Letter] = chosen, turns: tuple[int, ...] = turns) -> Iterator[NDArray[np.uint8]]:
                for letter in chosen:
                    drawn = draw_letter(letter, self.drawings, self.seed)
                    for t in turns:
                        yield np.rot90(drawn, t, axes=(1, 2))

            plans[split] = SplitPlan(names, (self.drawings,) * len(names), (SIZE, SIZE, 1), blocks)
        return plans


def find_letters() -> list[Letter]:
    """All letters with at least MIN_FACES distinct drawings, in order of code point.

    Only letters that no other letters make up (no accents, no ligatures) are taken. Two characters are one
    letter if at least half of the faces that have both draw them alike; drawings that still belong to two
    letters (an italic Cyrillic т is a Latin m) are dropped from both. A letter shared by several scripts
    belongs to train.

    Raises: DataError if matplotlib's fonts are not there or hold too few letters.
    Cost: about a second.
    """
    masters, faces_of = _render_masters()
    owners: dict[tuple[str, Master], list[int]] = defaultdict(list)
    for (code, face), master in masters.items():
        owners[face, master].append(code)
    alike: dict[tuple[int, int], int] = defaultdict(int)
    for codes in owners.values():
        for i, first in enumerate(codes):
            for second in codes[i + 1 :]:
                alike[first, second] += 1
    parent = {code: code for code in faces_of}

    def root(code: int) -> int:
        while parent[code] != code:
            code = parent[code]
        return code

    for (first, second), count in sorted(alike.items()):
        if 2 * count >= len(faces_of[first] & faces_of[second]):
            low, high = sorted((root(first), root(second)))
            parent[high] = low
    groups: dict[int, list[int]] = defaultdict(list)
    for code in sorted(faces_of):
        groups[root(code)].append(code)

    drawings = {
        head: list(dict.fromkeys(masters[code, face] for code in codes for face in sorted(faces_of[code])))
        for head, codes in groups.items()
    }
    used: dict[Master, int] = defaultdict(int)
    for distinct in drawings.values():
        for master in distinct:
            used[master] += 1
    letters = []
    for head, codes in groups.items():
        own = tuple(master for master in drawings[head] if used[master] == 1)
        splits = {SCRIPTS[_script(code)] for code in codes}
        if len(own) >= MIN_FACES:
            name = f"{_script(head).lower()}/U+{head:04X} {chr(head)}"
            letters.append(Letter(name, splits.pop() if len(splits) == 1 else "train", own))
    found = {letter.split for letter in letters}
    if found != {"train", "validation", "test"}:
        raise DataError(
            f"glyphs: matplotlib's fonts hold letters for {sorted(found)}, expected train, validation and test "
            "because DejaVu covers six scripts; reinstall matplotlib with its fonts"
        )
    return letters


def draw_letter(letter: Letter, drawings: int, seed: int) -> NDArray[np.uint8]:
    """Draw a letter under random affine maps; drawing j depends on the letter's name, j and the seed alone.

    Args:
        letter: the class.
        drawings: how many, >= 1; faces are used in turn.
        seed: 0 to 2**64 - 1.
    Returns: (drawings, 28, 28, 1), uint8, ink 255 on 0.
    Cost: about 0.2 ms a drawing.
    """
    head = ord(letter.name[-1])
    random = np.random.Philox(key=np.array([seed, head], np.uint64)).random_raw(8 * drawings)
    unit = (random >> np.uint64(11)).astype(np.float64).reshape(drawings, 8) * 2.0**-53
    order = np.argsort(unit[: len(letter.masters), 0], kind="stable") if drawings >= len(letter.masters) else None
    out = np.empty((drawings, SIZE, SIZE, 1), np.uint8)
    for j in range(drawings):
        which = order[j % len(order)] if order is not None else int(unit[j, 0] * len(letter.masters))
        out[j, :, :, 0] = _draw(letter.masters[which], 2.0 * unit[j, 1:] - 1.0)
    return out


def _draw(master: Master, random: NDArray[np.float64]) -> NDArray[np.uint8]:
    """One drawing; `random` holds numbers in [-1, 1): rotation, shear, scale x, scale y, shift x, shift y."""
    turn, shear, scale_x, scale_y, shift_x, shift_y = (float(r) for r in random[:6])
    angle = math.radians(ROTATION * turn)
    base = _FINE * min(_CAP, _FIT / max(master.width, master.height))
    low, high = SCALE
    stretch_x = base * (low + high + (high - low) * scale_x) / 2
    stretch_y = base * (low + high + (high - low) * scale_y) / 2
    cos, sin = math.cos(angle), math.sin(angle)
    slant = SHEAR * shear
    # rotation @ [[1, slant], [0, 1]] @ diag(stretch), inverted: Pillow wants the map from output to input
    a, b = (sin * slant + cos) / stretch_x, (sin - cos * slant) / stretch_x
    d, e = -sin / stretch_y, cos / stretch_y
    centre = _FINE * SIZE / 2
    x, y = centre + _FINE * SHIFT * shift_x, centre + _FINE * SHIFT * shift_y
    c, f = master.width / 2 - a * x - b * y, master.height / 2 - d * x - e * y
    image = Image.frombytes("L", (master.width, master.height), master.ink)
    fine = image.transform((_FINE * SIZE, _FINE * SIZE), Image.Transform.AFFINE, (a, b, c, d, e, f), resample=Image.Resampling.BILINEAR)
    return np.asarray(fine.reduce(_FINE))


def _render_masters() -> tuple[dict[tuple[int, str], Master], dict[int, set[str]]]:
    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    paths = [p for p in sorted(folder.glob("*.ttf")) if p.stem.startswith(_FACES) and p.stem not in _NOT_FACES]
    if not paths:
        raise DataError(
            f"glyphs: {folder} has no fonts, expected DejaVu, STIX and Computer Modern because matplotlib ships them; reinstall matplotlib"
        )
    masters: dict[tuple[int, str], Master] = {}
    faces_of: dict[int, set[str]] = defaultdict(set)
    for path in paths:
        font = ImageFont.truetype(str(path), _EM, layout_engine=ImageFont.Layout.BASIC)
        for code in sorted(FT2Font(str(path)).get_charmap()):
            # Computer Modern puts other letters at the places above ASCII
            if not _is_letter(code) or (path.stem.startswith("cm") and code > 127):
                continue
            mask, _ = font.getmask2(chr(code), mode="L")
            width, height = mask.size
            ink = bytes(mask)
            if any(ink):
                # a margin of 1, so that the affine map finds paper around the letter
                framed = np.pad(np.frombuffer(ink, np.uint8).reshape(height, width), 1)
                masters[code, path.stem] = Master(width + 2, height + 2, framed.tobytes())
                faces_of[code].add(path.stem)
    return masters, faces_of


def _is_letter(code: int) -> bool:
    character = chr(code)
    return unicodedata.category(character) in ("Lu", "Ll", "Lo") and not unicodedata.decomposition(character) and _script(code) in SCRIPTS


def _script(code: int) -> str:
    return unicodedata.name(chr(code), "?").split()[0]
