"""Settings, run folders, and the code that trains, finds and loads each kind of model."""

from Libraries.Runs.Autoencoding import LatentCodec, train_vae, vae_recipe
from Libraries.Runs.DiffusionRun import DiffusionRun, find_diffusion, has_cascade
from Libraries.Runs.DiffusionTraining import diffusion_recipe, overfit_one_batch, train_diffusion
from Libraries.Runs.LatentDataset import build_latents, latent_plan
from Libraries.Runs.Leakage import LeakageError, require_unheard
from Libraries.Runs.FileEditing import FileEditor, Stretch, load_short
from Libraries.Runs.Music import make_music
from Libraries.Runs.MusicRequest import MusicRequest
from Libraries.Runs.OnnxRun import RUNTIMES, OnnxRun, export_run
from Libraries.Runs.Phases import PhaseDataset, compare_inverses, inverse_by, phase_recipe, train_phase
from Libraries.Runs.Preparation import compare_representations, ensure_dataset, find_music, load_example_clips
from Libraries.Runs.Preparation import music_plan
from Libraries.Runs.Recipe import Recipe, resumable, train
from Libraries.Runs.Run import Run, latest_run, load_phase, new_run_dir, open_spectrogram
from Libraries.Runs.Settings import EvaluationConfig, PhaseSettings, Settings, UpsamplerSettings, VAESettings
from Libraries.Runs.Settings import changed, describe
from Libraries.Runs.Sharing import share
from Libraries.Runs.Spaces import open_codec, prepare_space
from Libraries.Runs.Upsampling import load_upsampler, train_upsampler, upsampler_recipe
