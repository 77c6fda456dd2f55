"""From DICOM series to tar shards of patch pairs, offline; no GPU and no torch needed in this layer."""
