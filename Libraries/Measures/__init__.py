"""How good generated music is: one call for all measures, and each of them by its name."""

from Libraries.Measures.Copies import level_pictures, nearest_embeddings, nearest_pictures
from Libraries.Measures.Description import Described, describe
from Libraries.Measures.Distances import Values, kernel_distance, precision_recall, wasserstein_distance
from Libraries.Measures.Measure import POOL, PUBLISHED_CLIPS, Yardstick, compare
from Libraries.Measures.MeasurePlot import plot_measures
from Libraries.Measures.Notes import find_notes, note_measures, transcribe
from Libraries.Measures.Outcome import COMPARED, Measures, Row, markdown, number
from Libraries.Measures.Rhythm import rhythm_measures
from Libraries.Measures.Sound import sound_measures
from Libraries.Measures.Table import cell, floor_cell, sets_table
from Libraries.Measures.Tagger import TAGS, Tagger, hear, load_tagger
