"""The modules that a network is composed of, one family a file."""

from bpcore.modules.activations import (
    ELU,
    GELU,
    Identity,
    LeakyReLU,
    LogSoftmax,
    ReLU,
    Sigmoid,
    SiLU,
    Softmax,
    Softplus,
    Tanh,
)
from bpcore.modules.arithmetic import (
    Add,
    Concatenate,
    Divide,
    Exp,
    Flatten,
    Log,
    MatMul,
    Mean,
    Multiply,
    Power,
    Reshape,
    Subtract,
    Sum,
)
from bpcore.modules.batch import BatchNorm, Dropout2d, GroupNorm
from bpcore.modules.circuit import Circuit
from bpcore.modules.containers import MLP, Residual, Sequential
from bpcore.modules.convolution import Conv1d, Conv2d, ConvTranspose2d
from bpcore.modules.linear import Linear, Weight
from bpcore.modules.losses import CrossEntropy, Huber, LogisticLoss, Loss, SquaredError
from bpcore.modules.normalization import Dropout, LayerNorm, RMSNorm
from bpcore.modules.pooling import AvgPool2d, GlobalAvgPool, MaxPool2d, Upsample

__all__ = [
    "ELU",
    "GELU",
    "MLP",
    "Add",
    "AvgPool2d",
    "BatchNorm",
    "Circuit",
    "Concatenate",
    "Conv1d",
    "Conv2d",
    "ConvTranspose2d",
    "CrossEntropy",
    "Divide",
    "Dropout",
    "Dropout2d",
    "Exp",
    "Flatten",
    "GlobalAvgPool",
    "GroupNorm",
    "Huber",
    "Identity",
    "LayerNorm",
    "LeakyReLU",
    "Linear",
    "Log",
    "LogSoftmax",
    "LogisticLoss",
    "Loss",
    "MatMul",
    "MaxPool2d",
    "Mean",
    "Multiply",
    "Power",
    "RMSNorm",
    "ReLU",
    "Reshape",
    "Residual",
    "Sequential",
    "SiLU",
    "Sigmoid",
    "Softmax",
    "Softplus",
    "SquaredError",
    "Subtract",
    "Sum",
    "Tanh",
    "Upsample",
    "Weight",
]
