"""The network: backbones, spatial enhancement, feature-map fusion, branches and classifier heads."""
