"""The restricted unpickler: arrays and plain containers pass, everything else is refused unexecuted."""

import collections
import io
import os
import pickle
import pickletools
import subprocess

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from hypergrad.data import read_pickle
from hypergrad.errors import DataError

PROTOCOLS = range(pickle.HIGHEST_PROTOCOL + 1)


def load(folder, contents):
    path = folder / "file.pkl"
    path.write_bytes(contents)
    return read_pickle(path)


def same(a, b):
    if isinstance(a, np.ndarray):
        equal = a.dtype == b.dtype and a.shape == b.shape
        return equal and np.array_equal(a, b, equal_nan=a.dtype.kind in "fc")
    if isinstance(a, dict):
        return isinstance(b, dict) and list(a) == list(b) and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and (a == b or a != a)


DTYPES = st.one_of(
    hnp.boolean_dtypes(),
    hnp.integer_dtypes(endianness="?"),
    hnp.unsigned_integer_dtypes(endianness="?"),
    hnp.floating_dtypes(sizes=(16, 32, 64), endianness="?"),
    hnp.byte_string_dtypes(min_len=1),
    hnp.unicode_string_dtypes(min_len=1),
)
ARRAYS = hnp.arrays(DTYPES, hnp.array_shapes(min_dims=0, min_side=0, max_side=4))
LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(),
    st.binary(),
    ARRAYS,
    hnp.from_dtype(np.dtype(np.float32)),
    hnp.from_dtype(np.dtype(np.int64)),
)
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.tuples(inner, inner), st.dictionaries(st.text() | st.integers(), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(value=VALUES, protocol=st.sampled_from(PROTOCOLS), fortran=st.booleans())
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_plain_values_come_back(tmp_path, value, protocol, fortran):
    if fortran and isinstance(value, np.ndarray):
        value = np.asfortranarray(value)
    assert same(value, load(tmp_path, pickle.dumps(value, protocol)))


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_cache_file_of_every_protocol(tmp_path, protocol):
    images = np.arange(2 * 4 * 4 * 3, dtype=np.uint8).reshape(2, 4, 4, 3)
    cache = {"image_data": images, "class_dict": collections.OrderedDict(a=[0], b=[np.int64(1)])}
    contents = load(tmp_path, pickle.dumps(cache, protocol))
    assert (contents["image_data"] == images).all() and contents["class_dict"] == {"a": [0], "b": [1]}
    assert type(contents["class_dict"]) is dict
    assert not contents["image_data"].flags.writeable


@pytest.mark.parametrize("core", ["numpy.core.multiarray", "numpy._core.multiarray"])
def test_a_cache_file_of_python_2(tmp_path, core):
    # what Python 2 wrote (protocol 2): bytes as text of latin-1, byte order and all
    text = (
        b"\x80\x02}q\x00U\nimage_dataq\x01c" + core.encode() + b"\n_reconstruct\nq\x02cnumpy\nndarray\nq\x03"
        b"K\x00\x85q\x04U\x01bq\x05\x87q\x06Rq\x07(K\x01K\x02K\x02\x86q\x08cnumpy\ndtype\nq\tU\x02u1q\n"
        b"K\x00K\x01\x87q\x0bRq\x0c(K\x03U\x01|q\rNNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tq\x0eb\x89"
        b"U\x04\x00\x7f\x80\xffq\x0ftq\x10bs."
    )
    assert load(tmp_path, text)["image_data"].tolist() == [[0, 127], [128, 255]]


class _Call:
    def __init__(self, function, *arguments):
        self.function, self.arguments = function, arguments

    def __reduce__(self):
        return self.function, self.arguments


def _attack(kind, marker):
    return {
        "os.system": _Call(os.system, f"touch {marker}"),
        "subprocess.Popen": _Call(subprocess.Popen, ["touch", str(marker)]),
        "builtins.eval": _Call(eval, f"open({str(marker)!r}, 'w')"),
        "builtins.open": _Call(open, str(marker), "w"),
        "nested os.system": {"image_data": [np.zeros(3), (_Call(os.system, f"touch {marker}"),)]},
    }[kind]


# protocols 0 to 2 write the names of Python 2
@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("os.system", "(posix|nt).system"),
        ("nested os.system", "(posix|nt).system"),
        ("subprocess.Popen", "(subprocess|commands).Popen"),
        ("builtins.eval", "(builtins|__builtin__).eval"),
        ("builtins.open", "io.open"),
    ],
)
def test_a_forbidden_global_is_named_and_not_called(tmp_path, kind, name, protocol):
    marker = tmp_path / "executed"
    contents = pickle.dumps(_attack(kind, marker), protocol)
    words = f"file.pkl has unreadable contents .it asks for {name}, expected only NumPy arrays and plain containers"
    words += ".*nothing of it was executed: get the data from a source you trust"
    with pytest.raises(DataError, match=words):
        load(tmp_path, contents)
    assert not marker.exists()
    # the attack is real: the ordinary unpickler would have run it
    if kind in ("os.system", "nested os.system"):
        pickle.loads(contents)
        assert marker.exists()


class _Subclass(np.ndarray):
    """An array class of a program's own."""


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (np.array([1, "a", None], dtype=object), "an array of dtype 'O8'"),
        (np.zeros(2, dtype=[("a", "i4"), ("b", "f8")]), "an array of dtype 'V12'"),
        (np.array(["2020-01-01"], dtype="M8[D]"), "an array of dtype 'M8'"),
        (np.ma.masked_array([1, 2], [True, False]), "numpy.ma"),
        (np.zeros(3).view(_Subclass), "_Subclass"),
        ({1, 2}, "builtins.set|type set"),
        (collections.defaultdict(list), "collections.defaultdict"),
        (complex(1, 2), "builtins.complex"),
        (range(3), "builtins.range"),
        (np.random.default_rng(0), "numpy.random"),
        (np.dtype("f8"), "numpy.dtype in an unknown form"),
        (np.load, "numpy.load"),
        (len, "builtins.len"),
    ],
)
def test_everything_else_is_refused(tmp_path, value, words):
    with pytest.raises(DataError, match=words):
        load(tmp_path, pickle.dumps(value, 4))


def _array_of(dtype):
    """A program for an array of 8 bytes, with whatever stands for its dtype."""
    return b"cnumpy.core.multiarray\nscalar\n(" + dtype + b"Vabcdefgh\ntR."


@pytest.mark.parametrize(
    ("program", "words"),
    [
        (b"cnumpy\nndarray\n.", "type partial"),
        (b"c_codecs\nencode\n(Vabc\nVrot13\ntR.", "_codecs.encode in an unknown form"),
        (_array_of(b"cnumpy\ndtype\n(Vf8,O\ntR"), "an array of dtype 'f8,O'"),
        (_array_of(b"cnumpy\ndtype\n(V3f8\ntR"), "an array of dtype '3f8'"),
        (_array_of(b"cnumpy\ndtype\n(cnumpy\ndtype\ntR"), "an array of dtype"),
        (_array_of(b"cnumpy\ndtype\n(tR"), "an array of dtype"),
        (_array_of(b"Vf8\n"), "an array of dtype 'f8'"),
        # a state that would make an array of floats believe that it holds objects
        (_array_of(b"cnumpy\ndtype\n(Vf8\ntR(I3\nV<\nNVa\nNI-1\nI-1\nI63\ntb"), "an array of dtype 'f8'"),
        (_array_of(b"cnumpy\ndtype\n(Vf8\ntR(I3\nVx\nNNNI-1\nI-1\nI63\ntb"), "an array of dtype 'f8'"),
        (b"cnumpy.core.multiarray\n_reconstruct\n(I1\n(I0\ntVb\ntR.", "_reconstruct in an unknown form"),
        (b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntVb\ntR.", "_reconstruct in an unknown form"),
        (b"cnumpy.core.multiarray\nscalar\n(Vf8\nVabcdefgh\ntR.", "an array of dtype 'f8'"),
        (b"Pan id\n.", "persistent id"),
        (b"\x80\x04\x8c\x05numpy\x8c\x0cdtype.mro.im\x93.", "numpy.dtype.mro.im"),
    ],
)
def test_programs_made_by_hand(tmp_path, program, words):
    pickletools.dis(program, out=io.StringIO())  # they are well formed
    with pytest.raises(DataError, match=words):
        load(tmp_path, program)


# BUILD with a dict or a slot state sets attributes of whatever lies on the stack, here of the answer to a name
@pytest.mark.parametrize("state", [b"N}Vfunc\nI1\nst", b"}Vargs\nI1\ns", b"(cbuiltins\nbytes\n(tNNt"])
@pytest.mark.parametrize("name", [b"numpy\ndtype", b"collections\nOrderedDict"])
def test_no_pickle_can_change_the_reader_for_the_next(tmp_path, name, state):
    program = b"c" + name + b"\n(" * (state[:1] == b"N") + b"\n" * (state[:1] != b"N") + state + b"b."
    pickletools.dis(program, out=io.StringIO())
    with pytest.raises(DataError, match="unreadable contents|asks for"):
        load(tmp_path, program)
    value = collections.OrderedDict(a=np.arange(3))
    assert same({"a": np.arange(3)}, load(tmp_path, pickle.dumps(value)))


def test_endless_and_exploding_containers(tmp_path):
    endless = []
    endless.append(endless)
    with pytest.raises(DataError, match="unreadable contents .*recursion"):
        load(tmp_path, pickle.dumps(endless))
    shared = [1]
    for _ in range(60):
        shared = [shared, shared]
    value = load(tmp_path, pickle.dumps(shared))
    assert value[0] is value[1]


@given(data=st.data())
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_damaged_pickles_give_one_clear_error(tmp_path, data):
    value = {"image_data": np.arange(12, dtype=np.uint8), "class_dict": {"a": [0, 1], "b": (2, "x", b"y", 1.5)}}
    contents = bytearray(pickle.dumps(value, data.draw(st.sampled_from(PROTOCOLS))))
    if data.draw(st.booleans()):
        del contents[data.draw(st.integers(0, len(contents) - 1)) :]
    else:
        for _ in range(data.draw(st.integers(1, 3))):
            contents[data.draw(st.integers(0, len(contents) - 1))] = data.draw(st.integers(0, 255))
    try:
        load(tmp_path, bytes(contents))
    except DataError as error:
        assert "file.pkl" in str(error)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(DataError, match="absent.pkl has unreadable contents .*restore or remove it"):
        read_pickle(tmp_path / "absent.pkl")
