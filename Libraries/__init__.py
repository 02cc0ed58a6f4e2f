"""Everything the notebooks import: one module, one idea."""
