"""A trained network on images and DICOM series."""
