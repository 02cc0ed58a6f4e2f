"""One loop for every model, its losses, averages, checkpoints and log."""

from Libraries.Training.Checkpoint import CheckpointError, save_json
from Libraries.Training.DiffusionLoss import DiffusionLoss, diffusion_loss
from Libraries.Training.Graphs import export_graph, export_graphs
from Libraries.Training.Loop import TrainingDiverged, fit, process_state
from Libraries.Training.PostHocEMA import reconstruct
from Libraries.Training.RunLog import read_metrics
from Libraries.Training.TrainConfig import TrainConfig
from Libraries.Training.VAELoss import VAELoss, VAELossConfig
