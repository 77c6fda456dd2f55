"""Which slices are a pair, mostly from headers alone; whole folders stand in test_pairing.py and test_trees.py."""

import dataclasses
import hashlib
from pathlib import Path

import pytest
from phantom import images, write_slice

from shards.dicom import Coding, Slice, read_slices
from shards.matching import Patient, key_name, key_names, match, micrometres, slice_name

ROOT = Path("in")
CODING = Coding(None, False, 12, 11, 1.0, -1024.0, True, None)
PIECE = Slice(ROOT / "x", None, (-10.0, -20.0, 0.0), (1, 0, 0, 0, 1, 0), (64, 64), (0.7, 0.7), 1.0, "B30f", 100.0,
              200.0, "", "", "", "", "", CODING, "", 0, 0)  # fmt: skip


def at(z, name="x", **changes):
    """A slice at ``z`` in mm."""
    x, y = changes.pop("plane", PIECE.position[:2])
    return dataclasses.replace(PIECE, path=ROOT / name, position=(x, y, z), **changes)


def matched(full, low, layout_dose=0.25):
    """The pairs of a patient and what is left out, as {name: why}."""
    patient, left_out = Patient("L067", "", ""), []
    match(patient, "KEY", [(piece, None) for piece in full], [(piece, layout_dose) for piece in low], left_out, ROOT)
    return patient.pairs, {out["what"]: out["why"] for out in left_out}


def numbered(prefix, positions):
    return [at(z, f"{prefix}{number}") for number, z in enumerate(positions)]


def test_pairs_are_numbered_along_z_and_every_lone_slice_is_named():
    pairs, left_out = matched(numbered("f", [3.0, 1.0, 5.0, 2.0]), numbered("l", [2.0, 4.0, 1.0, 0.0, 6.0]))
    assert [(pair.key, pair.patient, pair.full.z, pair.low.z) for pair in pairs] == [
        ("KEY_0000", "L067", 1.0, 1.0),
        ("KEY_0001", "L067", 2.0, 2.0),
    ]
    lone_full, lone_low = "no reduced-dose slice at its z", "no full-dose slice at its z"
    assert left_out == {"l3": lone_low, "f0": lone_full, "l1": lone_low, "f2": lone_full, "l4": lone_low}


@pytest.mark.parametrize(("full_z", "low_z", "count"), [(1.0, 1.01, 1), (1.01, 1.0, 1), (1.0, 1.011, 0), (-1, 1, 0)])
def test_a_hundredth_of_a_millimetre_is_the_same_place(full_z, low_z, count):
    assert len(matched([at(full_z)], [at(low_z)])[0]) == count


@pytest.mark.parametrize(("apart", "count"), [(0.01, 0), (0.011, 2)])
def test_two_slices_of_one_dose_within_a_hundredth_are_no_slice(apart, count):
    """Nobody knows which of the two it is. Their files cannot be read here, so they count as different."""
    pairs, left_out = matched([at(0.0, "f0"), at(1.0, "f1")], [at(0.0, "l0"), at(1.0, "l1"), at(1.0 + apart, "l2")])
    assert len(pairs) == max(1, count)
    two = "2 reduced-dose slices at one z"
    assert left_out == (
        {"l1": two, "l2": two, "f1": "no reduced-dose slice at its z"}
        if apart == 0.01
        else {"l2": "no full-dose slice at its z"}
    )


def test_copies_count_once_and_other_slices_at_one_place_not_at_all(tmp_path):
    hu = images("L067", "full", 3, size=64)
    files = {"a": (0.0, hu[0]), "b": (0.0, hu[0]), "c": (1.0, hu[1]), "d": (1.0, hu[2]), "e": (2.0, hu[2])}
    full = [read_slices(write_slice(tmp_path / name, pixels, z=z))[0] for name, (z, pixels) in files.items()]
    low = [
        dataclasses.replace(full[0], path=tmp_path / f"low{z:g}", position=(*full[0].position[:2], z)) for z in range(4)
    ]
    patient, left_out = Patient("L067", "", ""), []
    match(patient, "KEY", [(piece, None) for piece in full], [(piece, 0.25) for piece in low], left_out, tmp_path)
    assert [(pair.full.path.name, pair.low.path.name) for pair in patient.pairs] == [("a", "low0"), ("e", "low2")]
    assert {out["what"]: out["why"] for out in left_out} == {
        "b": "a copy of another full-dose slice",
        "c": "2 full-dose slices at one z",
        "d": "2 full-dose slices at one z",
        "low1": "no full-dose slice at its z",
        "low3": "no full-dose slice at its z",
    }


def test_the_dose_is_the_headers_before_the_layouts():
    assert [pair.dose for pair in matched([at(0.0)], [at(0.0)])[0]] == [0.25]
    assert [
        pair.dose
        for pair in matched([at(0.0, derivation="dose fraction 0.5")], [at(0.0, derivation="dose fraction 0.1")])[0]
    ] == [0.1]
    assert [pair.dose for pair in matched([at(0.0)], [at(0.0)], layout_dose=None)[0]] == [None]


TURNED = (1, 0.009, 0, -0.009, 1, 0)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"shape": (64, 63)}, "(64, 63), (0.7, 0.7), (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)"),
        ({"spacing": (0.7, 0.702)}, "(64, 64), (0.7, 0.702), (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)"),
        ({"spacing": (0.7018, 0.7)}, "(64, 64), (0.702, 0.7), (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)"),
        ({"orientation": (1, 0.011, 0, 0, 1, -0.001)}, "(64, 64), (0.7, 0.7), (1.0, 0.01, 0.0, 0.0, 1.0, 0.0)"),
    ],
)
def test_a_slice_of_another_geometry_than_the_most_is_left_out(change, why):
    full, low = numbered("f", range(3)), numbered("l", range(3))
    low[1] = dataclasses.replace(low[1], **change)
    pairs, left_out = matched(full, low)
    assert [pair.key for pair in pairs] == ["KEY_0000", "KEY_0001"] and [pair.full.z for pair in pairs] == [0, 2]
    assert left_out == {
        "l1": f"matrix, spacing or orientation differs from the patient's other slices: ({why})",
        "f1": "no reduced-dose slice at its z",
    }


@pytest.mark.parametrize(
    ("of_full", "of_low", "why"),
    [
        ({}, {"spacing": (0.70069, 0.69931)}, None),  # a thousandth of a pixel more, or less
        ({"spacing": (0.70069, 0.7)}, {"spacing": (0.69931, 0.7)},
         "its mate has another pixel spacing: (0.70069, 0.7) and (0.69931, 0.7) mm"),
        ({}, {"orientation": (1, 0.001, 0, -0.001, 1, 0)}, None),
        ({}, {"orientation": TURNED}, f"its mate has another orientation: {PIECE.orientation} and {TURNED}"),
        ({}, {"plane": (-10.099, -19.901)}, None),
        ({}, {"plane": (-10.2, -20.0)}, "its mate lies elsewhere in the plane: (-10.0, -20.0) and (-10.2, -20.0) mm"),
        ({"plane": (-10.0, -20.2)}, {}, "its mate lies elsewhere in the plane: (-10.0, -20.2) and (-10.0, -20.0) mm"),
    ],
)  # fmt: skip
def test_a_pair_has_its_pixels_at_one_place(of_full, of_low, why):
    full, low = [*numbered("f", range(3)), at(9, "f9", **of_full)], [*numbered("l", range(3)), at(9, "l9", **of_low)]
    pairs, left_out = matched(full, low)
    assert len(pairs) == 4 - (why is not None)
    assert left_out == ({} if why is None else {"f9": why})


def test_nothing_to_match_is_no_pair():
    assert matched([], []) == ([], {})
    assert matched([at(0.0, "f")], []) == ([], {"f": "no reduced-dose slice at its z"})


def test_frames_are_named_and_in_order_where_they_share_a_file():
    assert slice_name(at(0.0, "a/b.dcm"), ROOT) == "a/b.dcm"
    assert slice_name(at(0.0, "a/b.dcm", frame=0), ROOT) == "a/b.dcm frame 0"
    assert [micrometres(z) for z in (1.0004, -0.0306, 100.01)] == [1000, -31, 100010]


def test_keys_hold_what_the_name_of_a_file_in_a_tar_may():
    def digits(text, count):
        return hashlib.sha256(text.encode()).hexdigest()[:count]

    assert key_name("L067_a-B") == "L067_a-B"
    assert key_name("a.b ü") == f"a-b---{digits('a.b ü', 6)}"
    assert key_name("x" * 48) == "x" * 48
    assert key_name("x" * 49) == f"{'x' * 48}-{digits('x' * 49, 6)}"
    same = key_name("a.b")
    hashed = {"a.b": f"a-b--{digits('a.b' + chr(0), 24)}", same: f"{same}--{digits(same + chr(0), 24)}"}
    assert key_names(["a.b", same, "c"]) == {**hashed, "c": "c"}
