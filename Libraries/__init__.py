"""Everything the notebooks import: models on top, folders below; imports go one way."""
