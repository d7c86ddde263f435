"""The embedded data set: letters of six scripts, rendered from the fonts that matplotlib ships.

Needs no file of the user's. A class is a letter; its drawings are distinct faces of DejaVu, STIX and Computer Modern under small random
affine maps. Letters of one outline (Latin A, Greek Α, Cyrillic А) are one class. Train: Latin and Cyrillic; validation: Greek; test:
Georgian, Armenian and Lao, so no letter of a test script is seen before.
"""

import math
import unicodedata
from collections import Counter, defaultdict
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import NamedTuple

import matplotlib
import numpy as np
import PIL
from matplotlib.ft2font import FT2Font
from numpy.typing import NDArray
from PIL import Image, ImageFont, features

from ..errors import DataError
from .cache import Block, Plan, Source
from .images import SPLITS, check_number

SCRIPTS = {"LATIN": "train", "CYRILLIC": "train", "GREEK": "validation", "GEORGIAN": "test", "ARMENIAN": "test", "LAO": "test"}
SIZE = 28
MIN_FACES = 5
_FACES = ("DejaVuSans", "DejaVuSerif", "STIXGeneral", "cm")
_NOT_FACES = ("DejaVuSansDisplay", "DejaVuSerifDisplay", "cmex10", "cmsy10")  # symbols and parts of symbols
_EM = 64  # pixels of the master drawings' em
_FINE = 2  # the affine map draws at _FINE times the final size; averaging squares then smooths the edges

# Random maps: largest rotation (degrees), shear, change of scale of each axis and shift (pixels of 28).
ROTATION, SHEAR, SCALE, SHIFT = 10.0, 0.15, (0.85, 1.1), 1.25
_CAP = 18.0 / (0.72 * _EM)  # a capital letter is 18 pixels high before scaling
_FIT = 24.0  # no letter is drawn wider or higher than this before scaling


class Master(NamedTuple):
    """One letter in one face, unmapped: ink as (height, width) bytes."""

    width: int
    height: int
    ink: bytes


class Letter(NamedTuple):
    """A class of letters: its name, the split it belongs to and its distinct drawings."""

    name: str
    split: str
    masters: tuple[Master, ...]


def source(drawings: int = 20, rotations: bool = False, seed: int = 0) -> Source:
    """The glyphs data set as a source for the cache.

    Args:
        drawings: drawings of each class, 2 to 1000.
        rotations: make each train letter four classes by rotations of 90 degrees; validation and test keep theirs.
        seed: of the random maps, 0 to 2**64 - 1.
    """
    check_number("glyphs: drawings", drawings, 2, 1000)
    check_number("glyphs: seed", seed, 0, 2**64 - 1)
    options = {"drawings": drawings, "rotations": rotations, "seed": seed}
    versions = {"matplotlib": matplotlib.__version__, "pillow": PIL.__version__, "freetype": features.version("freetype2")}

    def plan() -> Plan:
        plans: dict[str, list[Block]] = {split: [] for split in SPLITS}
        for letter in find_letters():
            block = Block((letter.name,), drawings, partial(draw_letter, letter, drawings, seed))
            plans[letter.split].append(block.turned(range(4)) if rotations and letter.split == "train" else block)
        return plans

    note = "rendered from the fonts that matplotlib ships; test scripts are Georgian, Armenian and Lao"
    key = {**options, **versions, "unicode": unicodedata.unidata_version}
    return Source("glyphs", options, key, (SIZE, SIZE, 1), plan, (note,))


def find_letters() -> list[Letter]:
    """All letters with at least MIN_FACES distinct drawings, in order of code point.

    Only letters that no other letters make up (no accents, no ligatures) are taken. Two characters are one letter if at least half of the
    faces that have both draw them alike; drawings that still belong to two letters (an italic Cyrillic т is a Latin m) are dropped from
    both. A letter shared by several scripts belongs to train.

    Raises: DataError if matplotlib's fonts are not there or hold too few letters. Cost: about a second.
    """
    masters = _render_masters()
    owners: dict[tuple[str, Master], list[int]] = defaultdict(list)
    for code in sorted(masters):
        for face, master in masters[code].items():
            owners[face, master].append(code)
    alike = Counter(pair for codes in owners.values() for pair in combinations(codes, 2))
    head = {code: code for code in sorted(masters)}  # the lowest code point of the same letter
    for (first, second), count in sorted(alike.items()):
        if 2 * count >= len(masters[first].keys() & masters[second].keys()):
            low, high = sorted((head[first], head[second]))
            head = {code: low if h == high else h for code, h in head.items()}
    groups: dict[int, list[int]] = defaultdict(list)
    for code, h in head.items():
        groups[h].append(code)
    drawn = {h: dict.fromkeys(master for c in codes for _, master in sorted(masters[c].items())) for h, codes in groups.items()}
    used = Counter(master for distinct in drawn.values() for master in distinct)
    letters = []
    for h, codes in groups.items():
        own = tuple(master for master in drawn[h] if used[master] == 1)
        splits = {SCRIPTS[_script(code)] for code in codes}
        if len(own) >= MIN_FACES:
            letters.append(Letter(f"{_script(h).lower()}/U+{h:04X} {chr(h)}", splits.pop() if len(splits) == 1 else "train", own))
    if {letter.split for letter in letters} != set(SPLITS):
        raise DataError(
            f"glyphs: matplotlib's fonts have {len(letters)} letters, expected six scripts; reinstall matplotlib with its fonts"
        )
    return letters


def draw_letter(letter: Letter, drawings: int, seed: int) -> NDArray[np.uint8]:
    """(drawings, 28, 28, 1), uint8, ink 255 on 0: a letter under random affine maps, its faces in turn. Drawing j depends on the letter's
    name, j and the seed alone. Cost: about 0.2 ms a drawing."""
    n = len(letter.masters)
    random = np.random.Philox(key=np.array([seed, ord(letter.name[-1])], np.uint64)).random_raw(8 * drawings)
    unit = (random >> np.uint64(11)).astype(np.float64).reshape(drawings, 8) * 2.0**-53
    order = np.argsort(unit[:n, 0], kind="stable") if drawings >= n else (unit[:, 0] * n).astype(np.int64)
    faces = [letter.masters[order[j % len(order)]] for j in range(drawings)]
    return np.stack([_draw(face, 2.0 * unit[j, 1:] - 1.0) for j, face in enumerate(faces)])[..., None]


def _draw(master: Master, random: NDArray[np.float64]) -> NDArray[np.uint8]:
    """One drawing; `random` holds numbers in [-1, 1): rotation, shear, scale x, scale y, shift x, shift y."""
    turn, shear, scale_x, scale_y, shift_x, shift_y = (float(r) for r in random[:6])
    angle, slant = math.radians(ROTATION * turn), SHEAR * shear
    base = _FINE * min(_CAP, _FIT / max(master.width, master.height))
    low, high = SCALE
    stretch_x, stretch_y = (base * (low + high + (high - low) * scale) / 2 for scale in (scale_x, scale_y))
    cos, sin = math.cos(angle), math.sin(angle)
    # rotation @ [[1, slant], [0, 1]] @ diag(stretch), inverted: Pillow wants the map from output to input
    a, b = (sin * slant + cos) / stretch_x, (sin - cos * slant) / stretch_x
    d, e = -sin / stretch_y, cos / stretch_y
    x, y = (_FINE * (SIZE / 2 + SHIFT * shift) for shift in (shift_x, shift_y))
    c, f = master.width / 2 - a * x - b * y, master.height / 2 - d * x - e * y
    image = Image.frombytes("L", (master.width, master.height), master.ink)
    fine = image.transform((_FINE * SIZE, _FINE * SIZE), Image.Transform.AFFINE, (a, b, c, d, e, f), resample=Image.Resampling.BILINEAR)
    return np.asarray(fine.reduce(_FINE))


def _render_masters() -> dict[int, dict[str, Master]]:
    """Every letter, by code point and face."""
    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    paths = [p for p in folder.glob("*.ttf") if p.stem.startswith(_FACES) and p.stem not in _NOT_FACES]
    if not paths:
        raise DataError(f"glyphs: {folder} has no fonts, expected DejaVu, STIX and Computer Modern; reinstall matplotlib")
    masters: dict[int, dict[str, Master]] = defaultdict(dict)
    for path in paths:
        font = ImageFont.truetype(str(path), _EM, layout_engine=ImageFont.Layout.BASIC)
        for code in FT2Font(str(path)).get_charmap():
            # Computer Modern puts other letters at the places above ASCII
            if _is_letter(code) and not (path.stem.startswith("cm") and code > 127):
                mask, _ = font.getmask2(chr(code), mode="L")
                width, height = mask.size
                ink = np.frombuffer(bytes(mask), np.uint8).reshape(height, width)
                if ink.any():
                    # a margin of 1, so that the affine map finds paper around the letter
                    masters[code][path.stem] = Master(width + 2, height + 2, np.pad(ink, 1).tobytes())
    return masters


def _is_letter(code: int) -> bool:
    character = chr(code)
    return unicodedata.category(character) in ("Lu", "Ll", "Lo") and not unicodedata.decomposition(character) and _script(code) in SCRIPTS


def _script(code: int) -> str:
    return unicodedata.name(chr(code), "?").split()[0]
