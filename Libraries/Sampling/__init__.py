"""From noise to music: one sampling loop and its methods, guidance, windows, edits, the variational bound."""

from Libraries.Sampling.Editing import EditConfig, Editor, interpolate, invert, mask_outside
from Libraries.Sampling.Guidance import GuidanceConfig, autoguidance, classifier_free_guidance, with_labels
from Libraries.Sampling.Likelihood import bits_per_dimension
from Libraries.Sampling.Loop import SamplerConfig, inference_timesteps, run_sampler, sample, switch_sampler
from Libraries.Sampling.Steps import SAMPLERS
from Libraries.Sampling.Stopping import Stopped, Stops
from Libraries.Sampling.Windows import over_windows
