import dataclasses
import hashlib
from pathlib import Path

import pytest

from shards.common.command import InputError
from shards.dicom import Coding, Slice
from shards.matching import Pair, Patient
from shards.split import all_test, by_patient, by_slab

TEN = ["L067", "L096", "L109", "L143", "L192", "L286", "L291", "L310", "L333", "L506"]


def patient(name, slices=3, step=2.0, thickness=3.0):
    coding = Coding(None, False, 12, 11, 1.0, -1024.0, True, None)
    piece = Slice(Path("x"), None, (0, 0, 0), (1, 0), (64, 64), (1, 1), thickness, "", None, None, "", "", "", "",
                  "", coding, "", 0, 0)  # fmt: skip
    pairs = []
    for i in range(slices):
        at = dataclasses.replace(piece, position=(0.0, 0.0, step * i))
        pairs.append(Pair(f"{name}_{i:04d}", name, at, at, 0.25))
    return Patient(name, "", "", slices, slices, pairs=pairs)


def names(split):
    return {key: sorted({pair.patient for pair in pairs}) for key, pairs in split.pairs.items()}


def test_lists():
    split = by_patient([patient(n) for n in TEN], ["l333"], ["L506"], None)
    assert names(split)["val"] == ["L333"] and names(split)["test"] == ["L506"] and len(names(split)["train"]) == 8
    assert split.about == {"by": "patient", "note": "by patient, named"} and len(split.pairs["train"]) == 24
    assert split.left_out == []


def test_fractions_of_the_challenge():
    split = by_patient([patient(n) for n in TEN], None, None, None)
    assert names(split)["val"] == ["L067", "L506"] and names(split)["test"] == ["L096", "L192"]
    share = "0.15 of the patients by hash"
    assert split.about == {"by": "patient", "note": f"by patient; val: {share}; test: {share}"}


def place(name):
    """The first eight bytes of the sha256 of a name, as a fraction."""
    return int(hashlib.sha256(name.encode()).hexdigest()[:16], 16) / 2**64


def test_fifteen_percent_each_are_val_and_test_unless_said():
    """By the hash of the name: the lowest are val, the highest test."""
    many = [f"P{number:03d}" for number in range(200)]
    got = names(by_patient([patient(n, 1) for n in many], None, None, None))
    assert got["val"] == [name for name in many if place(name) < 0.15]
    assert got["test"] == [name for name in many if place(name) >= 0.85]


def test_shares_are_of_all_that_are_not_named_and_may_be_nobody():
    split = by_patient([patient(n) for n in TEN], ["0.5"], ["L310"], None)
    assert names(split)["val"] == [name for name in TEN if place(name) < 0.5 and name != "L310"]
    assert names(split)["test"] == ["L310"]
    assert split.about["note"] == "by patient; val: 0.5 of the patients by hash"
    assert names(by_patient([patient(n) for n in TEN], [".0"], [], None))["train"] == TEN


def test_seven_patients_are_enough_for_shares():
    split = by_patient([patient(n) for n in TEN[:7]], None, None, None)
    assert split.about["note"].startswith("by patient; val: 0.15 of the patients by hash")


def test_a_patient_without_pairs_is_in_no_split():
    split = by_patient([patient(n, slices=n != "L096") for n in TEN[:4]], ["L067"], ["L109"], None)
    assert names(split) == {"train": ["L143"], "val": ["L067"], "test": ["L109"]}
    with pytest.raises(InputError, match="--val L096: no such patient"):
        by_patient([patient(n, slices=n != "L096") for n in TEN[:4]], ["L096"], ["L109"], None)


@pytest.mark.parametrize("count", [3, 4, 5, 6])
def test_few_patients_give_each_split_one(count):
    split = by_patient([patient(n) for n in TEN[:count]], None, None, None)
    got = names(split)
    assert got["val"] == [min(TEN[:count], key=place)] and got["test"] == [max(TEN[:count], key=place)]
    assert len(got["train"]) == count - 2
    assert split.about["note"] == (
        f"by patient; val: {got['val'][0]}, of {count} patients the one of the lowest hash; "
        f"test: {got['test'][0]}, of {count} patients the one of the highest hash"
    )


def test_two_patients_train_and_validate():
    split = by_patient([patient(n) for n in TEN[:2]], None, None, None)
    assert {k: len(v) for k, v in names(split).items()} == {"train": 1, "val": 1, "test": 0}
    assert split.about["note"].endswith("test: nobody, 2 patients are too few")
    named = names(by_patient([patient(n) for n in TEN[:2]], [], None, None))
    assert {k: len(v) for k, v in named.items()} == {"train": 1, "val": 0, "test": 1}


def test_with_few_patients_named_ones_stay_where_they_are_named():
    got = names(by_patient([patient(n) for n in TEN[:4]], ["L096"], None, None))
    assert got["val"] == ["L096"] and len(got["test"]) == 1 and len(got["train"]) == 2


def test_copies_of_one_patient_stand_in_one_split():
    copies = [patient(f"{n}-v{copy:02d}") for n in TEN for copy in range(2)]
    got = names(by_patient(copies, None, None, None))
    assert got["val"] == ["L067-v00", "L067-v01", "L506-v00", "L506-v01"]
    assert {len({n[:4] for n in got[split]}) * 2 == len(got[split]) for split in got} == {True}
    for val in ("L333", "l333-v01"):
        assert names(by_patient(copies, [val], None, None))["val"] == ["L333-v00", "L333-v01"]
    with pytest.raises(InputError, match=r"L067 is the only patient.*--split slabs"):
        by_patient(copies[:2], None, None, None)


def test_all_for_test():
    split = all_test([patient(n) for n in TEN])
    assert names(split) == {"train": [], "val": [], "test": TEN}
    assert split.about == {"by": "patient", "note": "all patients for test, an external test set"}
    assert split.left_out == []


def test_one_more_patient_moves_nobody():
    before = names(by_patient([patient(n) for n in TEN], None, None, None))
    for extra in ("L400", "L401", "C002", "N017", "zed"):
        after = names(by_patient([patient(n) for n in [*TEN, extra]], None, None, None))
        assert {k: [n for n in v if n != extra] for k, v in after.items()} == before


def test_another_val_share_moves_nobody_in_test():
    for share in (".14", "0.3"):
        assert names(by_patient([patient(n) for n in TEN], [share], None, None))["test"] == ["L096", "L192"]


def test_folds_leave_each_patient_out_once():
    patients = [patient(n) for n in TEN]
    tested, validated = [], []
    for k in range(1, 11):
        got = names(by_patient(patients, None, None, f"{k}/10"))
        assert len(got["test"]) == 1 and len(got["val"]) == 1 and len(got["train"]) == 8
        tested += got["test"]
        validated += got["val"]
    assert sorted(tested) == TEN and sorted(validated) == TEN


def test_a_fold_takes_every_nth_by_name_for_test_and_the_next_for_val():
    patients = [patient(n) for n in reversed(TEN)]
    split = by_patient(patients, None, None, "2/5")
    assert names(split)["test"] == [TEN[1], TEN[6]] and names(split)["val"] == [TEN[2], TEN[7]]
    assert split.about == {"by": "patient", "note": "by patient, fold 2 of 5"}
    last = names(by_patient(patients, None, None, "3/3"))  # the group after the last is the first
    assert last == {"train": TEN[1::3], "val": TEN[0::3], "test": TEN[2::3]}


@pytest.mark.parametrize(
    "val, test, fold, message",
    [
        (["L999"], [], None, "--val L999: no such patient; there are L067, L096, L109"),
        (["L067"], ["L067"], None, "L067 is in --val and in --test; a patient belongs to one split"),
        (["L067"], ["L096", "L109"], None,
         "no patient is left to train on, of L067, L096, L109; name fewer in --val and --test"),
        (None, None, "0/3", "--fold 0/3: expected K/N with K from 1 to N and N from 3 to 3 (the patients)"),
        (None, None, "4/3", "--fold 4/3: expected K/N with K from 1 to N and N from 3 to 3 (the patients)"),
        (None, None, "1/2", "--fold 1/2: expected K/N with K from 1 to N and N from 3 to 3 (the patients)"),
        (None, None, "1/4", "--fold 1/4: expected K/N with K from 1 to N and N from 3 to 3 (the patients)"),
        (None, None, "x", "--fold x: expected K/N with K from 1 to N and N from 3 to 3 (the patients)"),
        (["L067"], None, "1/3", "--fold chooses val and test by itself; leave out --val and --test"),
        (None, ["L067"], "1/3", "--fold chooses val and test by itself; leave out --val and --test"),
        ([".01"], [], None, "by a hash of its name no patient of L067, L096, L109 falls into val; name one: --val ID, "
         "or none: --val with nothing behind it"),
    ],
)  # fmt: skip
def test_bad_splits(val, test, fold, message):
    with pytest.raises(InputError) as error:
        by_patient([patient(n) for n in TEN[:3]], val, test, fold)
    assert str(error.value) == message


def test_one_patient_needs_slabs():
    with pytest.raises(InputError) as error:
        by_patient([patient("L067")], None, None, None)
    assert str(error.value) == "L067 is the only patient, so no split by patient is possible; use --split slabs"


def test_slabs_have_gaps_that_no_slice_bridges():
    split = by_slab([patient("sample", 20)])
    numbers = {k: [int(pair.key[-4:]) for pair in pairs] for k, pairs in split.pairs.items()}
    assert numbers == {"train": list(range(13)), "val": [14, 15], "test": [17, 18, 19]}
    assert [out["what"] for out in split.left_out] == ["sample_0013", "sample_0016"]
    assert {out["why"] for out in split.left_out} == {"gap between the slabs of two splits"}
    assert split.about == {
        "by": "slab",
        "note": "not by patient: slabs of one patient, sample, 1 slice apart; "
        "figures from such a split say nothing about other patients",
    }


@pytest.mark.parametrize(
    ("slices", "thickness", "train", "val", "test"),
    [
        (8, 1.0, (0, 3), (5, 5), (7, 7)),  # one slice is the least gap
        (8, None, (0, 3), (5, 5), (7, 7)),
        (40, 3.0, (0, 25), (28, 31), (34, 39)),  # slices 1 mm apart: two lie between, and the third touches nothing
        (40, 2.5, (0, 25), (28, 31), (34, 39)),
        (40, 2.0, (0, 27), (29, 32), (34, 39)),
        (9, 4.0, (0, 0), (4, 4), (8, 8)),  # one is enough to train on
    ],
)
def test_thick_overlapping_slices_need_a_wider_gap(slices, thickness, train, val, test):
    split = by_slab([patient("sample", slices, step=1.0, thickness=thickness)])
    ends = {k: (pairs[0].full.z, pairs[-1].full.z) for k, pairs in split.pairs.items()}
    assert ends == {"train": train, "val": val, "test": test}
    assert ("2 slices apart" in split.about["note"]) == (thickness in (2.5, 3.0))


def test_slices_of_unknown_thickness_lie_one_apart_however_close():
    split = by_slab([patient("sample", 8, step=0.2, thickness=None)])
    assert len(split.pairs["train"]) == 4 and len(split.left_out) == 2


def test_slices_too_thick_to_split_are_said():
    with pytest.raises(InputError) as error:
        by_slab([patient("sample", 8, step=0.5, thickness=2.0)])
    assert str(error.value) == "--split slabs: 8 slices 0.5 mm apart leave none to train on between gaps of 3"


def test_copies_of_a_series_have_the_same_slabs():
    split = by_slab([patient("sample-v00", 20), patient("sample-v01", 20)])
    for pairs in split.pairs.values():
        heights = {name: {p.full.z for p in pairs if p.patient == name} for name in ("sample-v00", "sample-v01")}
        assert heights["sample-v00"] == heights["sample-v01"]
    assert "one patient, sample," in split.about["note"]
    numbers = ("v00_0013", "v00_0016", "v01_0013", "v01_0016")
    assert [out["what"] for out in split.left_out] == [f"sample-{number}" for number in numbers]


def test_slabs_are_for_one_patient_with_enough_slices():
    with pytest.raises(InputError) as error:
        by_slab([patient("a"), patient("b"), patient("empty", 0)])
    assert str(error.value) == "--split slabs is for one patient, found 2; use --split patient"
    with pytest.raises(InputError) as error:
        by_slab([patient("a", 7)])
    assert str(error.value) == "--split slabs needs at least 8 slices of a, found 7"
    with pytest.raises(InputError, match="found 2; use --split patient"):
        by_slab([patient("a-v00", 20), patient("b", 20)])  # only one of them is a copy
    assert len(by_slab([patient("a", 8), patient("empty", 0)]).pairs["train"]) == 4
