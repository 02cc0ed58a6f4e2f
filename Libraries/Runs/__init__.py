"""Settings, run folders, and what trains, finds and loads each kind of model."""

from Libraries.Runs.Autoencoding import LatentCodec, train_vae
from Libraries.Runs.Generator import Generator
from Libraries.Runs.PhaseRuns import inverse_by, load_phase, open_spectrogram
from Libraries.Runs.PhaseTraining import PhaseDataset, build_phase_net, compare_inverses, train_phase
from Libraries.Runs.Pipeline import build_network, open_codec, overfit_one_batch, train_diffusion
from Libraries.Runs.Preparation import compare_representations, find_music, load_example_clips
from Libraries.Runs.Run import latest_run, new_run_dir, results_of
from Libraries.Runs.Settings import Settings, describe
from Libraries.Runs.Upsampling import load_upsampler, train_upsampler
