"""Running an annotator over what its layer lacks."""
