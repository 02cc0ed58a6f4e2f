"""From noise to music: samplers, guidance, windows, edits and the variational bound."""

from Libraries.Sampling.Editing import EditConfig, Editor, interpolate, invert, known_outside
from Libraries.Sampling.Guidance import GuidanceConfig, autoguidance, classifier_free_guidance, with_labels
from Libraries.Sampling.Likelihood import bits_per_dimension
from Libraries.Sampling.Samplers import SAMPLERS, SamplerConfig, inference_timesteps, sample, switch_sampler
from Libraries.Sampling.Windows import over_windows
