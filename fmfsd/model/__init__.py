"""The network: backbones as lists of stages, spatial enhancement, fusion, branches and heads."""
