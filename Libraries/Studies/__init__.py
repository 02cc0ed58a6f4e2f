"""The experiments of the journal, and networks compared on images."""
