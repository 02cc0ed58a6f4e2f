"""Evaluate samples, autoencoders and upsamplers, and restore music."""

from Libraries.Evaluation.Comparison import compare_ema_lengths, compare_guidance, compare_samplers
from Libraries.Evaluation.Comparison import sampler_curves, validation_yardstick, variant_table
from Libraries.Evaluation.OneClip import describe_music, describe_real, music_table, nearest_clip
from Libraries.Evaluation.Reference import against_recordings, make_yardstick, recordings_table, spread_clips
from Libraries.Evaluation.Restoration import low_pass, restore, restore_file
from Libraries.Evaluation.Samples import bits_of_clips, continue_clip, copying, evaluate
from Libraries.Evaluation.Samples import example_input, loop_clip, nearest_in_training
from Libraries.Evaluation.Samples import record_trajectory, save_clips, save_measures, spread_labels
from Libraries.Evaluation.UpsamplerEvaluation import cascade_table, compare_cascade, errors_by_augmentation
from Libraries.Evaluation.UpsamplerEvaluation import save_restored, save_three_ways, low_resolution_error
from Libraries.Evaluation.VAEChecks import band_errors, kl_per_channel
from Libraries.Evaluation.VAEEvaluation import PRIOR_SEEDS, codec_seconds, from_prior, reconstruct
from Libraries.Evaluation.VAEEvaluation import reconstruction_metrics, run_checks, walk
from Libraries.Evaluation.Widgets import music_widgets
