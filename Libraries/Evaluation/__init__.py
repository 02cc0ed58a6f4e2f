"""How good samples, autoencoders and upsamplers are, and restored music."""

from Libraries.Evaluation.Comparison import compare_ema_lengths, compare_guidance, compare_samplers
from Libraries.Evaluation.Comparison import sampler_curves, variant_table
from Libraries.Evaluation.Restoration import low_pass, restore, restore_file
from Libraries.Evaluation.Samples import bits_of_clips, continue_clip, copying, distances, evaluate
from Libraries.Evaluation.Samples import example_input, loop_clip, nearest_in_training, record_trajectory
from Libraries.Evaluation.Samples import save_clips, spread_clips
from Libraries.Evaluation.UpsamplerEvaluation import cascade_table, compare_cascade, errors_by_augmentation
from Libraries.Evaluation.UpsamplerEvaluation import save_restored, save_three_ways, low_resolution_error
from Libraries.Evaluation.VAEChecks import band_errors, kl_per_channel
from Libraries.Evaluation.VAEEvaluation import PRIOR_SEEDS, codec_seconds, from_prior, reconstruct
from Libraries.Evaluation.VAEEvaluation import reconstruction_metrics, run_checks, walk
