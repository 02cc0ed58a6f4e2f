"""The denoising networks beside the plain U-Net, all of them by name, and the origin's autoencoders."""

from Libraries.Networks.Catalogue import JOURNAL, NetworkConfig, journal_network, make_network
from Libraries.Networks.Catalogue import count_flops, count_parameters, parameters_of, scale_widths, width_for
from Libraries.Networks.JournalUNet import JournalUNet, JournalUNetConfig, as_journal
