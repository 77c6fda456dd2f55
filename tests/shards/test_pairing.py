"""Every layout in circulation, and every reason for which a slice is left out."""

import re
from pathlib import Path, PurePosixPath

import pytest
from phantom import images, make_dataset, write_series, write_slice

from shards.common.command import InputError
from shards.layouts import KNOWN, by_globs, compile_glob, is_projection, place
from shards.pairing import find_pairs

LAYOUTS = {
    "L067/full_1mm/x.IMA": ("L067", True, "1mm", "AAPM patient folders"),
    "L067/quarter_3mm_sharp/x": ("L067", False, "3mm_sharp", "AAPM patient folders"),
    "l067/QUARTER_1MM/x.ima": ("l067", False, "1mm", "AAPM patient folders"),
    "Training/L067/full_1mm/DICOM/x.IMA": ("L067", True, "1mm", "AAPM patient folders"),
    "anna/full_1.25mm/x.dcm": ("anna", True, "1.25mm", "AAPM patient folders"),
    "3mm B30/FD_3mm/full_3mm/L067/full_3mm/x.IMA": ("L067", True, "3mm", "AAPM dose folders"),
    "3mm B30/quarter_3mm/L506/quarter_3mm/x.IMA": ("L506", False, "3mm", "AAPM dose folders"),
    "1mm D45/full_1mm_sharp/L067/full_1mm_sharp/x.IMA": ("L067", True, "1mm_sharp", "AAPM dose folders"),
    "1mm D45/QD_1mm/L067/x.IMA": ("L067", False, "1mm_sharp", "AAPM dose folders"),
    "full/full_3mm/L067/full_3mm/x.IMA": ("L067", True, "3mm", "AAPM dose folders"),
    "quarter_1mm/anna/x": ("anna", False, "1mm", "AAPM dose folders"),
    "all/L067_QD_1_1.CT.0003.0038.2015.12.22.18.10.55.420810.358279277.IMA": ("L067", False, "1mm", "AAPM file names"),
    "L096_FD_3_1.CT.0001.0001.IMA": ("L096", True, "3mm", "AAPM file names"),
    "C121/12-23-2021-NA-NA-61870/1.000000-Low Dose Images-00959/1-001.dcm": ("C121", False, "", "TCIA"),
    "LDCT-and-Projection-data/C121/12-23-2021-NA-NA-61870/1.000000-Full Dose Images-92811/1-001.dcm": (
        "C121", True, "", "TCIA"),
    "N005/08-30-2018-NA-NA-1/1.000000-full dose images-12345/1-01.dcm": ("N005", True, "", "TCIA"),
}  # fmt: skip


@pytest.mark.parametrize("path", LAYOUTS)
def test_places(path):
    where = place(PurePosixPath(path), "root")
    assert (where.patient, where.full, where.variant, where.layout) == LAYOUTS[path]


def test_the_patient_may_be_the_input_folder_itself():
    assert place(PurePosixPath("full_1mm/x.IMA"), "L067").patient == "L067"
    assert place(PurePosixPath("12-2021-NA/1.0-Low Dose Images-00959/1.dcm"), "L004").patient == "L004"


@pytest.mark.parametrize("path", ["x.IMA", "L067/images/x.IMA", "full_1mm/quarter_1mm/L067/x.IMA", "fully/L067/x"])
def test_paths_of_no_layout(path):
    assert place(PurePosixPath(path), "root") is None


def test_dose_by_collection():
    assert place(PurePosixPath("C121/a/1-Low Dose Images-1/x"), "").dose == 0.1
    assert place(PurePosixPath("L121/a/1-Low Dose Images-1/x"), "").dose == 0.25
    assert place(PurePosixPath("L067/quarter_1mm/x"), "").dose == 0.25


def test_projections():
    assert is_projection(PurePosixPath("L067/DICOM-CT-PD_QD/x.dcm"))
    assert is_projection(PurePosixPath("L004/a/1.0-Low Dose Projection-3/x.dcm"))
    assert not is_projection(PurePosixPath("L067/full_1mm/x.dcm"))


def test_globs():
    full, low = compile_glob("nd/{patient}/**/*.dcm", "full"), compile_glob("ld/{patient}/*.dc?", "quarter")
    where = by_globs(PurePosixPath("nd/anna/a/b/1.dcm"), full, low)
    assert (where.patient, where.full, where.dose) == ("anna", True, None)
    assert by_globs(PurePosixPath("ld/anna/1.dcm"), full, low).full is False
    assert by_globs(PurePosixPath("ld/anna/b/1.dcm"), full, low) is None
    with pytest.raises(InputError, match="must hold"):
        compile_glob("nd/*.dcm", "full")
    with pytest.raises(InputError, match="both fit nd/anna/1"):
        by_globs(PurePosixPath("nd/anna/1.dcm"), full, full)


def only(folder, **options):
    (patient,) = find_pairs(folder, **options).patients
    return patient


def why(pairing):
    return {out["what"]: out["why"] for out in pairing.left_out}


def test_pairs_go_by_z_not_by_name_or_order(tmp_path):
    full = write_series(tmp_path / "L067/full_1mm", "L067", "full", 4)
    low = write_series(tmp_path / "L067/quarter_1mm", "L067", "quarter", 4)
    for i, path in enumerate(reversed(low)):
        path.rename(path.with_name(f"{i:06d}"))  # renamed, without extension, in the opposite order
    (tmp_path / "L067/DICOM-CT-PD_QD").mkdir()
    (tmp_path / "L067/DICOM-CT-PD_QD/1.dcm").write_bytes(full[0].read_bytes())
    (tmp_path / "L067/full_1mm.zip").write_bytes(b"PK\3\4")
    pairing = find_pairs(tmp_path)
    (patient,) = pairing.patients
    assert [pair.key for pair in patient.pairs] == ["L067_0000", "L067_0001", "L067_0002", "L067_0003"]
    assert [pair.full.path.name for pair in patient.pairs] == [path.name for path in full]
    assert [pair.low.path.name for pair in patient.pairs] == ["000003", "000002", "000001", "000000"]
    assert all(abs(pair.full.z - pair.low.z) == 0 and pair.dose == 0.25 for pair in patient.pairs)
    assert why(pairing) == {
        "L067/DICOM-CT-PD_QD/1.dcm": "projection data",
        "L067/full_1mm.zip": "the path names no dose",
    }


@pytest.mark.parametrize("full_z, low_z, paired", [(1.0, 1.01, 1), (1.01, 1.0, 1), (-0.3, -0.31, 1), (1.0, 1.011, 0),
                                                   (1.0, 1.3, 0), (0.0, 0.5, 0)])  # fmt: skip
def test_a_hundredth_of_a_millimetre_pairs_and_more_does_not(tmp_path, full_z, low_z, paired):
    for z, dose in ((full_z, "full"), (low_z, "quarter")):
        write_series(tmp_path / f"L067/{dose}_1mm", "L067", dose, 1, first_z=z)
        write_series(tmp_path / f"L067/{dose}_1mm", "L067", dose, 1, first_z=50.0, name="mate{index}")
    assert len(only(tmp_path).pairs) == 1 + paired


def test_both_cases_of_a_patients_name_are_one_patient(tmp_path):
    write_series(tmp_path / "l067/full_1mm", "L067", "full", 2)
    write_series(tmp_path / "L067/QUARTER_1mm", "L067", "quarter", 2)
    assert len(only(tmp_path).pairs) == 2


def test_every_reason_to_leave_a_slice_out(tmp_path):
    full, low = tmp_path / "L067/full_1mm", tmp_path / "L067/quarter_1mm"
    write_series(full, "L067", "full", 6, name="{index}.IMA")
    write_series(low, "L067", "quarter", 6, name="{index}.IMA")
    (low / "1.IMA").unlink()  # no mate
    (full / "2.IMA").unlink()
    hu = images("L067", "quarter", 1)[0]
    write_slice(low / "again.IMA", hu, z=-47.005)  # at the z of number 4, within 0.01
    write_slice(low / "5.IMA", hu, z=-46.0, PixelSpacing=[0.8, 0.8])
    write_slice(low / "6.IMA", hu, z=-45.0, ImagePositionPatient=[0, 0, -45.0])
    write_slice(full / "scout.IMA", hu, z=-40.0, ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
    write_slice(full / "small.IMA", hu[:64, :64], z=-30.0)
    (full / "notes.txt").write_text("hello")
    pairing = find_pairs(tmp_path)
    (patient,) = pairing.patients
    assert [pair.full.path.name for pair in patient.pairs] == ["3.IMA"]
    reasons = {Path(what).relative_to("L067").as_posix(): text for what, text in why(pairing).items()}
    assert reasons.pop("full_1mm/small.IMA").startswith("matrix, spacing or orientation differs")
    assert reasons.pop("quarter_1mm/5.IMA").startswith("matrix, spacing or orientation differs")
    assert reasons.pop("full_1mm/6.IMA").startswith("its mate lies elsewhere in the plane")
    assert reasons == {
        "full_1mm/1.IMA": "no reduced-dose slice at its z",
        "quarter_1mm/2.IMA": "no full-dose slice at its z",
        "quarter_1mm/4.IMA": "2 reduced-dose slices at one z",
        "quarter_1mm/again.IMA": "2 reduced-dose slices at one z",
        "full_1mm/4.IMA": "no reduced-dose slice at its z",
        "full_1mm/5.IMA": "no reduced-dose slice at its z",
        "full_1mm/scout.IMA": "a localizer",
        "full_1mm/notes.txt": "not DICOM",
    }


def test_several_series_have_to_be_chosen_from(tmp_path):
    for variant in ("1mm", "3mm_sharp"):
        for dose in ("full", "quarter"):
            write_series(tmp_path / "L067" / f"{dose}_{variant}", "L067", dose, 2)
    with pytest.raises(
        InputError,
        match=re.escape(
            "1mm (1 patient, 2 + 2 files), 3mm_sharp (1 patient, 2 + 2 files); choose one, e.g. --series 1mm"
        ),
    ):
        find_pairs(tmp_path)
    assert only(tmp_path, variant="3mm_sharp").variant == "3mm_sharp"
    with pytest.raises(InputError, match="has no such series; it has 1mm, 3mm_sharp"):
        find_pairs(tmp_path, variant="5mm")


def test_any_other_layout_by_globs(tmp_path):
    write_series(tmp_path / "nd/anna.b", "L067", "full", 2)
    write_series(tmp_path / "ld/anna.b", "L067", "quarter", 2)
    patient = only(tmp_path, globs=("nd/{patient}/*", "ld/{patient}/*"))
    assert (
        patient.name == "anna.b"
        and re.fullmatch("anna-b-[0-9a-f]{6}_0000", patient.pairs[0].key)
        and patient.pairs[0].dose is None
    )
    with pytest.raises(InputError, match=re.escape("tried: --full 'x/{patient}/*' and --quarter 'y/{patient}/*'")):
        find_pairs(tmp_path, globs=("x/{patient}/*", "y/{patient}/*"))


def said(*arguments, **options):
    with pytest.raises(InputError) as error:
        find_pairs(*arguments, **options)
    return str(error.value)


def test_nothing_found_lists_what_was_tried(tmp_path):
    tried = f"tried: {'; '.join(KNOWN.values())}; for another give --full and --quarter globs"
    assert said(tmp_path) == f"no layout recognised in {tmp_path} (no files); {tried}"
    (tmp_path / "readme.txt").write_text("")
    (tmp_path / "zz").write_text("")
    assert said(tmp_path) == f"no layout recognised in {tmp_path} (2 files, e.g. readme.txt); {tried}"
    for part in ("L067/full_1mm", "Full Dose Images", "L067_FD_1_1.CT"):
        assert part in tried
    own = "tried: --full 'x/{patient}/*' and --quarter 'y/{patient}/*'; for another give --full and --quarter globs"
    globs = ("x/{patient}/*", "y/{patient}/*")
    assert said(tmp_path, globs=globs) == f"no layout recognised in {tmp_path} (2 files, e.g. readme.txt); {own}"
    assert said(tmp_path / "no") == f"expected a folder with DICOM series, found no folder {tmp_path / 'no'}"


def test_one_dose_alone_is_an_error_that_counts(tmp_path):
    write_series(tmp_path / "L067/full_1mm", "L067", "full", 3)
    assert said(tmp_path) == (
        f"no slice of {tmp_path} is there at both doses (L067: 3 full, 0 reduced); "
        "left out: 3 x no reduced-dose slice at its z"
    )
    for patient, dose in (("L096", "quarter"), ("L109", "full"), ("L143", "full")):
        write_series(tmp_path / patient / f"{dose}_1mm", patient, dose, 1, first_z=9.0)
    (tmp_path / "L067/full_1mm/notes").write_text("hello")
    (tmp_path / "L067/readme").write_text("hello")
    assert said(tmp_path) == (  # the first three patients, and the three most frequent reasons
        f"no slice of {tmp_path} is there at both doses (L067: 3 full, 0 reduced; L096: 0 full, 1 reduced; "
        "L109: 1 full, 0 reduced); left out: 5 x no reduced-dose slice at its z; 1 x the path names no dose; "
        "1 x not DICOM"
    )


def test_files_that_no_glob_fits_and_projections_are_left_out_with_their_reason(tmp_path):
    for folder, dose in (("nd/anna", "full"), ("ld/anna", "quarter"), ("nd/DICOM-CT-PD_FD", "full")):
        write_series(tmp_path / folder, "L067", dose, 1)
    (tmp_path / "readme").write_text("")
    pairing = find_pairs(tmp_path, globs=("nd/{patient}/*", "ld/{patient}/*"))
    assert [(p.name, p.full, p.low, len(p.pairs)) for p in pairing.patients] == [
        ("DICOM-CT-PD_FD", 1, 0, 0),  # who names the folders means what they say
        ("anna", 1, 1, 1),
    ]
    assert why(pairing)["readme"] == "neither --full nor --quarter fits"
    assert (pairing.problems, pairing.keys) == ({}, {"DICOM-CT-PD_FD": "DICOM-CT-PD_FD", "anna": "anna"})


def test_what_cannot_be_read_is_a_problem_of_its_patient(tmp_path):
    make_dataset(tmp_path, slices=2)
    for name in ("b.IMA", "a.IMA"):
        (tmp_path / "L067/quarter_1mm" / name).symlink_to(tmp_path / "gone")
    (tmp_path / "L096/full_1mm/c.IMA").symlink_to(tmp_path / "gone")
    pairing = find_pairs(tmp_path)
    gone = "cannot be read: No such file or directory"
    assert pairing.problems == {
        "L067": f"2 files cannot be read, e.g. L067/quarter_1mm/a.IMA: {gone}",
        "L096": f"1 file cannot be read, e.g. L096/full_1mm/c.IMA: {gone}",
    }
    assert [(p.name, p.layout, p.variant, len(p.pairs)) for p in pairing.patients] == [
        ("L067", "AAPM patient folders", "1mm", 2),
        ("L096", "AAPM patient folders", "1mm", 2),
    ]
    assert why(pairing)["L067/quarter_1mm/b.IMA"] == gone


def test_where_nothing_is_found_the_first_folder_that_could_not_be_read_is_said(tmp_path):
    (tmp_path / "docs").mkdir()
    for name in ("link1", "link2"):
        (tmp_path / name).symlink_to(tmp_path / "docs")
    seen = said(tmp_path).partition("; tried")[0]
    assert seen == f"no layout recognised in {tmp_path} (no files; link1: the same folder as docs, by a link)"


def test_two_names_that_look_the_same_in_keys_stay_apart(tmp_path):
    for name in ("a.b", "a-b"):
        write_series(tmp_path / "nd" / name, "L067", "full", 1)
        write_series(tmp_path / "ld" / name, "L067", "quarter", 1)
    pairing = find_pairs(tmp_path, globs=("nd/{patient}/*", "ld/{patient}/*"))
    keys = [pair.key for patient in pairing.patients for pair in patient.pairs]
    assert len(set(keys)) == 2 and all(re.fullmatch(r"[A-Za-z0-9_-]+", key) for key in keys)


def test_make_dataset_pairs(tmp_path):
    pairing = find_pairs(make_dataset(tmp_path, slices=2))
    assert [(p.name, p.full, p.low, len(p.pairs)) for p in pairing.patients] == [("L067", 2, 2, 2), ("L096", 2, 2, 2)]
    assert pairing.left_out == []
