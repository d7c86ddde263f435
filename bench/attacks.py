"""Damaged files of every kind that hypergrad reads: each gives one of its own errors or a whole result, never a crash or a hang.

    python bench/attacks.py [--mutations N] [--seed N] [--only KIND ...] [--out DIR]

A kind is written whole into a folder. Then one file of it is mutated and read again, N times (200; CI runs 40, in `tests/attacks`). A
kind with a checksum must give its whole value or an error. Of the others, such as a picture, nobody can tell damage from another content.
Each kind runs in a process of its own, so that a crash of the interpreter is counted, too.
"""

from __future__ import annotations

import argparse
import contextlib
import gzip
import hashlib
import io
import json
import os
import pickle
import random
import resource
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from common import HERE, environment, write_lines
from PIL import Image

import hypergrad as hg
from hypergrad.data import SilentReporter, open_dataset, read_idx, read_images, read_pickle
from hypergrad.errors import HypergradError
from hypergrad.fewshot.config import load_config, make_config, save_config
from hypergrad.runs.directory import CONFIG, METRICS, MODEL, RESULT, STATE, RunDirectory
from hypergrad.runs.loop import Training, load_model, train

LIMIT_S, LIMIT_BYTES = 20, 4 << 30  # of one reading; of a process that reads one kind
OUTCOMES = ("clean error", "same result", "other result", "silently different", "crash", "hang")
EXTREMES = (0, 1, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF)


@dataclass(frozen=True)
class Kind:
    """A kind of file.

    Args:
        make: writes it into an empty folder and returns the file to damage.
        read: reads it from the folder, and returns anything with a `repr` that stands for the result.
        checked: whether a checksum covers it.
        values: whether its JSON values are exchanged, and its checksum made right again, in place of damaging its bytes.
    """

    make: Callable[[Path], Path]
    read: Callable[[Path], Any]
    checked: bool = False
    values: bool = False


# ---------------------------------------------------------------------------------------------- the kinds


def _digest(*parts: Any) -> str:
    result = hashlib.sha256()
    for part in parts:
        result.update(part.tobytes() if isinstance(part, np.ndarray) else repr(part).encode("utf-8", "backslashreplace"))
    return result.hexdigest()


def _picture(form: str, mode: str = "RGB", **options: Any) -> Kind:
    def make(folder: Path) -> Path:
        pixels = np.random.default_rng(0).integers(0, 256, (17, 23, 4), dtype=np.uint8)
        image = Image.fromarray(pixels, "RGBA").convert(mode)
        if form in ("JPEG", "TIFF"):
            options["exif"] = Image.Exif()
            options["exif"][0x0112] = 6  # lying on its side
        image.save(folder / f"image.{form.lower()}", form, **options)
        return folder / f"image.{form.lower()}"

    return Kind(make, lambda folder: _digest(read_images([next(folder.glob("image.*"))], (16, 16, 3))[0]))


def _pickle(protocol: int) -> Kind:
    def make(folder: Path) -> Path:
        rng = np.random.default_rng(0)
        value = {"image_data": rng.integers(0, 256, (6, 4, 4, 3), dtype=np.uint8), "class_dict": {"a": [0, 1, 2], "b": [3, np.int64(4), 5]}}
        (folder / "file.pkl").write_bytes(pickle.dumps(value, protocol))
        return folder / "file.pkl"

    return Kind(make, _read_pickle)


def _read_pickle(folder: Path) -> str:
    found = read_pickle(folder / "file.pkl")
    return _digest(*(found.values() if isinstance(found, dict) else [found]))


def _png(value: int) -> bytes:
    stored = io.BytesIO()
    Image.fromarray(np.full((12, 12, 3), value, np.uint8)).save(stored, "PNG")
    return stored.getvalue()


def _make_mini(folder: Path) -> None:
    """MiniImagenet in small, its images in a zip file."""
    with zipfile.ZipFile(folder / "images.zip", "w", zipfile.ZIP_DEFLATED) as file:
        for i in range(9):
            file.writestr(f"images/{i}.png", _png(20 * i))
    for s, stem in enumerate(("train", "val", "test")):
        rows = [f"{3 * s + i}.png,n{s}" for i in range(3)]
        (folder / f"{stem}.csv").write_text("\n".join(["filename,label", *rows]) + "\n")


def _make_omniglot(folder: Path) -> None:
    """Omniglot in small."""
    names = [f"Alpha{a}/character{c:02d}" for a in range(3) for c in (1, 2)]
    for i, name in enumerate(names):
        place = folder / ("images_evaluation" if i > 3 else "images_background") / name
        place.mkdir(parents=True)
        (place / "0.png").write_bytes(_png(20 * i))
    for stem, own in (("train", names[:2]), ("val", names[2:4]), ("test", names[4:])):
        (folder / f"{stem}.txt").write_text("".join(f"{name}/rot{turn}\n" for name in own for turn in ("000", "090", "180", "270")))


def _data_set(name: str, make_all: Callable[[Path], None], victim: str, *, checked: bool = False) -> Kind:
    def make(folder: Path) -> Path:
        make_all(folder)
        return folder / victim

    def read(folder: Path) -> str:
        with tempfile.TemporaryDirectory() as cache:
            data = open_dataset(name, folder, n_way=1, image_size=12, cache=cache, reporter=SilentReporter())
            splits = (data.train, data.validation, data.test)
            return _digest(*(part for split in splits for part in (split.images, split.class_names, split.offsets)))

    return Kind(make, read, checked)


def _make_idx(name: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        content = struct.pack(">IIII", 0x0803, 5, 6, 7) + bytes(range(210))
        (folder / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
        return folder / name

    return make


def _make_cache(folder: Path) -> Path:
    (folder / "root").mkdir()
    _make_mini(folder / "root")
    _read_cache(folder)
    return next((folder / "cache").iterdir())


def _read_cache(folder: Path) -> str:
    data = open_dataset("miniimagenet", folder / "root", n_way=1, image_size=12, cache=folder / "cache", reporter=SilentReporter())
    return _digest(*(part for split in (data.train, data.validation, data.test) for part in (split.images, split.class_names)))


class _Quadratic:
    """A problem of the loop: ten numbers that approach a point."""

    description, metadata = "a quadratic", {"image_shape": [1, 1, 1]}

    def init(self) -> dict[str, Any]:
        return {"a": np.zeros((2, 3)), "b": np.zeros(4, np.float32)}

    def gradient(self, hparams: dict[str, Any], iteration: int) -> tuple[Any, dict[str, Any], dict[str, float]]:
        value, grad = hg.value_and_grad(lambda h: hg.mean((h["a"] - 1.0) ** 2) + hg.mean(hg.astype(h["b"] - 2.0, np.float64) ** 2))(hparams)
        return np.asarray(value), grad, {"accuracy": 0.5}

    def metrics(self, hparams: dict[str, Any]) -> dict[str, Any]:
        return {}

    def validate(self, hparams: dict[str, Any]) -> tuple[float, dict[str, Any]]:
        loss = float(self.gradient(hparams, 0)[0])
        return -loss, {"validation_loss": loss, "validation_accuracy": 0.5}


_TRAINING = Training(iterations=12, eval_every=4)


def _make_run(victim: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        with RunDirectory.create(folder / "run", save_config(make_config())) as run:
            train(run, _TRAINING, _Quadratic())
            run.write_json(RESULT, {"n_steps": 5, "sweep": [{"n_steps": 5, "test_accuracy": 0.5}]})
        return folder / "run" / victim

    return make


def _resume(folder: Path) -> str:
    """Go on for four iterations, and look at everything that a resumed run shows."""
    with RunDirectory(folder / "run") as run:
        state = train(run, Training(iterations=16, eval_every=4), _Quadratic())
        records = [{name: value for name, value in record.items() if name != "seconds"} for record in run.read_metrics()]
        return _digest(*_sorted(state.hparams), *_sorted(state.best_hparams), state.best_score, state.waited, records)


def _read_model(folder: Path) -> str:
    with RunDirectory(folder / "run", locked=False) as run:
        hparams, metadata = load_model(run, _Quadratic().init())
        return _digest(*_sorted(hparams), metadata)


def _sorted(arrays: dict[str, Any]) -> list[Any]:
    return [arrays[name] for name in sorted(arrays)]


def _read_config(folder: Path) -> str:
    with RunDirectory(folder / "run", locked=False) as run:
        return _digest(load_config(run))


def _read_result(folder: Path) -> str:
    with RunDirectory(folder / "run", locked=False) as run:
        return _digest(run.read_json(RESULT))


KINDS = {
    "png": _picture("PNG"),
    "png, palette": _picture("PNG", "P"),
    "png, transparent": _picture("PNG", "RGBA"),
    "jpeg": _picture("JPEG"),
    "bmp": _picture("BMP"),
    "gif": _picture("GIF", "P"),
    "webp": _picture("WEBP"),
    "tiff": _picture("TIFF"),
    "tiff, lzw": _picture("TIFF", compression="tiff_lzw"),
    "ppm": _picture("PPM"),
    "pgm": _picture("PPM", "L"),
    "pickle, protocol 2": _pickle(2),
    "pickle, protocol 4": _pickle(4),
    "zip of images": _data_set("miniimagenet", _make_mini, "images.zip", checked=True),
    "csv split list": _data_set("miniimagenet", _make_mini, "train.csv"),
    "text split list": _data_set("omniglot", _make_omniglot, "train.txt"),
    "idx": Kind(_make_idx("images-idx3-ubyte"), lambda folder: _digest(read_idx(folder / "images-idx3-ubyte", 3))),
    "idx, gzipped": Kind(_make_idx("images.gz"), lambda folder: _digest(read_idx(folder / "images.gz", 3)), checked=True),
    "cache entry": Kind(_make_cache, _read_cache, checked=True),
    MODEL: Kind(_make_run(MODEL), _read_model, checked=True),
    STATE: Kind(_make_run(STATE), _resume, checked=True),
    METRICS: Kind(_make_run(METRICS), _resume, checked=True),
    CONFIG: Kind(_make_run(CONFIG), _read_config),
    RESULT: Kind(_make_run(RESULT), _read_result),
    f"{MODEL}, values": Kind(_make_run(MODEL), _read_model, values=True),
    f"{STATE}, values": Kind(_make_run(STATE), _resume, values=True),
    f"{METRICS}, values": Kind(_make_run(METRICS), _resume, values=True),
    f"{CONFIG}, values": Kind(_make_run(CONFIG), _read_config, values=True),
}


# ------------------------------------------------------------------------------------------ the attack


def mutate(content: bytes, draw: random.Random) -> bytes:
    """The content with one to four random changes: bits, bytes, numbers at their ends, spans lost, doubled, moved or made of noise."""
    found = bytearray(content)
    for _ in range(draw.choice((1, 1, 1, 2, 4))):
        at = draw.randrange(max(1, len(found)))
        span = draw.randrange(1, 1 + min(64, max(1, len(found))))
        match draw.randrange(8):
            case 0 if found:
                found[at] ^= 1 << draw.randrange(8)
            case 1 if found:
                found[at] = draw.randrange(256)
            case 2:
                width, order = draw.choice((1, 2, 4, 8)), draw.choice(("little", "big"))
                number = draw.choice(EXTREMES) & (1 << 8 * width) - 1
                found[at : at + width] = number.to_bytes(width, order)
            case 3:
                del found[at:]
            case 4:
                del found[at : at + span]
            case 5:
                found[at:at] = found[at : at + span]
            case 6:
                found[at : at + span] = draw.randbytes(span)
            case _:
                moved = found[at : at + span]
                del found[at : at + span]
                to = draw.randrange(len(found) + 1)
                found[to:to] = moved
    return bytes(found)


def exchange(victim: Path, draw: random.Random) -> None:
    """Exchange one to four JSON values of a run's file, as somebody who knows the format and its checksum would."""
    name = victim.name
    with RunDirectory(victim.parent, locked=False) as run:
        if name == METRICS:
            lines = victim.read_bytes().splitlines()
            at = draw.randrange(len(lines))
            lines[at] = json.dumps(_exchanged(json.loads(lines[at]), draw)).encode()
            victim.write_bytes(b"\n".join(lines) + b"\n")
            tensors, numbers = run.read_tensors(STATE)
            counted = {"metrics_bytes": run.metrics_bytes(), "metrics_crc": zlib.crc32(victim.read_bytes())}
            run.write_tensors(STATE, tensors, {**numbers, **counted})
        elif name in (MODEL, STATE):
            tensors, numbers = run.read_tensors(name)
            arrays = {key: draw.choice((value, value[:1], value.astype(np.int32), np.float32(0))) for key, value in tensors.items()}
            run.write_tensors(name, arrays if draw.random() < 0.3 else tensors, _exchanged(numbers, draw))
        else:
            run.write_json(name, _exchanged(run.read_json(name), draw))


def _exchanged(value: Any, draw: random.Random) -> Any:
    """The value with some of its parts replaced by another type, lost, doubled or out of range."""
    for _ in range(draw.choice((1, 1, 2, 4))):
        numbers, containers = (
            (True, 0, -1, 10**30, 1e300, float("nan"), float("inf")),
            ([], {}, [[]], [1, "a"], {"name": "x"}, {"name": []}),
        )
        other = draw.choice((None, *numbers, "", "x", "\x1b[2J", *containers))
        inner, key = value, None
        while isinstance(inner, (dict, list)) and inner and (key is None or draw.random() < 0.7):
            outer, key = inner, draw.choice(list(inner) if isinstance(inner, dict) else range(len(inner)))
            inner = inner[key]
        if key is None or draw.random() < 0.05:
            value = other
        elif draw.random() < 0.2 and isinstance(outer, dict):
            outer.pop(key)
        else:
            outer[key] = other
    return value


@contextlib.contextmanager
def _limited() -> Iterator[None]:
    """Raise TimeoutError in a block that takes too long."""

    def stop(*_: object) -> None:
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(LIMIT_S)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def outcome(kind: Kind, folder: Path, whole: Any) -> tuple[str, str]:
    """How reading went, one of OUTCOMES; and of a fault what it said. Args: whole: the result of the undamaged file."""
    try:
        with _limited():
            found = kind.read(folder)
    except HypergradError as error:
        late = isinstance(error.__cause__, TimeoutError)
        return ("hang", "") if late else ("clean error", "")
    except TimeoutError:
        return "hang", ""
    except BaseException as error:  # PanicException of Rust is no Exception
        if isinstance(error, KeyboardInterrupt):
            raise
        return "crash", f"{type(error).__name__}: {error}"[:300]
    if found == whole:
        return "same result", ""
    return ("silently different" if kind.checked else "other result"), ""


def attack(name: str, mutations: int, seed: int = 0) -> tuple[Counter[str], list[str]]:
    """Damage and read a kind of file so many times. Returns: outcomes, and of every fault the number of its mutation and what it said."""
    kind, counts, faults = KINDS[name], Counter[str](), list[str]()
    with tempfile.TemporaryDirectory() as scratch:
        whole = Path(scratch) / "whole"
        whole.mkdir()
        victim = kind.make(whole)
        content = victim.read_bytes()
        expected = None
        for i in range(-1, mutations):
            folder = Path(scratch) / "copy"
            shutil.copytree(whole, folder)
            if i >= 0:
                damaged, draw = folder / victim.relative_to(whole), random.Random(f"{name} {seed} {i}")
                exchange(damaged, draw) if kind.values else damaged.write_bytes(mutate(content, draw))
                how, words = outcome(kind, folder, expected)
                counts[how] += 1
                if how in OUTCOMES[3:]:
                    faults.append(f"{how} of mutation {i}: {words}")
            else:
                expected = kind.read(folder)
            shutil.rmtree(folder)
    return counts, faults


def _child(name: str, mutations: int, seed: int) -> dict[str, Any]:
    """`attack` in a process of its own, with limited memory."""
    command = [sys.executable, __file__, "--child", name, "--mutations", str(mutations), "--seed", str(seed)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OPENBLAS_NUM_THREADS": "1"})
    if done.returncode:
        return {"counts": {"crash": 1}, "faults": [f"the process ended with {done.returncode}: {done.stderr[-300:]}"]}
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def main(arguments: list[str] | None = None) -> None:
    """Attack all kinds, print a line for each and write the counts."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mutations", type=int, default=200, help="of each kind")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="*", default=list(KINDS), choices=list(KINDS), metavar="KIND")
    parser.add_argument("--out", type=Path, default=HERE / "results")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.child:
        resource.setrlimit(resource.RLIMIT_AS, (LIMIT_BYTES, LIMIT_BYTES))
        counts, faults = attack(options.child, options.mutations, options.seed)
        print(json.dumps({"counts": counts, "faults": faults}))
        return
    lines, bad = [environment()], 0
    for name in options.only:
        found = _child(name, options.mutations, options.seed)
        counts = {how: found["counts"].get(how, 0) for how in OUTCOMES}
        lines.append({"kind": "attack", "file": name, "checksum": KINDS[name].checked, "mutations": options.mutations, **counts})
        bad += len(found["faults"])
        print(f"{name:<20} " + ", ".join(f"{n} {how}" for how, n in counts.items() if n), *found["faults"], sep="\n    ", flush=True)
    write_lines(options.out / "attacks.jsonl", lines)
    if bad:
        sys.exit(f"{bad} faults")


if __name__ == "__main__":
    main()
