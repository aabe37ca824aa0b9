"""Search spaces: parsing from YAML, validation and drawing."""
