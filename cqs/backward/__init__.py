"""The backward pass: gradients of attention, task by task, by the same cut as attention itself."""

from cqs.backward.adder import GradientAdder
from cqs.backward.bias import BiasShape
from cqs.backward.call import attention_backward
from cqs.backward.gradients import Gradients, GradientsWithBias
from cqs.backward.heads import differentiate_heads
from cqs.backward.kernel import differentiate
from cqs.backward.numba import differentiate_compiled
from cqs.backward.sinks import sink_logits_backward
from cqs.backward.source import GradientSource
from cqs.backward.worker import GradientResult, GradientWorker

__all__ = [
    "BiasShape",
    "GradientAdder",
    "GradientResult",
    "GradientSource",
    "GradientWorker",
    "Gradients",
    "GradientsWithBias",
    "attention_backward",
    "differentiate",
    "differentiate_compiled",
    "differentiate_heads",
    "sink_logits_backward",
]
