"""Every denoising network by its name, and the origin's autoencoders."""

from Libraries.Networks.Catalogue import JOURNAL, NetworkConfig, make_network, network_config, parameters_of
from Libraries.Networks.Catalogue import scale_widths, width_for
