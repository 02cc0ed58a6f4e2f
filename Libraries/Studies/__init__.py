"""The experiments of the journal, and networks compared on images."""

from Libraries.Studies.ExperimentReport import conclusion, report_folder, table, write_index, write_report
from Libraries.Studies.Experiments import by_variant, load_sound, run_experiment
from Libraries.Studies.ImageClassifier import accuracy
from Libraries.Studies.ImageEvaluation import compare_networks, score_record, score_table
from Libraries.Studies.ImagePlots import plot_by_class, plot_losses
from Libraries.Studies.ImageRuns import labels_in_turn, load_classifier, train_classifier, train_image_network
from Libraries.Studies.Images import load_images, to_x0
