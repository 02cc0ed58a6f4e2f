"""Functions that return a matplotlib Figure."""

from Libraries.Plots.Choosing import chosen_stretch, plot_to_choose, save_film
from Libraries.Plots.CurvePlots import plot_band_errors, plot_latents, plot_metrics, plot_phase_metrics
from Libraries.Plots.CurvePlots import plot_sampler_curves, plot_schedules, plot_vae_metrics, plot_values
from Libraries.Plots.PlanePlots import plot_denoising, plot_paths, plot_points
from Libraries.Plots.SpectrogramPlots import plot_comparison, plot_inverses, plot_noising
from Libraries.Plots.SpectrogramPlots import plot_reconstructions, plot_tensors, plot_trajectory
from Libraries.Plots.SpectrogramPlots import plot_waveform_spectrograms, save_figure
